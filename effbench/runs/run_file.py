"""Write and read a run file: append-only JSON lines that stay readable if the writing process is killed.

``run.jsonl`` holds one record per line: a header, then cells, launches and blocks. Each record reaches
the kernel before the next block starts, so killing the process loses at most the block in flight. Loading parses JSON
and builds dataclasses; it never executes code. Only raw blocks are stored. All statistics are recomputed from them.

A launch begins with a ``launch`` record (its slot in the plan, UTC time, conditions of the machine) and ends with an
``exit`` record (UTC time, conditions since then). In records between them, ``at_s`` is the time of the budget that the
launch had used. A resumed run subtracts the largest, so a kill loses at most the time of the block in flight. ``files``
records (since schema 3) hold the SHA-256 of the models' source files; a launch that finds other files is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from effbench.core import decoding
from effbench.core.errors import CorruptRun, StorageError
from effbench.core.inputs import without_empty_values
from effbench.core.run import Block, Metric, Result, Run, Timing
from effbench.runs import schema

RUN_FILE = "run.jsonl"
RUNS = Path("results") / "runs"
FLEET_ORDERS = ".fleet"
"""Beside the copies of a fleet's runs: a folder with the order of each machine, ``NAME.json``."""
_LOCK_FILE = ".lock"


class RunWriter:
    """Append records to the run file of one folder and hold the folder's lock. Use as a context manager."""

    def __init__(self, directory: Path, *, resume: bool = False) -> None:
        self.directory = directory
        self.path = directory / RUN_FILE
        self._descriptor = -1
        self._is_ours = not os.path.exists(directory)
        self._prepare(resume)

    def _prepare(self, resume: bool) -> None:
        if resume and not os.path.exists(self.path):
            raise StorageError(f"there is no run to resume in {self.directory}: it has no {RUN_FILE}")
        refuse_link(self.path)
        refuse_link(self.directory / _LOCK_FILE)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.directory / _LOCK_FILE)
            self._lock.acquire(timeout=0)
        except Timeout:
            remedy = "wait until it has ended" if resume else "give this one its own --out"
            raise StorageError(f"another run is writing to {self.directory}; {remedy}") from None
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.directory}: {error.strerror or error}; choose another --out"
            ) from error
        try:
            if self.path.exists() and self.path.stat().st_size and not resume:
                raise StorageError(
                    f"{self.directory} already holds a run; finish it with --resume or choose another --out"
                )
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, _size_of_whole_lines(self.path))
        except OSError as error:
            self.close()
            raise StorageError(
                f"cannot write to {self.directory}: {error.strerror or error}; choose another --out"
            ) from error
        except BaseException:  # also Ctrl-C: `__exit__` is not called yet
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
        """Write the first record: the study, the environment and the sampling."""
        self.append(
            "header",
            schema=schema.SCHEMA,
            effbench=version,
            created=run.created,
            command=run.command,
            seed=run.seed,
            clock=run.clock,
            experiment=asdict(run.experiment, dict_factory=without_empty_values),
            environment=asdict(run.environment),
            sampling=asdict(run.sampling),
        )

    def cell(self, result: Result) -> None:
        cost = None if result.cost is None else asdict(result.cost)
        bounds = None if result.bounds_s is None else dict(result.bounds_s)
        cell = asdict(result.cell, dict_factory=without_empty_values)
        self.append("cell", cell=cell, cost=cost, skipped=result.skipped, bounds_s=bounds)

    def metric(self, cell: str, metric: Metric) -> None:
        self.append(schema.METRIC_RECORD, cell=cell, **asdict(metric))

    def block(self, block: Block) -> None:
        """Write a block without the fields at their default, since most of a file is blocks."""
        timing = {
            field.name: value
            for field in fields(Timing)
            if (value := getattr(block.timing, field.name)) not in (None, 0, {}, ())
        }
        at = {} if block.at_s is None else {"at_s": block.at_s}
        place = {"launch": block.launch, "round": block.round, "position": block.position, "cell": block.cell}
        self.append("block", **place, **at, timing=timing)

    def close(self) -> None:
        """Release the lock. If nothing was written, remove what was created."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_fleet_copy(directory: Path) -> bool:
    """Whether the run in this folder is a copy of one that a machine of a fleet holds."""
    place = directory.absolute()
    return (place.parent / FLEET_ORDERS / f"{place.name}.json").exists()


def refuse_link(path: Path) -> None:
    """Raise StorageError if `path`, a file to be written, is a symbolic link.

    In a folder from another source, a link could lead to any file of the user.
    """
    if os.path.islink(path):
        raise StorageError(f"cannot write {path}: it is a link to {os.readlink(path)}; name the file that is meant")


def _size_of_whole_lines(path: Path) -> int:
    """Return the size of the file without an incomplete last line, which a killed writer may leave."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


# --- reading ----------------------------------------------------------------------------------------


def find(reference: str | Path) -> Path:
    """Return the path of the run file for a folder or a file. Raises StorageError."""
    path = Path(reference)
    if os.path.isdir(path):
        path = path / RUN_FILE
    if not os.path.isfile(path):
        raise StorageError(f"there is no run at {reference}: expected a folder that holds {RUN_FILE}, or such a file")
    return path


def has_begun(folder: str | Path) -> bool:
    """Return whether the folder holds a run of which at least the header is stored. Raises StorageError."""
    path = Path(folder) / RUN_FILE
    try:
        return os.path.isfile(path) and _size_of_whole_lines(path) > 0
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def load(reference: str | Path) -> Run:
    """Load the run stored in a folder or file. Raises StorageError, CorruptRun."""
    path = find(reference)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return parse(path, data)


def parse(path: Path, data: bytes) -> Run:
    """Decode the run from the bytes of the file at `path`. Raises CorruptRun."""
    records = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = decoding.parse(line)
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("not a record")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # the writer was stopped in the middle of this line
            raise CorruptRun(
                f"{path}, line {number}: not a run record ({schema.describe_error(error)}); restore the file"
            ) from error
        records.append((number, record))
    return schema.build(path, records)
