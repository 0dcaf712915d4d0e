"""Compute how long one launch may measure rounds, and how long a cell may warm up: its share of the run's budget.

A launch starts its process, prepares the networks, warms them up, and then measures rounds. All of this counts against
its own share of the budget, which is the same for every launch. So what only the first launch does, such as exporting a
model, leaves less time for its own rounds, and as much as ever for those of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from effbench.core.study import Sampling
from effbench.devices import Device

Emit = Callable[..., None]

SETTLE_SHARE = 0.25
"""The largest share of a launch's budget for longer warm-ups, those of all its cells together."""


def rounds_s(slice_s: float, *, overhead_s: float, after_s: float = 0.0) -> float:
    """Return the seconds of rounds for a launch whose share of the budget is `slice_s`.

    Parameters
    ----------
    slice_s : float
        Share of the budget, including process start and warm-up; 0 once it is used up.
    overhead_s : float
        Seconds that this launch has spent before its first round.
    after_s : float
        Seconds that the previous launch spent after its rounds.

    Returns
    -------
    float
        Between 0 and `slice_s`. At 0 the launch measures the least number of rounds (`MIN_ROUNDS_ON_BUDGET`).
    """
    return max(0.0, slice_s - overhead_s - after_s)


def with_settling(sampling: Sampling, settle_s: float, slice_s: float, cells: int) -> Sampling:
    """Return the sampling with a longer limit of the warm-up for a cell that may need `settle_s` more.

    The longer limit is at most this cell's part, one of `cells`, of `SETTLE_SHARE` of the launch's budget.
    """
    part_s = SETTLE_SHARE * slice_s / max(cells, 1)
    longer_s = min(sampling.max_warmup_s + settle_s, part_s)
    return replace(sampling, max_warmup_s=max(sampling.max_warmup_s, longer_s))


class Stopwatch:
    """Measures the time since this launch began, by the device's clock. A scripted clock starts with its device."""

    def __init__(self, job: Mapping[str, Any], device: Device) -> None:
        self._job, self._device = job, device
        # time.monotonic is common to all processes, so the parent's `begun_s` includes process start and imports.
        now = time.monotonic()
        self._before_s = 0.0 if device.kind == "fake" else max(0.0, now - job.get("begun_s", now))
        self._start_s = device.now_s()

    def at_s(self) -> float:
        """Return the seconds since the launch began."""
        return self._before_s + max(0.0, self._device.now_s() - self._start_s)

    def rounds_s(self) -> float:
        """Return the seconds for rounds (see `rounds_s`). Call it just before the first round."""
        return rounds_s(self._job["budget_s"], overhead_s=self.at_s(), after_s=self._job.get("after_s", 0.0))

    def with_timestamps(self, emit: Emit) -> Emit:
        """Wrap `emit` to add the time to each event, so that the last event dates the end of a launch, even a crash."""

        def emit_with_time(event: str, **fields: Any) -> None:
            emit(event, **fields, at_s=round(self.at_s(), 3))

        return emit_with_time
