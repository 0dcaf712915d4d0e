"""The folder of a machine in a fleet: the runs that it has measured, and the bundles that it was sent.

A run's folder here is the truth. Copies elsewhere are prefixes of it.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from effbench.core.errors import InvalidValue, StorageError
from effbench.core.run import Run
from effbench.fleet.orders import Order
from effbench.runs import run_file, schedule

PULL_BYTES = 8 << 20
"""Most bytes of one answer."""


def default_folder() -> Path:
    """Return the folder of this user's machine."""
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home) / "effbench" / "fleet"


@dataclass(frozen=True)
class Standing:
    """How far a run on its machine is.

    Attributes
    ----------
    size
        Bytes of its file that a copy may have: whole lines, and none before its cells are written.
    launches_done, launches
        Launches that have ended, and those planned.
    complete
        Whether nothing is left to measure.
    wait_s
        Seconds until the next launch of a run that is spread; 0 if it may begin.
    """

    size: int = 0
    launches_done: int = 0
    launches: int = 0
    complete: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True)
class MachineFolder:
    """Find and read the runs and bundles in `path`."""

    path: Path

    def run(self, order: Order) -> Path:
        """Return the folder of the run. It need not exist."""
        return self.path / "runs" / order.run

    def bundle(self, digest: str) -> Path:
        """Return the folder of the bundle with this SHA-256. It need not exist. Raises InvalidValue."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InvalidValue(f"{digest[:70]!r} is no SHA-256 of a bundle")
        return self.path / "bundles" / digest

    def standing(self, order: Order, run: Run | None = None) -> Standing:
        """Return how far the run is. `run` is what its file holds, if it is loaded. Raises CorruptRun, StorageError."""
        path = self.run(order) / run_file.RUN_FILE
        if not path.exists() or not (size := whole_lines(path)):
            return Standing()
        run = run or run_file.load(path)
        return standing_of(run, size) if is_begun(run) else Standing(launches=run.sampling.launches)

    def has_prefix(self, order: Order, size: int, sha256: str) -> bool:
        """Whether the first `size` bytes of the run's file have this SHA-256: a copy of them can then be added to."""
        if not size:
            return True
        digest, left = hashlib.sha256(), size
        with suppress(OSError), (self.run(order) / run_file.RUN_FILE).open("rb") as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        return not left and digest.hexdigest() == sha256

    def growth(self, order: Order, offset: int, most: int = PULL_BYTES) -> bytes:
        """Return whole lines of the run's file from a byte on, at most `most` bytes but at least one line.

        They are on the disk before they are returned, so that a power cut cannot take back what a copy has. Raises
        StorageError.
        """
        path = self.run(order) / run_file.RUN_FILE
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                file.seek(offset)
                data = file.read(most)
                while data and b"\n" not in data and (more := file.read(most)):
                    data += more
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        return data[: data.rfind(b"\n") + 1]


def is_begun(run: Run) -> bool:
    """Whether a run file is past its header, so that the run can go on."""
    return len(run.results) == len(run.experiment.cases) and bool(run.launches)


def standing_of(run: Run, size: int) -> Standing:
    """Return how far a loaded run is."""
    done = len(schedule.finished_slots(run))
    wait_s, planned = 0.0, schedule.next_launch_at(run)
    if planned is not None:
        wait_s = (
            datetime.datetime.fromisoformat(planned) - datetime.datetime.now(datetime.timezone.utc)
        ).total_seconds()
    return Standing(size, done, run.sampling.launches, run.complete, max(0.0, wait_s))


def whole_lines(path: Path) -> int:
    """Return the size of a file without an incomplete last line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
