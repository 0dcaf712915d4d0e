"""Check that CPU time captures a cell's work: its share of wall time, corrected for time waiting for a core. Pure.

A thread that computes by itself is on the CPU all the time: in every stored run of such networks the share is 1.00.
Work in other threads and waiting lower the share of the thread's CPU time. Threads that compute in parallel raise the
share of the process's CPU time. With a share outside of `MIN_USUAL` to `MAX_USUAL`, a ratio of CPU times is not one
of wall times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effbench.analysis import stats
from effbench.core.run import Timing

MIN_USUAL = 0.9
"""Below this share of the wall time, CPU time misses part of the cell's work."""
MAX_USUAL = 1.1
"""Above this share, CPU time is the sum over threads that compute in parallel."""

OTHER_THREADS = "its CPU time misses work in other threads"
WAITS = "its CPU time misses time spent waiting, or work in another process"
EITHER = "its CPU time misses work in other threads, or time spent waiting"
SIDE_BY_SIDE = "its CPU time adds up threads that compute side by side"


@dataclass(frozen=True)
class CpuShare:
    """CPU time over wall time of one cell, where wall time excludes the time that its thread waited for a core.

    Medians over launches of the launch's median block. 1 for a thread that computes by itself.

    Attributes
    ----------
    share
        CPU time of the run's clock, of the thread or of the process, over wall time.
    process
        CPU time of all threads of the process over wall time; None in runs that did not record it.
    """

    share: float
    process: float | None = None

    @property
    def is_usual(self) -> bool:
        """Whether CPU time and wall time agree."""
        return is_usual(self.share)

    @property
    def flag(self) -> str:
        """What CPU time misses, as a flag without figures; "" where it misses nothing.

        Other threads are named only if they account for at least half of the missing time.
        """
        if self.is_usual:
            return ""
        if self.share > MAX_USUAL:
            return SIDE_BY_SIDE
        if self.process is None:
            return EITHER
        return OTHER_THREADS if 2 * (self.process - self.share) >= 1 - self.share else WAITS

    @property
    def amount(self) -> str:
        """``CPU time is 2 % of wall time``."""
        percent = 100 * self.share
        return f"CPU time is {'below 1' if percent < 1 else f'{percent:.0f}'} % of wall time"


def is_usual(share: float) -> bool:
    """Return whether this share of CPU time in wall time is that of one thread that computes by itself."""
    return MIN_USUAL <= share <= MAX_USUAL


def of_block(timing: Timing) -> float | None:
    """Return the share of one block; None where one of the clocks has no reading.

    The thread's wait for a core and steal time are subtracted from wall time, but no more than the difference between
    wall and CPU time: the kernel counts steal time over all cores and in steps of 10 ms.
    """
    return _over_active(timing.cpu_ns, timing)


def of_launches(launches: Iterable[Sequence[Timing]]) -> CpuShare | None:
    """Return the share of a cell from the undisturbed blocks of each launch; None where no block has one."""
    shares, process = [], []
    for timings in launches:
        if found := [share for timing in timings if (share := of_block(timing)) is not None]:
            shares.append(stats.median(found))
        if every := [share for timing in timings if (share := _of_process(timing)) is not None]:
            process.append(stats.median(every))
    if not shares:
        return None
    return CpuShare(stats.median(shares), stats.median(process) if len(process) == len(shares) else None)


def _of_process(timing: Timing) -> float | None:
    return _over_active(timing.process_ns, timing)


def _over_active(spent_ns: int | None, timing: Timing) -> float | None:
    """Return CPU time over active wall time. None also if the wall clock was set back during the block, which is stored
    as zero wall time.
    """
    active = _active_ns(timing)
    return spent_ns / active if spent_ns and active > 0 else None


def _active_ns(timing: Timing) -> int:
    """Return wall time minus the time that the thread is known to have waited for a core; at least 1 ns for a block
    with any wall time.
    """
    missing = max(timing.wall_ns - (timing.cpu_ns or 0), 0)
    explained = min(missing, timing.run_delay_ns + timing.steal_ns)
    return max(timing.wall_ns - explained, min(timing.wall_ns, 1))
