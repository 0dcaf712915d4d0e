"""A run on disk: an append-only file of JSON lines, readable whatever happened to the process that wrote it.

``run.jsonl`` holds one record a line: a header, then cells, launches, blocks, and verdicts last. Each record reaches the kernel
before the next block starts, so killing the process loses at most the block in flight. Loading parses JSON and builds dataclasses; it never
executes anything. Only raw blocks are stored: every figure is recomputed from them.

Schema history
    1   2026-11: first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from effbench.core import (
    Block,
    Case,
    Cell,
    Claim,
    Cost,
    Environment,
    Experiment,
    Launch,
    Result,
    Run,
    Sampling,
    Timing,
    Traffic,
    Verdict,
    Warmup,
)
from effbench.errors import CorruptRun, StorageError

SCHEMA = 1
RUN_FILE = "run.jsonl"
RUNS = Path("results") / "runs"
_LOCK_FILE = ".lock"


class RunWriter:
    """Appends records to one run folder, which it holds locked. Use as a context manager."""

    def __init__(self, directory: Path, *, resume: bool = False) -> None:
        self.directory = directory
        self.path = directory / RUN_FILE
        self._descriptor = -1
        self._prepare(resume)

    def _prepare(self, resume: bool) -> None:
        if resume and not self.path.exists():
            raise StorageError(f"there is no run to resume in {self.directory}: it has no {RUN_FILE}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.directory / _LOCK_FILE)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StorageError(f"another run is writing to {self.directory}; give this one its own --out") from None
        except OSError as error:
            raise StorageError(f"cannot write to {self.directory}: {error.strerror or error}") from error
        try:
            if self.path.exists() and self.path.stat().st_size and not resume:
                raise StorageError(f"{self.directory} already holds a run; finish it with --resume or choose another --out")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, _whole_lines(self.path))
        except OSError as error:
            self.close()
            raise StorageError(f"cannot write to {self.directory}: {error.strerror or error}") from error
        except StorageError:
            self.close()
            raise

    def append(self, kind: str, **values: Any) -> None:
        """Write one record. Raises StorageError on a full disk, leaving the file as it was before."""
        line = json.dumps({"kind": kind, **values}, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}") from error

    def header(self, run: Run, version: str) -> None:
        """The first record: everything about the run but what is measured."""
        self.append(
            "header",
            schema=SCHEMA,
            effbench=version,
            created=run.created,
            command=run.command,
            seed=run.seed,
            clock=run.clock,
            experiment=asdict(run.experiment),
            environment=asdict(run.environment),
            sampling=asdict(run.sampling),
        )

    def cell(self, result: Result) -> None:
        cost = None if result.cost is None else _cost_record(result.cost)
        self.append("cell", cell=asdict(result.cell), cost=cost, skipped=result.skipped)

    def block(self, block: Block) -> None:
        """Fields at their default are left out: a run is mostly blocks."""
        timing = {
            field.name: value
            for field in fields(Timing)
            if (value := getattr(block.timing, field.name)) not in (None, 0, {}, ())
        }
        self.append(
            "block", launch=block.launch, round=block.round, position=block.position, cell=block.cell, timing=timing
        )

    def verdicts(self, verdicts: tuple[Verdict, ...]) -> None:
        """What was concluded when the run ended. Kept for the record; loading recomputes verdicts from blocks."""
        self.append("verdicts", verdicts=[asdict(verdict) for verdict in verdicts])

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _whole_lines(path: Path) -> int:
    """Size of the file up to the end of its last whole line: what a kill in mid-write left behind is cut off."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def _cost_record(cost: Cost) -> dict[str, Any]:
    return asdict(cost)


# --- reading ----------------------------------------------------------------------------------------


def find(reference: str | Path) -> Path:
    """The run file for a folder or a file. Raises StorageError."""
    path = Path(reference)
    if path.is_dir():
        path = path / RUN_FILE
    if not path.is_file():
        raise StorageError(f"there is no run at {reference}: expected a folder that holds {RUN_FILE}, or such a file")
    return path


def load(reference: str | Path) -> Run:
    """The run stored in a folder or file. Raises StorageError, CorruptRun."""
    path = find(reference)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    records = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("not a record")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # the writer was stopped in the middle of this line
            raise CorruptRun(f"{path}, line {number}: not a run record ({_brief(error)}); restore the file") from error
        records.append((number, record))
    return _Builder(path).build(records)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a measurement")


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


