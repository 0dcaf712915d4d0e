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
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout

from effbench.core import (
    CLOCKS,
    LEVELS,
    Block,
    Case,
    Cell,
    Claim,
    Cost,
    Environment,
    Experiment,
    Label,
    Launch,
    Result,
    Run,
    Sampling,
    Timing,
    Traffic,
    Verdict,
    Warmup,
)
from effbench.errors import CorruptRun, InvalidValue, StorageError

SCHEMA = 1
RUN_FILE = "run.jsonl"
RUNS = Path("results") / "runs"
_LOCK_FILE = ".lock"
_Noun = TypeVar("_Noun")


class RunWriter:
    """Appends records to one run folder, which it holds locked. Use as a context manager."""

    def __init__(self, directory: Path, *, resume: bool = False) -> None:
        self.directory = directory
        self.path = directory / RUN_FILE
        self._descriptor = -1
        self._is_ours = not directory.exists()
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
            raise StorageError(
                f"cannot write to {self.directory}: {error.strerror or error}; choose another --out"
            ) from error
        try:
            if self.path.exists() and self.path.stat().st_size and not resume:
                raise StorageError(f"{self.directory} already holds a run; finish it with --resume or choose another --out")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, _whole_lines(self.path))
        except OSError as error:
            self.close()
            raise StorageError(
                f"cannot write to {self.directory}: {error.strerror or error}; choose another --out"
            ) from error
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
        cost = None if result.cost is None else asdict(result.cost)
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
        """Release the folder. One in which nothing was written is left as it was found."""
        is_empty = False
        if self._descriptor >= 0:
            is_empty = os.fstat(self._descriptor).st_size == 0
            os.close(self._descriptor)
            self._descriptor = -1
        with contextlib.suppress(OSError):
            if is_empty:
                self.path.unlink()
        self._lock.release()
        with contextlib.suppress(OSError):
            if is_empty and self._is_ours:
                (self.directory / _LOCK_FILE).unlink(missing_ok=True)
                self.directory.rmdir()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _whole_lines(path: Path) -> int:
    """Size of the file up to the end of its last whole line: what a kill in mid-write left behind is cut off."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


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
        if not records:
            raise CorruptRun(f"{self.path} is empty: the run was stopped before anything was measured; begin it again")
        if records[0][1]["kind"] != "header":
            raise CorruptRun(f"{self.path}: no header in the first line, so this is not an effbench run")
        schema = records[0][1].get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise CorruptRun(f"{self.path}: the header has no schema number, so this is not an effbench run")
        if schema > SCHEMA:
            raise CorruptRun(
                f"{self.path} was written with schema {str(schema)[:9]}, and this effbench reads up to {SCHEMA}; upgrade effbench"
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
                    if run is None or result.cell.case not in run.experiment.cases:
                        raise ValueError("a cell that is no case of the study")
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
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, InvalidValue) as error:
                what = f"missing {_brief(error)}" if isinstance(error, KeyError) else _brief(error)
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


@lru_cache(maxsize=None)
def _kinds(noun: Any) -> dict[str, Any]:
    return get_type_hints(noun)


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
    """Whether a value read from JSON has the declared type; a whole number passes for a float, a truth value for neither."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is not None:
        return isinstance(value, dict) and all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items())
    if kind is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _case(values: Mapping[str, Any]) -> Case:
    return _make(Case, {**values, "input_shape": tuple(values["input_shape"])})


def _claim(values: Mapping[str, Any]) -> Claim:
    pairs = tuple((slower, faster) for slower, faster in values["pairs"])
    slower, faster = values["headline"]
    if not all(_fits(level, Label) for pair in (*pairs, (slower, faster)) for level in pair):
        raise ValueError("a claim compares levels of its factor")
    return Claim(str(values["name"]), str(values["text"]), pairs, (slower, faster))


def _experiment(values: Mapping[str, Any]) -> Experiment:
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


def _result(record: Mapping[str, Any]) -> Result:
    cell = _make(Cell, {**record["cell"], "case": _case(record["cell"]["case"])})
    if cell.batch < 1:
        raise ValueError("a batch needs at least one image")
    cost = record["cost"]
    if cost is not None:
        levels = {name: _make(Traffic, traffic) for name, traffic in cost["memory_access_levels"].items()}
        if set(levels) != set(LEVELS):
            raise ValueError(f"memory access needs the levels {', '.join(LEVELS)}")
        cost = _make(Cost, {**cost, "memory_access_levels": levels})
    return _make(Result, {"cell": cell, "cost": cost, "skipped": record["skipped"]})


def _block(record: Mapping[str, Any]) -> Block:
    values = {"wall_ns": 0, **record["timing"]}
    timing = _make(Timing, {**values, "flags": tuple(values.get("flags", ()))})
    if timing.calls < 1 or min(timing.wall_ns, timing.cpu_ns or 0, timing.device_ns or 0) < 0:
        raise ValueError("a block needs at least one call and no negative time")
    launch, number, position = (_integer(record[name]) for name in ("launch", "round", "position"))
    return Block(launch, number, position, record["cell"], timing)


def _extend(launch: Launch, kind: str, record: Mapping[str, Any]) -> Launch:
    if kind == "warmup":
        warm = _make(Warmup, {key: value for key, value in record.items() if key not in ("kind", "launch")})
        return replace(launch, warmups={**launch.warmups, warm.cell: warm})
    if kind == "null":
        return replace(launch, null_call_ns=float(record["ns_per_call"]))
    if kind == "probe":
        return replace(launch, probes={**launch.probes, record["cell"]: dict(record["values"])})
    values = {"number": launch.number, "slot": launch.slot, "stopped": record["stopped"], "seconds": record["seconds"]}
    return replace(_make(Launch, values), warmups=launch.warmups, probes=launch.probes, null_call_ns=launch.null_call_ns)
