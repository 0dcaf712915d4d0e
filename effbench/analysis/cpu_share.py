"""Does a cell's CPU clock see its work? CPU time as a share of wall time, in which a busy machine does not show. Pure.

One thread that computes by itself spends its wall time on the CPU: in every stored run of such networks the share is
1.00. Work in other threads and time spent waiting lower the share of the thread's clock. Threads that compute side by
side raise that of the process's. Outside of `LEAST` and `MOST` a ratio of CPU times is no ratio of wall times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effbench.analysis import stats
from effbench.core.run import Timing

LEAST = 0.9
"""Below this share of the wall time, the CPU clock misses what the cell does."""
MOST = 1.1
"""Above it, the CPU clock adds up threads that compute side by side."""

OTHER_THREADS = "its CPU time misses work in other threads"
WAITS = "its CPU time misses time spent waiting, or work in another process"
EITHER = "its CPU time misses work in other threads, or time spent waiting"
SIDE_BY_SIDE = "its CPU time adds up threads that compute side by side"


@dataclass(frozen=True)
class CpuShare:
    """CPU time over wall time of one cell, without the wall time that its thread waited for a core.

    `share` is of the clock that the run takes, the thread's or the process's; `process` of all threads of the process,
    None in runs that did not record it. Each is the median over launches of the launch's median block.
    """

    share: float
    process: float | None = None

    @property
    def is_usual(self) -> bool:
        """Whether CPU time and wall time tell the same."""
        return is_usual(self.share)

    @property
    def flag(self) -> str:
        """What the CPU clock misses, in words that hold for every cell of the kind; "" where it misses nothing.

        At least half of the missing time must have been spent by other threads for them to be named.
        """
        if self.is_usual:
            return ""
        if self.share > MOST:
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
    """Whether a share of CPU time in wall time is that of one thread that computes by itself."""
    return LEAST <= share <= MOST


def of_block(timing: Timing) -> float | None:
    """The share of one block; None where a clock read nothing.

    The thread's wait for a core and stolen time count as far as they explain a difference and no further: the kernel
    counts stolen time of all cores, in steps of 10 ms.
    """
    return _over_active(timing.cpu_ns, timing)


def of_launches(launches: Iterable[Sequence[Timing]]) -> CpuShare | None:
    """The share of a cell from the undisturbed blocks of each launch; None without one whose clocks read something."""
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
    """None also for a block during which the wall clock was set back: it is stored as one that took no time."""
    active = _active_ns(timing)
    return spent_ns / active if spent_ns and active > 0 else None


def _active_ns(timing: Timing) -> int:
    """Wall time less what the thread is known to have waited for a core. Never below 1 for a block that took time."""
    missing = max(timing.wall_ns - (timing.cpu_ns or 0), 0)
    explained = min(missing, timing.run_delay_ns + timing.steal_ns)
    return max(timing.wall_ns - explained, min(timing.wall_ns, 1))
