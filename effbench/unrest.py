"""Short measurements of this machine itself: what it does while we try to work, what its allocator and clock cost."""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from effbench import machine

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
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None
    found = {}
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None and process.info["pid"] != os.getpid():
            found[process.info["pid"]] = (str(process.info["name"]), times.user + times.system)
    return found


def _busiest(
    before: dict[int, tuple[str, float]] | None, after: dict[int, tuple[str, float]] | None, elapsed: float
) -> tuple[tuple[str, float], ...] | None:
    """Names with their share of one core, busiest first."""
    if before is None or after is None or elapsed <= 0:
        return None
    shares = [(name, (spent - before[pid][1]) / elapsed) for pid, (name, spent) in after.items() if pid in before]
    return tuple(sorted(shares, key=lambda item: -item[1])[:5])


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
