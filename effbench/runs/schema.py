"""Decode the records of a run file into a `Run`, and check the type of every value.

Schema history
    1   2026-11: first.
    2   2026-11: memory format and mode of a cell, batch of a case, metrics beside the rounds.
    3   2026-11: time since the launch began in its records (`at_s`); start, end, conditions and budget of launches;
        CPU time of the whole process beside that of the thread (`process_ns`).
    4   2026-11: blocks of the yardstick; scatter between sittings; time that a run is spread over; when it ends
        (`until`), and why it ended early (`stop`).
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from effbench.core import decoding
from effbench.core.cost import LEVELS, Cost
from effbench.core.errors import CorruptRun, InvalidValue, first_line
from effbench.core.operator_times import Breakdown
from effbench.core.run import CLOCKS, Block, Conditions, Environment, Launch, Metric, Result, Run, Stop, Timing, Warmup
from effbench.core.sittings import BetweenSittings
from effbench.core.study import Cell, Experiment, Sampling

SCHEMA = 4

METRIC_RECORD, METRICS_FACT = "reading", "run.readings"
"""The kind of a metric's record, and the fact that lists a run's metrics.

Metrics were called readings until 0.4.0. Stored files have these names, so they stay.
"""

FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, InvalidValue)
"""Exceptions that decoding a record with wrong content may raise."""

T = TypeVar("T")


def build(path: Path, records: Sequence[tuple[int, dict[str, Any]]]) -> Run:
    """Build the run from its records, each with its line number. Raises CorruptRun that names the faulty line."""
    if not records:
        raise CorruptRun(f"{path} is empty: the run was stopped before anything was measured; begin it again")
    if records[0][1]["kind"] != "header":
        raise CorruptRun(f"{path}: no header in the first line, so this is not an effbench run")
    if (newer := newer_schema_message(records[0][1].get("schema"), SCHEMA)) is None:
        raise CorruptRun(f"{path}: the header has no schema number, so this is not an effbench run")
    if newer:
        raise CorruptRun(f"{path} {newer}")
    builder = _Builder()
    for number, record in records:
        try:
            builder.add(_Record(record))
        except FAULTS as error:
            raise CorruptRun(f"{path}, line {number}: {describe_error(error)}; restore the file") from error
    return replace(builder.run(), path=str(path))


def newer_schema_message(schema: Any, known: int) -> str | None:
    """Return the end of an error message if `schema` is newer than `known`, else ""; None if it is no number."""
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        return None
    said = f"was written with schema {str(schema)[:9]}, and this effbench reads up to {known}; upgrade effbench"
    return said if schema > known else ""


def describe_error(error: BaseException) -> str:
    """Return a short description of an error in a file."""
    said = first_line(error, 120)
    return f"missing {said}" if isinstance(error, KeyError) else said


def require_possible_values(cell: Cell, cost: Cost | None) -> None:
    """Raise ValueError for a cell or a cost with impossible values."""
    if cell.batch < 1 or (1 if cell.case.batch is None else cell.case.batch) < 1:
        raise ValueError("a batch needs at least one image")
    if cost is not None and set(cost.memory_access_levels) != set(LEVELS):
        raise ValueError(f"memory access needs the levels {', '.join(LEVELS)}")


@dataclass(frozen=True)
class _Probed:
    """The values of a probe whose types are checked, since reports use them. Other values are kept unchecked."""

    bound: str | None = None
    output: str | None = None
    switches: str | None = None
    notes: str | None = None
    garbage: str | None = None
    pieces: int | None = None
    operators: int | None = None
    outside: Mapping[str, int] | None = None
    threads: int | None = None
    artefact_bytes: int | None = None
    peak_memory_bytes: int | None = None
    prepare_s: float | None = None
    load_s: float | None = None
    output_error: float | None = None
    output_tolerance: float | None = None


def check_probe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check and copy the values of a probe, which are read once a cell. Raises ValueError for a wrong type."""
    decoding.decode(values, _Probed, closed=False)
    return dict(values)


