"""Compare several runs in one report: tables of shared cells, differing conditions. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from effbench.analysis.cell_summary import CellSummary
from effbench.core.estimate import Verdict
from effbench.core.run import Environment, Run
from effbench.core.study import Experiment, Label
from effbench.host import facts
from effbench.report import text as report_text
from effbench.report.run_names import run_names
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value

_Key = tuple[Label | None, ...]
"""The labels that identify a cell within its run."""


class SummarisedRun(Protocol):
    """A run with its summaries and verdicts; `results.Results` implements it."""

    @property
    def run(self) -> Run: ...
    @property
    def cells(self) -> tuple[CellSummary, ...]: ...
    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...
    @property
    def named_tables(self) -> Mapping[str, Table]: ...


@dataclass(frozen=True)
class Condition:
    """One fact of the environment in every run, as text; None where a run did not record it.

    `mark` says whether the runs agree. Only "unlike" prevents a comparison. Other differences, such as the load
    average, are "varies".
    """

    name: str
    values: tuple[str | None, ...]
    mark: Literal["", "varies", "unlike"] = ""


def tables(runs: Mapping[int, SummarisedRun]) -> tuple[Table, ...]:
    """Build tables for each study that several runs have in common: verdicts, time ratios and latencies, one column per
    run.

    Cells are matched by the labels that vary within a run. A label that does not, such as the channels that the paper
    uses for a device, is ignored; if it differs between runs, a note says that the networks are not the same.
    """
    return tuple(table for group in of_one_study(runs) for table in _of_study(group))


def of_one_study(runs: Mapping[int, SummarisedRun]) -> list[dict[int, SummarisedRun]]:
    """Group the runs by study, keeping studies with several runs."""
    studies: dict[str, dict[int, SummarisedRun]] = {}
    for number, item in runs.items():
        studies.setdefault(item.run.experiment.name, {})[number] = item
    return [group for group in studies.values() if len(group) > 1]


def conditions(environments: Sequence[Environment]) -> tuple[Condition, ...]:
    """List every fact of any environment: first those that must agree, in their order, then the rest."""
    first = environments[0]
    unlike = {item.field for other in environments[1:] for item in facts.differences(first, other)}
    known = dict.fromkeys(fact for each in environments for fact in each.facts)
    listed = [name for name in facts.MUST_AGREE if name in ("device", "runtime") or name in known]
    found = []
    for name in [*listed, *(fact for fact in known if fact not in listed)]:
        said = tuple(_fact(each, name) for each in environments)
        mark: Literal["", "varies", "unlike"] = "unlike" if name in unlike else "varies" if len(set(said)) > 1 else ""
        found.append(Condition(name, said, mark))
    return tuple(found)


def _of_study(group: Mapping[int, SummarisedRun]) -> list[Table]:
    experiment = next(iter(group.values())).run.experiment
    unfinished = _unfinished(group)
    called = tuple(map(str, run_names(group).values()))
    keys = _keys(group.values(), experiment)
    labels = tuple(Column(key, align="left") for key in keys)
    notes = _notes(group, keys)
    found = []
    if any(item.verdicts for item in group.values()):
        found.append(replace(_verdicts(group.values(), called, keys, experiment), notes=unfinished))
    for heading, title in (("time ratio", "time ratio"), ("latency", "latency in ms")):
        columns = [_column(item, heading, keys) for item in group.values()]
        rows = dict.fromkeys(key for column in columns for key in column)
        found.append(
            Table(
                f"{experiment.title}: {title} by run",
                (*labels, *(Column(name) for name in called)),
                tuple((*map(values.label, key), *(column.get(key, NOTHING) for column in columns)) for key in rows),
                (*(notes if heading == "time ratio" else notes[1:]), *unfinished),
            )
        )
    return found


def _column(item: SummarisedRun, heading: str, keys: Sequence[str]) -> dict[_Key, Value]:
    """One column of the run's own table by cell."""
    shown = item.named_tables["table"]
    at = next((place for place, column in enumerate(shown.columns) if column.heading == heading), None)
    column = [NOTHING if at is None else row[at] for row in shown.rows]
    return dict(zip((_key(cell.cell.case.labels, keys) for cell in item.cells), column, strict=True))


def _keys(runs: Iterable[SummarisedRun], experiment: Experiment) -> tuple[str, ...]:
    """Return the labels that distinguish the cells of one run, the factor last."""
    within = dict.fromkeys(key for item in runs for key in report_text.grouping(item.run, item.cells))
    return (*(key for key in within if key != experiment.factor), experiment.factor)


def _key(labels: Mapping[str, Label], keys: Sequence[str]) -> _Key:
    return tuple(labels.get(key) for key in keys)


def _verdicts(
    runs: Collection[SummarisedRun], called: Sequence[str], keys: Sequence[str], experiment: Experiment
) -> Table:
    judged = [{(each.claim, _key(each.group, keys[:-1])): each.verdict for each in item.verdicts} for item in runs]
    rows = dict.fromkeys(key for column in judged for key in column)
    # Nothing is unsure before anything was measured.
    columns = [column if item.run.launches else {} for column, item in zip(judged, runs, strict=True)]
    return Table(
        f"{experiment.title}: verdicts by run",
        tuple(Column(name, align="left") for name in ("claim", *keys[:-1], *called)),
        tuple(
            (
                values.text(claim),
                *map(values.label, where),
                *(values.text(column.get((claim, where))) for column in columns),
            )
            for claim, where in rows
        ),
    )


def _notes(group: Mapping[int, SummarisedRun], keys: Sequence[str]) -> tuple[str, ...]:
    clocks = {number: report_text.clock(item.run) for number, item in group.items()}
    alike = len(set(clocks.values())) == 1
    which = next(iter(clocks.values())) if alike else f"unlike clocks ({_by_run(clocks)})"
    notes = [f"Ratios are of {which}, each to its own run's reference. Above 1 is slower."]
    fixed = {number: report_text.shared_labels(item.run, item.cells) for number, item in group.items()}
    for label in report_text.varying_labels(fixed.values()):
        if label not in keys:
            texts = {number: report_text.label_text(each.get(label, "absent")) for number, each in fixed.items()}
            notes.append(f"{label} is {_by_run(texts)}: a row holds unlike networks, so read ratios and not latencies.")
    return tuple(notes)


def _unfinished(group: Mapping[int, SummarisedRun]) -> tuple[str, ...]:
    """A note on each run that is not complete: its verdicts may change."""
    names = run_names(group)
    found = []
    for number, item in group.items():
        if said := report_text.unfinished(item.run):
            how = f"is not complete: {said}" if item.run.launches else "has not begun"
            found.append(f"{names[number].title} {how}.")
    return tuple(found)


def _by_run(texts: Mapping[int, str]) -> str:
    return ", ".join(f"{text} in run {number}" for number, text in texts.items())


def _fact(each: Environment, name: str) -> str | None:
    value: Any = {"device": each.device, "runtime": each.runtime}.get(name, each.facts.get(name))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {report_text.label_text(inner)}" for key, inner in value.items())
    return None if value is None else report_text.label_text(value)
