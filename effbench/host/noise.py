"""Measure the noise of this machine: steal time, clock drift, other processes, and the cost of its allocator and
clock.
"""

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

ALLOCATION_PROGRAM = """
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
"""A program that allocates, fills and frees like a small layer (four tensors of 0.8 MB) and prints page faults per
tensor.
"""


@dataclass(frozen=True)
class Sample:
    """What was seen while this process kept one core busy. None means "could not be measured"."""

    stolen: float | None = None
    drift: float | None = None
    others: tuple[tuple[str, float], ...] | None = None


def sample_noise(window_s: float) -> Sample:
    """Keep one core busy for `window_s` and sample steal time, clock drift and other processes.

    The core must be busy: steal time only counts while a virtual CPU wants to run.
    """
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
    return Sample(stolen, clock_drift(costs), _busiest(before, after, elapsed))


def clock_drift(costs: list[int]) -> float | None:
    """Return the slowest tenth of a series over the fastest, minus 1, by medians; None for fewer than 50 values."""
    if len(costs) < 50:
        return None
    size = len(costs) // 10
    tenths = [statistics.median(costs[i * size : (i + 1) * size]) for i in range(10)]
    return max(tenths) / min(tenths) - 1 if min(tenths) > 0 else None


def _process_times() -> dict[int, tuple[str, float]] | None:
    """Return the name and CPU seconds of each other process; None if they cannot be read."""
    found = {}
    try:
        psutil = importlib.import_module("psutil")
        for process in psutil.process_iter(["pid", "name", "cpu_times"]):
            times = process.info["cpu_times"]
            if times is not None and process.info["pid"] != os.getpid():
                found[process.info["pid"]] = (str(process.info["name"]), times.user + times.system)
    except Exception:  # not installed, or no /proc; its errors then differ by version and system
        return None
    # With hidepid only the user's own processes are listed; without /proc, none at all.
    return found or None


def _busiest(
    before: dict[int, tuple[str, float]] | None, after: dict[int, tuple[str, float]] | None, elapsed: float
) -> tuple[tuple[str, float], ...] | None:
    """Return process names with their share of one core, busiest first."""
    if before is None or after is None or elapsed <= 0:
        return None
    shares = [(name, (spent - before[pid][1]) / elapsed) for pid, (name, spent) in after.items() if pid in before]
    return tuple(sorted(shares, key=lambda item: -item[1])[:5])


# --- during a launch --------------------------------------------------------------------------------


def conditions_now(root: Path = machine.HERE) -> Conditions:
    """Return the state of the machine now. Reads a few small files, each in well under a millisecond."""
    return Conditions(
        load_1m=machine.load_average(root),
        temperature_c=machine.cpu_temperature(root),
        cpu_mhz=machine.cpu_mhz(root),
        uptime_s=machine.uptime_s(root),
    )


def utc_now() -> str:
    """Return the time in UTC, in ISO 8601 to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class _Counters:
    """The system's counters since boot."""

    clock_s: float
    own_s: float
    ticks: machine.Ticks | None
    quota_throttled: int | None
    thermal_throttled: int | None
    firmware: int | None


class Observation:
    """Observe the machine from now until `end` is called. `start` is the current time in UTC."""

    def __init__(self, root: Path = machine.HERE) -> None:
        self._root, self.start = root, utc_now()
        self.at_start = conditions_now(root)
        self._before = self._read_counters()
        self._state: Conditions | None = None

    def sample(self) -> None:
        """Sample the state now, for `end`: a processor cools down and lowers its clock as soon as the work is over."""
        self._state = conditions_now(self._root)

    def end(self) -> tuple[str, Conditions]:
        """Return the time in UTC and the conditions since the start.

        Child processes must have ended: the system reports their CPU time only then, and that time does not count as
        other processes.
        """
        before, after = self._before, self._read_counters()
        state = self._state or conditions_now(self._root)
        elapsed = after.clock_s - before.clock_s
        other = stolen = None
        if before.ticks and after.ticks and elapsed > 0:
            busy, total = after.ticks.busy - before.ticks.busy, after.ticks.total - before.ticks.total
            # Some sandboxes have counters that never advance.
            if total > 0 and busy > 0:
                other = max(0.0, round((busy / machine.TICKS_PER_S - (after.own_s - before.own_s)) / elapsed, 2))
                stolen = round(max(0, after.ticks.stolen - before.ticks.stolen) / total, 4)
        return utc_now(), replace(
            state,
            other_cores=other,
            stolen=stolen,
            quota_throttled=_increase(before.quota_throttled, after.quota_throttled),
            thermal_throttled=_thermal_throttles(before, after),
        )

    def _read_counters(self) -> _Counters:
        times, quota = os.times(), machine.quota(self._root)
        return _Counters(
            time.monotonic(),
            times.user + times.system + times.children_user + times.children_system,
            machine.ticks(self._root),
            quota.throttled if quota else None,
            machine.thermal_throttles(self._root),
            machine.firmware_throttling(self._root),
        )


def _thermal_throttles(before: _Counters, after: _Counters) -> int | None:
    """Return how often heat throttled the processor.

    The firmware of a Raspberry Pi only reports whether it throttles now (bits 0 to 3) or has throttled since boot (bits
    16 to 19). Either counts as once.
    """
    counted = _increase(before.thermal_throttled, after.thermal_throttled)
    if before.firmware is None or after.firmware is None:
        return counted
    return max(counted or 0, int(bool(after.firmware & 0xF or after.firmware & ~before.firmware & 0xF0000)))


def _increase(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def page_faults(variables: Mapping[str, str]) -> float | None:
    """Return page faults per newly allocated 0.8 MB block, in a new process with these environment variables."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", ALLOCATION_PROGRAM],
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
    """Return the cost of one read of the block clock in nanoseconds: the best of five series."""
    return min(_clock_series() for _ in range(5))


def _clock_series() -> float:
    start = time.perf_counter_ns()
    for _ in range(2000):
        time.perf_counter_ns()
    return (time.perf_counter_ns() - start) / 2000