class _Record:
    """One record of the file. Values are read by name and their types checked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, kind: type[T]) -> T:
        """Return the value of this name. Raises KeyError if it is missing, ValueError if it has another type."""
        return decoding.decode(self.values[name], kind, at=name)

    def get_optional(self, name: str, kind: type[T]) -> T | None:
        return None if self.values.get(name) is None else self.get(name, kind)

    def get_seconds(self, name: str) -> float | None:
        """Return a duration in seconds, None if it is absent. Raises ValueError if it is negative."""
        found = self.get_optional(name, float)
        if found is not None and found < 0:
            raise ValueError(f"{name}: {found:g} s is a negative duration")
        return found

    def get_time(self, name: str) -> str:
        """Return a UTC time as text (ISO 8601). Raises ValueError for other text."""
        found = self.get(name, str)
        if datetime.datetime.fromisoformat(found).tzinfo is None:
            raise ValueError(f"{name}: {found[:40]!r} is no ISO 8601 time with a UTC offset")
        return found

    def decode_rest(self, kind: type[T], *names: str) -> T:
        """Decode all values except `names`, the record's kind, its launch and its time into a `kind`."""
        taken = ("kind", "launch", "at_s", *names)
        return decoding.decode({key: value for key, value in self.values.items() if key not in taken}, kind)


class _Builder:
    """Collect the records of one file; `run` builds the run."""

    def __init__(self) -> None:
        self.header: Run | None = None
        self.results: dict[str, Result] = {}
        self.launches: dict[int, Launch] = {}
        self.used: dict[int, float] = {}
        self.blocks: dict[str, list[Block]] = {}
        self.files: dict[str, str] = {}
        self.complete, self.disturbance = False, ""
        self.between_sittings: BetweenSittings | None = None
        self.stop: Stop | None = None

    def add(self, record: _Record) -> None:
        kind = record.values["kind"]
        if kind == "header":
            self.header = _decode_header(record)
        elif kind == "cell":
            found = _decode_result(record)
            if self.header is None or found.cell.case not in self.header.experiment.cases:
                raise ValueError("the cell is not a case of the study")
            self.results[found.cell.id] = found
        elif kind in ("calls", "skip", METRIC_RECORD):
            cell = record.get("cell", str)
            self.results[cell] = _extend_result(self.results[cell], kind, record)
        elif kind == "launch":
            launch = _decode_launch(record)
            self.launches[launch.number] = launch
            self.disturbance = ""  # the run went on
        elif kind in ("warmup", "null", "probe", "end", "breakdown", "exit", "yardstick"):
            number = record.get("launch", int)
            self.launches[number] = _extend_launch(self.launches[number], kind, record)
        elif kind == "block":
            block = _decode_block(record)
            if block.cell not in self.results or block.launch not in self.launches:
                raise ValueError("a block of an unknown cell or launch")
            self.blocks.setdefault(block.cell, []).append(block)
        elif kind == "between_sittings":
            self.between_sittings = _decode_scatter(record)
        elif kind == "stop":
            self.stop = record.decode_rest(Stop)
        elif kind == "complete":
            self.complete, self.disturbance = True, ""  # nothing was left to do
        elif kind == "disturbance":
            self.disturbance = record.get("reason", str)
        elif kind == "files":
            self.files = {**record.get("files", dict[str, str]), **self.files}
        # Written until 0.4.0. Verdicts follow from the blocks, and the header holds the facts.
        elif kind not in ("verdicts", "facts"):
            raise ValueError(f"unknown kind of record '{kind}'")
        used = record.get_seconds("at_s") if "launch" in record else None
        if used is not None:
            number = record.get("launch", int)
            self.used[number] = max(self.used.get(number, 0.0), used)

    def run(self) -> Run:
        assert self.header is not None
        return replace(
            self.header,
            results=tuple(
                replace(each, blocks=tuple(self.blocks.get(name, ()))) for name, each in self.results.items()
            ),
            launches=tuple(replace(each, used_s=self.used.get(each.number)) for each in self.launches.values()),
            complete=self.complete,
            disturbance=self.disturbance,
            files=self.files,
            between_sittings=self.between_sittings,
            stop=self.stop,
        )


def _decode_scatter(record: _Record) -> BetweenSittings:
    found = record.decode_rest(BetweenSittings)
    every = [found.ratio, found.time, *(each for cell in found.cells.values() for each in cell.values())]
    if any(not (0 <= each.tau < math.inf and each.freedom > 0) for each in every):
        raise ValueError("a scatter needs a standard deviation of 0 or more, and some degrees of freedom")
    return found