class _Builder:
    """Turns records into a `Run`, naming the line of whatever does not fit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def build(self, records: list[tuple[int, dict[str, Any]]]) -> Run:
        if not records or records[0][1]["kind"] != "header":
            raise CorruptRun(f"{self.path}: no header in the first line, so this is not an effbench run")
        schema = records[0][1].get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise CorruptRun(
                f"{self.path} was written with schema {schema}, and this effbench reads up to {SCHEMA}; upgrade effbench"
            )
        run: Run | None = None
        results: dict[str, Result] = {}
        launches: dict[int, Launch] = {}
        blocks: dict[str, list[Block]] = {}
        complete = False
        for number, record in records:
            try:
                kind = record["kind"]
                if kind == "header":
                    run = self._header(record)
                elif kind == "cell":
                    result = _result(record)
                    results[result.cell.id] = result
                elif kind == "calls":
                    results[record["cell"]] = replace(results[record["cell"]], calls=_integer(record["calls"]))
                elif kind == "skip":
                    results[record["cell"]] = replace(results[record["cell"]], skipped=str(record["reason"]))
                elif kind == "launch":
                    launch = Launch(_integer(record["launch"]), _integer(record["slot"]))
                    launches[launch.number] = launch
                elif kind in ("warmup", "null", "probe", "end"):
                    number_ = _integer(record["launch"])
                    launches[number_] = _extend(launches[number_], kind, record)
                elif kind == "block":
                    block = _block(record)
                    if block.cell not in results or block.launch not in launches:
                        raise ValueError("a block of an unknown cell or launch")
                    blocks.setdefault(block.cell, []).append(block)
                elif kind == "complete":
                    complete = True
                elif kind not in ("verdicts", "facts"):
                    raise ValueError(f"unknown kind of record '{kind}'")
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
                what = f"missing {error}" if isinstance(error, KeyError) else _brief(error)
                raise CorruptRun(f"{self.path}, line {number}: {what}; restore the file") from error
        assert run is not None
        return replace(
            run,
            results=tuple(replace(result, blocks=tuple(blocks.get(name, ()))) for name, result in results.items()),
            launches=tuple(launches.values()),
            complete=complete,
        )

    def _header(self, record: Mapping[str, Any]) -> Run:
        return Run(
            experiment=_experiment(record["experiment"]),
            environment=Environment(**record["environment"]),
            sampling=Sampling(**record["sampling"]),
            results=(),
            clock=str(record["clock"]),
            seed=_integer(record["seed"]),
            created=str(record["created"]),
            command=str(record["command"]),
            path=str(self.path),
        )


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _case(values: Mapping[str, Any]) -> Case:
    return Case(**{**values, "input_shape": tuple(_integer(size) for size in values["input_shape"])})


def _experiment(values: Mapping[str, Any]) -> Experiment:
    pairs = [
        Claim(**{**claim, "pairs": tuple((slower, faster) for slower, faster in claim["pairs"]), "headline": tuple(claim["headline"])})
        for claim in values["claims"]
    ]
    return Experiment(
        **{
            **values,
            "levels": tuple(values["levels"]),
            "cases": tuple(_case(case) for case in values["cases"]),
            "claims": tuple(pairs),
            "sampling": Sampling(**values["sampling"]),
            "notes": tuple(values["notes"]),
        }
    )


def _result(record: Mapping[str, Any]) -> Result:
    cell = Cell(**{**record["cell"], "case": _case(record["cell"]["case"])})
    cost = record["cost"]
    if cost is not None:
        levels = {name: Traffic(**traffic) for name, traffic in cost["memory_access_levels"].items()}
        cost = Cost(**{**cost, "memory_access_levels": levels})
    return Result(cell, cost, skipped=record["skipped"])


def _block(record: Mapping[str, Any]) -> Block:
    timing = dict(record["timing"])
    for name, value in timing.items():
        if name.endswith("_ns") or name in ("calls", "minor_faults", "switches"):
            _integer(value)
    timing = Timing(**{"wall_ns": 0, **timing, "flags": tuple(timing.get("flags", ()))})
    if timing.calls < 1 or timing.wall_ns < 0:
        raise ValueError("a block needs at least one call and no negative time")
    numbers = (_integer(record[name]) for name in ("launch", "round", "position"))
    return Block(*numbers, cell=record["cell"], timing=timing)


def _extend(launch: Launch, kind: str, record: Mapping[str, Any]) -> Launch:
    if kind == "warmup":
        warm = Warmup(record["cell"], _integer(record["calls"]), float(record["seconds"]), bool(record["steady"]))
        return replace(launch, warmups={**launch.warmups, warm.cell: warm})
    if kind == "null":
        return replace(launch, null_call_ns=float(record["ns_per_call"]))
    if kind == "probe":
        return replace(launch, probes={**launch.probes, record["cell"]: dict(record["values"])})
    seconds = float(record["seconds"])
    if not math.isfinite(seconds):
        raise ValueError("a launch must last a finite time")
    return replace(launch, stopped=str(record["stopped"]), seconds=seconds)
