"""What NVML says of a GPU while a launch measures on it, and which blocks an outside cause disturbed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from weakref import WeakKeyDictionary

from effbench.devices.base import Call
from effbench.host import nvml

CLOCK_DROP = 0.97
"""A block whose SM clock lies below this share of its cell's running median did not run on the same GPU."""

MIN_CLOCKS = 5
"""Readings before the running median means anything."""

NO_OUTSIDE_CAUSE = nvml.IDLE | nvml.POWER_CAP
"""What lowers a clock because of the network itself: one that keeps the GPU waiting, one that takes all its power."""

LOOK_NS = 1_000_000_000
"""Time between two looks at everything that NVML tells. Every block looks at the SM clock."""

STEADY_NS = 500_000_000
"""The GPU is warmed up once its clock has stood within 1 % for so long under load."""

_FLAGS = {
    nvml.HW_SLOWDOWN: "hw-slowdown",
    nvml.SW_THERMAL | nvml.HW_THERMAL: "thermal",
    nvml.POWER_BRAKE: "power-brake",
}


class Watch:
    """Watches `gpu`, None where NVML shows none: it then sees nothing. `now_ns` is the host's clock."""

    def __init__(self, gpu: nvml.Gpu | None, now_ns: Callable[[], int]) -> None:
        self._gpu, self._now_ns = gpu, now_ns
        self._looked_ns: int | None = None
        # Weak: a cell that ran out of memory gives its own back.
        self._clocks: WeakKeyDictionary[Call, list[float]] = WeakKeyDictionary()
        self.admitted: frozenset[int] | None = None
        """Who computed on the GPU when `admit` was called; None where NVML shows nobody."""
        self._is_shared = False

    def heat(self, seconds: float, load: Callable[[], None], synchronize: Callable[[], None]) -> None:
        """Load the GPU until its clock stands, for so long at the most: one that has just been used is warm."""
        least = (self._gpu.sm_mhz_max() or math.inf) / 2 if self._gpu else math.inf
        since = self._now_ns()
        end, usual = since + seconds * 1e9, math.inf
        while (now := self._now_ns()) < end and now - since < STEADY_NS:
            load()
            # Before the wait, while it computes.
            clock = (self._gpu.glance().sm_mhz or 0.0) if self._gpu else 0.0
            synchronize()
            if clock < least or not 0.99 <= clock / usual <= 1.01:
                usual, since = clock or math.inf, self._now_ns()

    def admit(self) -> None:
        """Take whoever computes on this GPU now for one of us; a process that appears later is foreign.

        Process ids are compared over time and not with our own: NVML shows those of the host, a container sees others.
        Where it shows nobody, though we compute, as in a container it may, nobody is ever foreign.
        """
        self.admitted = (self._gpu.processes() or None) if self._gpu else None
        self._is_shared = False

    def look(self) -> nvml.Reading:
        """The SM clock and what holds it down; once in `LOOK_NS` everything else, and whether somebody else came."""
        if self._gpu is None:
            return nvml.Reading()
        now = self._now_ns()
        if self._looked_ns is not None and now - self._looked_ns < LOOK_NS:
            return self._gpu.glance()
        self._looked_ns, reading = now, self._gpu.read()
        self._is_shared = bool(self.admitted and (reading.processes or frozenset()) - self.admitted)
        return reading

    def flags(self, call: Call, reading: nvml.Reading) -> tuple[str, ...]:
        """Outside causes of a block of this call, never the block's value.

        A power cap is none: big GPUs live at theirs, and the heavier a network the lower its clock there. A foreign
        process is seen by the next look, and is there until one does not see it.
        """
        flags = [name for bits, name in _FLAGS.items() if (reading.reasons or 0) & bits]
        if reading.sm_mhz is not None:
            clocks = self._clocks.setdefault(call, [])
            clocks.append(reading.sm_mhz)
            has_cause = reading.reasons is None or reading.reasons & ~NO_OUTSIDE_CAUSE
            if has_cause and len(clocks) >= MIN_CLOCKS and reading.sm_mhz < CLOCK_DROP * statistics.median(clocks):
                flags.append("clock-drop")
        if self._is_shared:
            flags.append("foreign-process")
        return tuple(flags)
