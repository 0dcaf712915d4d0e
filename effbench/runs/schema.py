"""From the records of a run file back to a `Run`. A file may hold anything, so every field is checked for its
declared type.

Schema history
    1   2026-11: first.
    2   2026-11: memory format and mode of a cell, batch of a case, readings beside the rounds.
    3   2026-11: time since the launch began in its records (`at_s`); start, end, conditions and budget of launches;
        CPU time of the whole process beside that of the thread (`process_ns`).
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from effbench.core.cost import LEVELS, Cost, Traffic
from effbench.core.errors import CorruptRun, InvalidValue
from effbench.core.inputs import Input
from effbench.core.operator_times import Breakdown, OperatorTime
from effbench.core.run import (
    CLOCKS,
    Block,
    Conditions,
    Environment,
    Launch,
    Reading,
    Result,
    Run,
    Timing,
    Warmup,
)
from effbench.core.study import Case, Cell, Claim, Experiment, Label, Sampling

SCHEMA = 3
_Noun = TypeVar("_Noun")


def build(path: Path, records: Sequence[tuple[int, dict[str, Any]]]) -> Run:
    """The run that these records, each with its line number, describe. Raises CorruptRun naming the line that does
    not fit.
    """
    return _Builder(path).build(records)


def brief(error: BaseException) -> str:
    """The first words of an error, for a message of one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


