"""Monitor a GPU through NVML during a launch, and flag blocks that something outside the network disturbed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from weakref import WeakKeyDictionary

from effbench.devices.base import Call
from effbench.host import nvml

CLOCK_DROP = 0.97
"""A block is flagged when its SM clock is below this share of the running median of its cell."""

MIN_CLOCK_SAMPLES = 5
"""Clock samples of a cell before its running median is used."""

NO_OUTSIDE_CAUSE = nvml.IDLE | nvml.POWER_CAP
"""Reasons for a lower clock that the network itself causes: it leaves the GPU idle, or it reaches the power cap."""

FULL_QUERY_NS = 1_000_000_000
"""Time between two full NVML queries. Between them a block reads only the SM clock and its throttle reasons."""

STABLE_NS = 500_000_000
"""The GPU counts as warm once its clock has stayed within 1 % for this long under load."""

_FLAGS = {
    nvml.HW_SLOWDOWN: "hw-slowdown",
    nvml.SW_THERMAL | nvml.HW_THERMAL: "thermal",
    nvml.POWER_BRAKE: "power-brake",
}


class GpuMonitor:
    """Monitor `gpu`, or nothing if it is None because NVML shows no GPU. `now_ns` reads the host's clock."""

    def __init__(self, gpu: nvml.Gpu | None, now_ns: Callable[[], int]) -> None:
        self._gpu, self._now_ns = gpu, now_ns
        self._full_query_ns: int | None = None
        # Weak references: the calls of a cell that ran out of memory must be freed.
        self._clocks: WeakKeyDictionary[Call, list[float]] = WeakKeyDictionary()
        self.expected_processes: frozenset[int] | None = None
        """Ids of the processes on the GPU when `expect_current_processes` was called; None if NVML lists no process."""
        self._is_shared = False

    def warm_up(self, seconds: float, load: Callable[[], None], synchronize: Callable[[], None]) -> None:
        """Load the GPU until its clock is stable, for at most `seconds`. A GPU that was just in use is warm at once."""
        min_mhz = (self._gpu.sm_mhz_max() or math.inf) / 2 if self._gpu else math.inf
        stable_since = self._now_ns()
        end, reference_mhz = stable_since + seconds * 1e9, math.inf
        while (now := self._now_ns()) < end and now - stable_since < STABLE_NS:
            load()
            # Read while the GPU computes, before waiting for it.
            mhz = (self._gpu.read_clock().sm_mhz or 0.0) if self._gpu else 0.0
            synchronize()
            if mhz < min_mhz or not 0.99 <= mhz / reference_mhz <= 1.01:
                reference_mhz, stable_since = mhz or math.inf, self._now_ns()

    def expect_current_processes(self) -> None:
        """Take the processes that use the GPU now as expected; any process that appears later is foreign.

        Ids are compared over time and not with the id of this process: NVML reports ids of the host, a container uses
        others. If NVML lists no process although this one computes, as it may in a container, no process is ever called
        foreign.
        """
        self.expected_processes = (self._gpu.processes() or None) if self._gpu else None
        self._is_shared = False

    def sample(self) -> nvml.GpuSample:
        """Read the SM clock and its throttle reasons; once in `FULL_QUERY_NS` everything else, and check for foreign
        processes.
        """
        if self._gpu is None:
            return nvml.GpuSample()
        now = self._now_ns()
        if self._full_query_ns is not None and now - self._full_query_ns < FULL_QUERY_NS:
            return self._gpu.read_clock()
        self._full_query_ns, gpu_sample = now, self._gpu.read()
        self._is_shared = bool(
            self.expected_processes and (gpu_sample.processes or frozenset()) - self.expected_processes
        )
        return gpu_sample

    def flags(self, call: Call, gpu_sample: nvml.GpuSample) -> tuple[str, ...]:
        """Name the outside causes that disturbed a block of this call. The block's own time plays no part.

        A power cap is no outside cause: large GPUs usually run at theirs, and a heavier network runs there at a lower
        clock. A foreign process is found by the next full query, and its flag stays until a query no longer lists it.
        """
        flags = [name for bits, name in _FLAGS.items() if (gpu_sample.reasons or 0) & bits]
        if gpu_sample.sm_mhz is not None:
            clocks = self._clocks.setdefault(call, [])
            clocks.append(gpu_sample.sm_mhz)
            has_cause = gpu_sample.reasons is None or gpu_sample.reasons & ~NO_OUTSIDE_CAUSE
            if (
                has_cause
                and len(clocks) >= MIN_CLOCK_SAMPLES
                and gpu_sample.sm_mhz < CLOCK_DROP * statistics.median(clocks)
            ):
                flags.append("clock-drop")
        if self._is_shared:
            flags.append("foreign-process")
        return tuple(flags)
