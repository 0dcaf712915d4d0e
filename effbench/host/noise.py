"""Short measurements of this machine itself: what it does while we try to work, what its allocator and clock cost."""

from __future__ import annotations

import datetime
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from effbench.core.run import Conditions
from effbench.host import machine

CHURN = """
import ctypes, resource
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def layer():
    held = [c.malloc(819200) for _ in range(4)]
    for block in held:
        c.memset(block, 1, 819200)
    for block in held:
        c.free(block)
for _ in range(5):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    layer()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 200)
"""
"""Allocates, fills and frees what a small layer does (four tensors of 0.8 MB) and prints page faults per tensor."""


@dataclass(frozen=True)
class Sample:
    """What happened while this process kept one core busy for a moment. None is "could not be seen"."""

    stolen: float | None = None
    drift: float | None = None
    others: tuple[tuple[str, float], ...] | None = None


def watch(window_s: float) -> Sample:
    """Keep one core busy for a while and see what the machine does meanwhile: only a wish to run can be stolen from."""
    before, ticks = _process_times(), machine.cpu_ticks()
    costs: list[int] = []
    start = time.perf_counter()
    while time.perf_counter() - start < window_s:
        cpu = time.thread_time_ns()
        sum(range(20_000))
        costs.append(time.thread_time_ns() - cpu)
    elapsed = time.perf_counter() - start
    after, later = _process_times(), machine.cpu_ticks()
    stolen = None
    if ticks and later and later[1] > ticks[1]:
        stolen = (later[0] - ticks[0]) / (later[1] - ticks[1])
    return Sample(stolen, drift_of(costs), _busiest(before, after, elapsed))


def drift_of(costs: list[int]) -> float | None:
    """Slowest over fastest tenth of a series, less one, by medians; None for fewer than 50 values."""
    if len(costs) < 50:
        return None
    size = len(costs) // 10
    tenths = [statistics.median(costs[i * size : (i + 1) * size]) for i in range(10)]
    return max(tenths) / min(tenths) - 1 if min(tenths) > 0 else None


def _process_times() -> dict[int, tuple[str, float]] | None:
    """CPU seconds of the other processes with their names; None where they cannot be seen."""
    found = {}
    try:
        psutil = importlib.import_module("psutil")
        for process in psutil.process_iter(["pid", "name", "cpu_times"]):
            times = process.info["cpu_times"]
            if times is not None and process.info["pid"] != os.getpid():
                found[process.info["pid"]] = (str(process.info["name"]), times.user + times.system)
    except Exception:  # not installed, or no /proc; which errors it raises then differs by version and system
        return None
    # Under hidepid only a user's own processes are listed, of whom this is one; without /proc, none at all.
    return found or None


def _busiest(
    before: dict[int, tuple[str, float]] | None, after: dict[int, tuple[str, float]] | None, elapsed: float
) -> tuple[tuple[str, float], ...] | None:
    """Names with their share of one core, busiest first."""
    if before is None or after is None or elapsed <= 0:
        return None
    shares = [(name, (spent - before[pid][1]) / elapsed) for pid, (name, spent) in after.items() if pid in before]
    return tuple(sorted(shares, key=lambda item: -item[1])[:5])


# --- during a launch --------------------------------------------------------------------------------


def conditions_now(root: Path = machine.HERE) -> Conditions:
    """The state of the machine at this moment. Reads a few small files, which takes well under a millisecond each."""
    return Conditions(
        load_1m=machine.load_average(root),
        temperature_c=machine.cpu_temperature(root),
        cpu_mhz=machine.cpu_mhz(root),
        uptime_s=machine.uptime_s(root),
    )


def utc_now() -> str:
    """The time in UTC, ISO 8601 to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class _Counters:
    """What the system has counted since it was started."""

    clock_s: float
    own_s: float
    ticks: machine.Ticks | None
    quota_throttled: int | None
    thermal_throttled: int | None
    firmware: int | None


class Observation:
    """What the machine does from now on until `end` is asked. `start` is now, in UTC."""

    def __init__(self, root: Path = machine.HERE) -> None:
        self._root, self.start = root, utc_now()
        self.at_start = conditions_now(root)
        self._before = self._count()
        self._state: Conditions | None = None

    def look(self) -> None:
        """Remember the state of this moment for `end`: a processor cools and slows as soon as the work is over."""
        self._state = conditions_now(self._root)

    def end(self) -> tuple[str, Conditions]:
        """The time in UTC, and the conditions since the start. Processes that this one started must have ended: only
        then does the system tell their processor time, which is not that of other processes.
        """
        before, after = self._before, self._count()
        state = self._state or conditions_now(self._root)
        elapsed = after.clock_s - before.clock_s
        other = stolen = None
        if before.ticks and after.ticks and elapsed > 0:
            busy, total = after.ticks.busy - before.ticks.busy, after.ticks.total - before.ticks.total
            # Some sandboxes show counters that stand still.
            if total > 0 and busy > 0:
                other = max(0.0, round((busy / machine.TICKS_PER_S - (after.own_s - before.own_s)) / elapsed, 2))
                stolen = round(max(0, after.ticks.stolen - before.ticks.stolen) / total, 4)
        return utc_now(), replace(
            state,
            other_cores=other,
            stolen=stolen,
            quota_throttled=_more(before.quota_throttled, after.quota_throttled),
            thermal_throttled=_slowed(before, after),
        )

    def _count(self) -> _Counters:
        times, quota = os.times(), machine.quota(self._root)
        return _Counters(
            time.monotonic(),
            times.user + times.system + times.children_user + times.children_system,
            machine.ticks(self._root),
            quota.throttled if quota else None,
            machine.thermal_throttles(self._root),
            machine.firmware_throttling(self._root),
        )


def _slowed(before: _Counters, after: _Counters) -> int | None:
    """Times that heat slowed the processor. The firmware of a Raspberry Pi tells only whether it does now (bits 0 to 3)
    or did since boot (bits 16 to 19), which is once at the least.
    """
    counted = _more(before.thermal_throttled, after.thermal_throttled)
    if before.firmware is None or after.firmware is None:
        return counted
    return max(counted or 0, int(bool(after.firmware & 0xF or after.firmware & ~before.firmware & 0xF0000)))


def _more(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def page_faults(variables: Mapping[str, str]) -> float | None:
    """Page faults per freshly allocated 0.8 MB block in a new process with these environment variables."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHURN],
            env=dict(variables),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def clock_read_ns() -> float:
    """What one read of the block clock costs, in nanoseconds: the best of five series."""
    return min(_clock_series() for _ in range(5))


def _clock_series() -> float:
    start = time.perf_counter_ns()
    for _ in range(2000):
        time.perf_counter_ns()
    return (time.perf_counter_ns() - start) / 2000
