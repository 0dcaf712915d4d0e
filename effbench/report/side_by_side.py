"""Several runs side by side: what to call each, the cells that they share, and the conditions that differ. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from effbench import environment, report
from effbench.core import Environment, Experiment, Label, Run, Verdict
from effbench.report import captions
from effbench.report.grid import NOTHING, Column, Table, Value
from effbench.summary import CellSummary


class Measured(Protocol):
    """A run with what follows from it, as `api.Results` has it."""

    @property
    def run(self) -> Run: ...
    @property
    def cells(self) -> tuple[CellSummary, ...]: ...
    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...


@dataclass(frozen=True)
class Condition:
    """One fact of the environment in every run, as text; None where a run did not record it.

    `mark` says whether the runs agree. Only "unlike" stands in the way of comparing them; what else differs, such as
    the load of a minute, is "varies".
    """

    name: str
    values: tuple[str | None, ...]
    mark: Literal["", "varies", "unlike"] = ""


def names(runs: Sequence[Measured]) -> tuple[str, ...]:
    """What to call each run among the others: whatever tells them apart, the folder where nothing else does."""
    facets = [_facets(item.run, item.cells) for item in runs]
    telling = [index for index in range(len(facets[0])) if len({facet[index] for facet in facets}) > 1]
    found = [", ".join(facet[index] for index in telling if facet[index]) for facet in facets]
    if len(set(found)) < len(found) or not all(found):
        found = [", ".join(filter(None, (name, _folder(item.run)))) for name, item in zip(found, runs, strict=True)]
    return tuple(f"{number}: {name}" if name else str(number) for number, name in enumerate(found, start=1))


def tables(runs: Sequence[Measured], called: Sequence[str]) -> tuple[Table, ...]:
    """For each study that several of the runs carried out: verdicts, time ratios and latencies, a column a run.

    A label that does not vary within any run, such as the paper's channels for the device, does not keep cells apart;
    where it differs between runs a note says that the networks are not the same.
    """
    studies: dict[str, list[tuple[str, Measured]]] = {}
    for name, item in zip(called, runs, strict=True):
        studies.setdefault(item.run.experiment.name, []).append((name, item))
    return tuple(table for group in studies.values() if len(group) > 1 for table in _of_study(group))


def conditions(environments: Sequence[Environment]) -> tuple[Condition, ...]:
    """Every fact that any of the environments holds: first those that must agree, in their order, then the rest."""
    first = environments[0]
    unlike = {item.field for other in environments[1:] for item in environment.differences(first, other)}
    known = dict.fromkeys(fact for each in environments for fact in each.facts)
    listed = [name for name in environment.MUST_AGREE if name in ("device", "runtime") or name in known]
    found = []
    for name in [*listed, *(fact for fact in known if fact not in listed)]:
        values = tuple(_fact(each, name) for each in environments)
        mark: Literal["", "varies", "unlike"] = "unlike" if name in unlike else "varies" if len(set(values)) > 1 else ""
        found.append(Condition(name, values, mark))
    return tuple(found)


def _facets(run: Run, cells: Sequence[CellSummary]) -> tuple[str, ...]:
    threads = sorted({cell.cell.threads for cell in cells} - {0})
    batches = sorted({cell.cell.batch for cell in cells})
    return (
        run.experiment.title,
        captions.hardware(run, cells),
        f"{'/'.join(map(str, threads))} thread{'' if threads == [1] else 's'}" if threads else "",
        "/".join(dict.fromkeys(cell.cell.runtime for cell in cells)) or run.environment.runtime,
        "batch " + "/".join(map(str, batches)) if batches else "",
        "/".join(dict.fromkeys(cell.cell.case.dtype for cell in cells)),
        f"allocator {run.environment.facts.get('run.allocator')}",
        captions.group_text(captions.fixed(run, cells)),
    )


def _folder(run: Run) -> str:
    return Path(run.path).parent.name if run.path else run.created


def _of_study(group: Sequence[tuple[str, Measured]]) -> list[Table]:
    experiment = group[0][1].run.experiment
    keys = _keys([item for _, item in group], experiment)
    notes = _notes(group, keys)
    found = [_verdicts(group, keys, experiment)] if any(item.verdicts for _, item in group) else []
    for heading, title in (("time ratio", "time ratio"), ("latency", "latency in ms")):
        columns: list[dict[tuple[Label | None, ...], Value]] = []
        for _, item in group:
            shown = report.tables(item.run, item.cells, item.verdicts)["table"]
            at = next((place for place, column in enumerate(shown.columns) if column.heading == heading), None)
            values = [NOTHING if at is None else row[at] for row in shown.rows]
            cells = (_key(cell.cell.case.labels, keys) for cell in item.cells)
            columns.append(dict(zip(cells, values, strict=True)))
        rows = dict.fromkeys(key for column in columns for key in column)
        found.append(
            Table(
                f"{experiment.title}: {title} by run",
                (*(Column(key, align="left") for key in keys), *(Column(name) for name, _ in group)),
                tuple((*map(_label, key), *(column.get(key, NOTHING) for column in columns)) for key in rows),
                notes,
            )
        )
    return found


def _keys(runs: Sequence[Measured], experiment: Experiment) -> tuple[str, ...]:
    """The labels that tell the cells of one run apart, the factor last."""
    within = dict.fromkeys(key for item in runs for key in captions.grouping(item.run, item.cells))
    return (*(key for key in within if key != experiment.factor), experiment.factor)


def _key(labels: Mapping[str, Label], keys: Sequence[str]) -> tuple[Label | None, ...]:
    return tuple(labels.get(key) for key in keys)


def _verdicts(group: Sequence[tuple[str, Measured]], keys: Sequence[str], experiment: Experiment) -> Table:
    columns = []
    for _, item in group:
        columns.append({(each.claim, _key(each.group, keys[:-1])): each.verdict for each in item.verdicts})
    rows = dict.fromkeys(key for column in columns for key in column)
    return Table(
        f"{experiment.title}: verdicts by run",
        (
            Column("claim", align="left"),
            *(Column(key, align="left") for key in keys[:-1]),
            *(Column(name, align="left") for name, _ in group),
        ),
        tuple(
            (Value(claim, claim), *map(_label, where), *(_word(column.get((claim, where))) for column in columns))
            for claim, where in rows
        ),
    )


def _notes(group: Sequence[tuple[str, Measured]], keys: Sequence[str]) -> tuple[str, ...]:
    clocks = {captions.CLOCKS.get(item.run.clock, item.run.clock): None for _, item in group}
    notes = [f"Ratios are of {' and '.join(clocks)}, each to its own run's reference. Above 1 is slower."]
    if len(clocks) > 1:
        notes[0] = f"Ratios are of {_by_run([item.run.clock for _, item in group])}: unlike clocks. Above 1 is slower."
    fixed = [captions.fixed(item.run, item.cells) for _, item in group]
    for label in dict.fromkeys(label for each in fixed for label in each if label not in keys):
        values = [captions.label_text(each.get(label, "absent")) for each in fixed]
        if len(set(values)) > 1:
            notes.append(
                f"{label} is {_by_run(values)}: a row holds unlike networks, so read ratios and not latencies."
            )
    return tuple(notes)


def _by_run(values: Iterable[str]) -> str:
    return ", ".join(f"{value} in {place}" for place, value in enumerate(values, start=1))


def _label(value: Label | None) -> Value:
    return NOTHING if value is None else Value(captions.label_text(value), value)


def _word(verdict: str | None) -> Value:
    return NOTHING if verdict is None else Value(verdict, verdict)


def _fact(each: Environment, name: str) -> str | None:
    value: Any = {"device": each.device, "runtime": each.runtime}.get(name, each.facts.get(name))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {captions.label_text(inner)}" for key, inner in value.items())
    return None if value is None else captions.label_text(value)