def _decode_header(record: _Record) -> Run:
    clock = record.get("clock", str)
    if clock not in CLOCKS:
        raise ValueError(f"{clock[:40]!r} is none of the clocks {', '.join(CLOCKS)}")
    return Run(
        experiment=record.get("experiment", Experiment),
        environment=record.get("environment", Environment),
        sampling=record.get("sampling", Sampling),
        results=(),
        clock=clock,
        seed=record.get("seed", int),
        created=record.get("created", str),
        command=record.get("command", str),
    )


def _decode_result(record: _Record) -> Result:
    cell, cost = record.get("cell", Cell), record.get_optional("cost", Cost)
    require_possible_values(cell, cost)
    bounds = record.get_optional("bounds_s", dict[str, float])  # absent in older runs
    if bounds is not None and (set(bounds) != set(LEVELS) or min(bounds.values()) < 0):
        raise ValueError(f"bounds need the levels {', '.join(LEVELS)}, and no negative time")
    return Result(cell, cost, skipped=record.get_optional("skipped", str), bounds_s=bounds)


def _extend_result(result: Result, kind: str, record: _Record) -> Result:
    """Return the result with what this record adds."""
    if kind == "calls":
        return replace(result, calls=record.get("calls", int))
    if kind == "skip":
        return replace(result, skipped=record.get("reason", str))
    found = record.decode_rest(Metric, "cell")
    # The metric may come from a plug-in that is not installed here.
    if not re.fullmatch(r"[A-Za-z][\w-]{0,99}", found.what):
        raise ValueError(f"{found.what[:40]!r} is no name of a metric")
    return replace(result, metrics=(*result.metrics, found))


def _decode_block(record: _Record) -> Block:
    # A wall time of 0 is not stored.
    timing = decoding.decode({"wall_ns": 0, **record.get("timing", dict[str, Any])}, Timing, at="timing")
    times = (timing.wall_ns, timing.cpu_ns, timing.device_ns, timing.process_ns)
    if timing.calls < 1 or min(time or 0 for time in times) < 0:
        raise ValueError("a block needs at least one call and no negative time")
    launch, number, position = (record.get(name, int) for name in ("launch", "round", "position"))
    return Block(launch, number, position, record.get("cell", str), timing, record.get_seconds("at_s"))


def _decode_launch(record: _Record) -> Launch:
    """Build a launch. Before schema 3, runs did not record its time and conditions."""
    return Launch(
        record.get("launch", int),
        record.get("slot", int),
        start=record.get_time("start") if "start" in record else "",
        at_start=record.get_optional("conditions", Conditions),
        changed=record.get_optional("changed", dict[str, tuple[Any, Any]]) or {},
    )


def _extend_launch(launch: Launch, kind: str, record: _Record) -> Launch:
    """Return the launch with what this record adds."""
    if kind == "warmup":
        warm = record.decode_rest(Warmup)
        return replace(launch, warmups={**launch.warmups, warm.cell: warm})
    if kind == "null":
        empty_ns, budget_s = record.get("ns_per_call", float), record.get_seconds("budget_s")
        return replace(launch, null_call_ns=empty_ns, budget_s=budget_s, overhead_s=record.get_seconds("at_s"))
    if kind == "exit":
        return replace(launch, end=record.get_time("end"), at_end=record.get("conditions", Conditions))
    if kind == "end":
        return replace(launch, stopped=record.get("stopped", str), seconds=record.get("seconds", float))
    if kind == "yardstick":
        blocks = record.get("blocks", dict[str, tuple[Timing, ...]])
        if any(timing.calls < 1 for timings in blocks.values() for timing in timings):
            raise ValueError("a block needs at least one call")
        return replace(launch, yardstick=blocks)
    cell = record.get("cell", str)
    if kind == "probe":
        known = {**launch.probes.get(cell, {}), **check_probe(record.get("values", dict[str, Any]))}
        return replace(launch, probes={**launch.probes, cell: known})
    found = record.decode_rest(Breakdown, "cell")
    if found.missing is None and (
        min(found.calls, found.watched_s, found.alone_s) <= 0 or any(item.seconds < 0 for item in found.operators)
    ):
        raise ValueError("a breakdown needs calls that took some time, and no negative time")
    return replace(launch, breakdowns={**launch.breakdowns, cell: found})