class _Builder:
    """Turns records into a `Run`, naming the line of whatever does not fit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def build(self, records: Sequence[tuple[int, dict[str, Any]]]) -> Run:
        if not records:
            raise CorruptRun(f"{self.path} is empty: the run was stopped before anything was measured; begin it again")
        if records[0][1]["kind"] != "header":
            raise CorruptRun(f"{self.path}: no header in the first line, so this is not an effbench run")
        schema = records[0][1].get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise CorruptRun(f"{self.path}: the header has no schema number, so this is not an effbench run")
        if schema > SCHEMA:
            raise CorruptRun(
                f"{self.path} was written with schema {str(schema)[:9]}, and this effbench reads up to {SCHEMA}; "
                "upgrade effbench"
            )
        run: Run | None = None
        results: dict[str, Result] = {}
        launches: dict[int, Launch] = {}
        used: dict[int, float] = {}
        blocks: dict[str, list[Block]] = {}
        files: dict[str, str] = {}
        complete = False
        for number, record in records:
            try:
                kind = record["kind"]
                if kind == "header":
                    run = self._header(record)
                elif kind == "cell":
                    found = result(record)
                    if run is None or found.cell.case not in run.experiment.cases:
                        raise ValueError("a cell that is no case of the study")
                    results[found.cell.id] = found
                elif kind == "calls":
                    results[record["cell"]] = replace(results[record["cell"]], calls=_integer(record["calls"]))
                elif kind == "skip":
                    results[record["cell"]] = replace(results[record["cell"]], skipped=str(record["reason"]))
                elif kind == "reading":
                    known = results[record["cell"]]
                    results[record["cell"]] = replace(known, readings=(*known.readings, _reading(record)))
                elif kind == "launch":
                    launch = _launch(record)
                    launches[launch.number] = launch
                elif kind in ("warmup", "null", "probe", "end", "breakdown", "exit"):
                    number_ = _integer(record["launch"])
                    launches[number_] = _extend(launches[number_], kind, record)
                elif kind == "block":
                    block = _block(record)
                    if block.cell not in results or block.launch not in launches:
                        raise ValueError("a block of an unknown cell or launch")
                    blocks.setdefault(block.cell, []).append(block)
                elif kind == "complete":
                    complete = True
                elif kind == "files":
                    files = {**_texts(record["files"]), **files}
                elif kind not in ("verdicts", "facts"):
                    raise ValueError(f"unknown kind of record '{kind}'")
                if "at_s" in record and "launch" in record:
                    used[record["launch"]] = max(used.get(record["launch"], 0.0), _seconds(record["at_s"]))
            except (
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
                ArithmeticError,
                RecursionError,
                InvalidValue,
            ) as error:
                what = f"missing {brief(error)}" if isinstance(error, KeyError) else brief(error)
                raise CorruptRun(f"{self.path}, line {number}: {what}; restore the file") from error
        assert run is not None
        return replace(
            run,
            results=tuple(replace(each, blocks=tuple(blocks.get(name, ()))) for name, each in results.items()),
            launches=tuple(replace(each, used_s=used.get(each.number)) for each in launches.values()),
            complete=complete,
            files=files,
        )

    def _header(self, record: Mapping[str, Any]) -> Run:
        return Run(
            experiment=experiment(record["experiment"]),
            environment=_make(Environment, record["environment"]),
            sampling=_make(Sampling, record["sampling"]),
            results=(),
            clock=_clock(record["clock"]),
            seed=_integer(record["seed"]),
            created=str(record["created"]),
            command=str(record["command"]),
            path=str(self.path),
        )


def _clock(name: Any) -> str:
    if name not in CLOCKS:
        raise ValueError(f"{str(name)[:40]!r} is none of the clocks {', '.join(CLOCKS)}")
    return str(name)


def _integer(value: Any) -> int:
    if not _fits(value, int):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return int(value)


def _seconds(value: Any) -> float:
    if not _fits(value, float) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no time that has passed")
    return float(value)


def _moment(value: Any) -> str:
    """A time in UTC, as it was written."""
    if not isinstance(value, str) or datetime.datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"{str(value)[:40]!r} is no time with its offset from UTC")
    return value


@cache
def _kinds(noun: Any) -> dict[str, Any]:
    return get_type_hints(noun)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


def _make(noun: Callable[..., _Noun], values: Mapping[str, Any]) -> _Noun:
    """The dataclass with these fields, each of its declared type: a file may hold anything."""
    kinds = _kinds(noun)
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"there is no field '{name[:40]}'")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name} cannot be {str(value)[:40]!r}")
    return noun(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON has the declared type; a whole number passes for a float, a truth value for
    neither.
    """
    origin, inner = _parts(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is not None:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if kind is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _case(values: Mapping[str, Any]) -> Case:
    inputs = tuple(_make(Input, {**item, "shape": tuple(item["shape"])}) for item in values.get("inputs", ()))
    return _make(Case, {**values, "input_shape": tuple(values["input_shape"]), "inputs": inputs})


def _claim(values: Mapping[str, Any]) -> Claim:
    pairs = tuple((slower, faster) for slower, faster in values["pairs"])
    slower, faster = values["headline"]
    if not all(_fits(level, Label) for pair in (*pairs, (slower, faster)) for level in pair):
        raise ValueError("a claim compares levels of its factor")
    return Claim(str(values["name"]), str(values["text"]), pairs, (slower, faster))


def experiment(values: Mapping[str, Any]) -> Experiment:
    """The study that was stored so. Raises KeyError, TypeError, ValueError, AttributeError, InvalidValue."""
    return _make(
        Experiment,
        {
            **values,
            "levels": tuple(values["levels"]),
            "cases": tuple(_case(case) for case in values["cases"]),
            "claims": tuple(_claim(claim) for claim in values["claims"]),
            "sampling": _make(Sampling, values["sampling"]),
            "notes": tuple(values["notes"]),
        },
    )


def result(record: Mapping[str, Any]) -> Result:
    """The cell that was stored so, with its cost. Raises as `experiment` does."""
    cell = _make(Cell, {**record["cell"], "case": _case(record["cell"]["case"])})
    if cell.batch < 1 or (1 if cell.case.batch is None else cell.case.batch) < 1:
        raise ValueError("a batch needs at least one image")
    cost = record["cost"]
    if cost is not None:
        levels = {name: _make(Traffic, traffic) for name, traffic in cost["memory_access_levels"].items()}
        if set(levels) != set(LEVELS):
            raise ValueError(f"memory access needs the levels {', '.join(LEVELS)}")
        cost = _make(Cost, {**cost, "memory_access_levels": levels})
    bounds = record.get("bounds_s")  # absent in runs of before there were any
    if bounds is not None and (set(bounds) != set(LEVELS) or min(bounds.values()) < 0):
        raise ValueError(f"bounds need the levels {', '.join(LEVELS)}, and no negative time")
    return _make(Result, {"cell": cell, "cost": cost, "skipped": record["skipped"], "bounds_s": bounds})


def _block(record: Mapping[str, Any]) -> Block:
    values = {"wall_ns": 0, **record["timing"]}
    timing = _make(Timing, {**values, "flags": tuple(values.get("flags", ()))})
    if timing.calls < 1 or min(timing.wall_ns, timing.cpu_ns or 0, timing.device_ns or 0, timing.process_ns or 0) < 0:
        raise ValueError("a block needs at least one call and no negative time")
    launch, number, position = (_integer(record[name]) for name in ("launch", "round", "position"))
    at_s = None if record.get("at_s") is None else _seconds(record["at_s"])
    return Block(launch, number, position, record["cell"], timing, at_s)


def _launch(record: Mapping[str, Any]) -> Launch:
    """Runs of before schema 3 say nothing of when a launch was and in which conditions."""
    number, slot = _integer(record["launch"]), _integer(record["slot"])
    changed = {str(name): (then, now) for name, (then, now) in record.get("changed", {}).items()}
    return Launch(
        number,
        slot,
        start=_moment(record["start"]) if "start" in record else "",
        at_start=_make(Conditions, record["conditions"]) if "conditions" in record else None,
        changed=changed,
    )


_PLACE = ("kind", "launch", "at_s")
"""What a record of a launch says beside what it is about."""


def _extend(launch: Launch, kind: str, record: Mapping[str, Any]) -> Launch:
    if kind == "warmup":
        warm = _make(Warmup, {key: value for key, value in record.items() if key not in _PLACE})
        return replace(launch, warmups={**launch.warmups, warm.cell: warm})
    if kind == "null":
        given, at = record.get("budget_s"), record.get("at_s")
        return replace(
            launch,
            null_call_ns=float(record["ns_per_call"]),
            budget_s=None if given is None else _seconds(given),
            overhead_s=None if at is None else _seconds(at),
        )
    if kind == "exit":
        return replace(launch, end=_moment(record["end"]), at_end=_make(Conditions, record["conditions"]))
    if kind == "probe":
        known = launch.probes.get(record["cell"], {})
        return replace(launch, probes={**launch.probes, record["cell"]: {**known, **probe(record["values"])}})
    if kind == "breakdown":
        return replace(launch, breakdowns={**launch.breakdowns, str(record["cell"]): _breakdown(record)})
    values = {"number": launch.number, "slot": launch.slot, "stopped": record["stopped"], "seconds": record["seconds"]}
    ended = _make(Launch, values)
    return replace(launch, stopped=ended.stopped, seconds=ended.seconds)


def _reading(record: Mapping[str, Any]) -> Reading:
    found = _make(Reading, {key: value for key, value in record.items() if key not in ("kind", "cell")})
    if not re.fullmatch(r"[A-Za-z][\w-]{0,99}", found.what):  # it may be one of a package that is not installed here
        raise ValueError(f"{found.what[:40]!r} is no name of a metric")
    return found


_PROBED: Mapping[str, Any] = {
    "bound": str | None,
    "output": str | None,
    "switches": str | None,
    "notes": str | None,
    "garbage": str | None,
    "pieces": int | None,
    "operators": int | None,
    "outside": Mapping[str, int] | None,
    "threads": int | None,
    "artefact_bytes": int | None,
    "peak_memory_bytes": int | None,
    "prepare_s": float | None,
    "load_s": float | None,
    "output_error": float | None,
    "output_tolerance": float | None,
}
"""The kinds of what is shown or computed with; whatever else a runtime says of a network is only kept."""


def probe(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was read once of a cell. Raises ValueError and AttributeError where that makes no sense."""
    for name, kind in _PROBED.items():
        if not _fits(values.get(name), kind):
            raise ValueError(f"{name} cannot be {str(values[name])[:40]!r}")
    return dict(values)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError("a file is told by a text")
    return dict(values)


def _breakdown(record: Mapping[str, Any]) -> Breakdown:
    values = {key: value for key, value in record.items() if key not in (*_PLACE, "cell")}
    operators = tuple(_make(OperatorTime, item) for item in values.pop("operators", ()))
    found = _make(Breakdown, {**values, "operators": operators})
    if found.missing is None and (
        min(found.calls, found.watched_s, found.alone_s) <= 0 or any(item.seconds < 0 for item in operators)
    ):
        raise ValueError("a breakdown needs calls that took some time, and no negative time")
    return found
