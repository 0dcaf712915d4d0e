"""Provide a device with a scripted clock: it runs the whole pipeline with exact times, without torch and without
waiting.

A call takes the time that a roofline model gives it (`seconds_of`), with seeded log-normal noise. It serves tests,
`--device fake` dry runs and documentation. Its runs are labelled fake and say nothing about hardware.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effbench.core.operator_times import OperatorEvent, WatchedCall
from effbench.core.run import Timing
from effbench.devices.base import Call, Device, Energy, Memory

PEAK_MADDS = 50e9
BANDWIDTH_BYTES = 20e9
LAUNCH_S = 2e-6
POWER_W = 20.0


@dataclass(frozen=True)
class ScriptedCall:
    """A call that only carries its duration in seconds."""

    seconds: float

    def __call__(self) -> None:
        return None


class Fake(Device):
    """The scripted device. `noise` is the standard deviation of the log of a block's time; `script` replaces the
    roofline. `torch` is that of the CPU, and changes nothing here: a bundle asks every device to do without.
    """

    kind = "fake"
    name = "fake"

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.005,
        script: Callable[[Mapping[str, Any]], float] | None = None,
        torch: bool = True,
    ) -> None:
        self._random = random.Random(seed)
        self._noise = noise
        self._script = script or seconds_of
        self._now_s = 0.0
        self._bound_bytes = 0

    def facts(self) -> dict[str, Any]:
        return {"kind": "fake", "name": "fake", "note": "scripted clock, not hardware"}

    def setup(self) -> None:
        """Do nothing."""

    def place(self, value: Any) -> Any:
        return value

    def synchronize(self) -> None:
        """Do nothing."""

    def now_s(self) -> float:
        return self._now_s

    def bind(self, call: Call | None, cost: Mapping[str, Any]) -> ScriptedCall:
        self._bound_bytes += int(cost.get("memory_access_bytes", 0))
        return ScriptedCall(self._script(cost))

    def time_block(self, call: Call, calls: int) -> Timing:
        seconds = call.seconds if isinstance(call, ScriptedCall) else 60e-9
        spent = seconds * calls * self._random.lognormvariate(0.0, self._noise)
        self._now_s += spent
        return Timing(calls=calls, wall_ns=round(spent * 1e9), cpu_ns=round(spent * 1e9))

    def time_calls(self, call: Call, calls: int) -> list[int]:
        return [self.time_block(call, 1).wall_ns for _ in range(calls)]

    def memory(self, *, reset_peak: bool = False) -> Memory:
        """Return the memory traffic of all cells bound so far, as if each kept all of it."""
        return Memory(self._bound_bytes, "scripted")

    def energy(self) -> Energy:
        """Return the energy at constant power, sleep included."""
        return Energy({"scripted": round(self._now_s * POWER_W * 1e6)}, "scripted")

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds

    def time_operators(self, call: Call, calls: int) -> list[WatchedCall] | None:
        """Return three operators of 60, 20 and 10 % of the call, under a profiler that lengthens it by a tenth."""
        if not isinstance(call, ScriptedCall):
            return None
        shares = {"aten::conv2d": 0.6, "aten::relu_": 0.2, "aten::cat": 0.1}
        events = tuple(OperatorEvent(name, None, share * call.seconds) for name, share in shares.items())
        return [WatchedCall(1.1 * call.seconds, events)] * calls


def seconds_of(cost: Mapping[str, Any]) -> float:
    """Return launch overhead plus the larger of compute and memory time, from `madds` and `memory_access_bytes` of a
    cost.
    """
    return LAUNCH_S + max(float(cost["madds"]) / PEAK_MADDS, float(cost["memory_access_bytes"]) / BANDWIDTH_BYTES)
