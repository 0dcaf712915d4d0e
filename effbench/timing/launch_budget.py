"""Compute how long one launch may measure rounds: its share of what is left of the run's budget.

A launch starts its process, prepares the networks, warms them up, and then measures rounds. All of this counts against
the budget. The cost of work that only the first launch does, such as exporting a model, is spread over all remaining
launches, so that each of them measures for the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effbench.devices import Device

Emit = Callable[..., None]


def rounds_s(
    slice_s: float, launches_left: int, *, overhead_s: float, once_s: float = 0.0, after_s: float = 0.0
) -> float:
    """Return the seconds of rounds for a launch whose share of the budget, (budget - used) / launches left, is
    `slice_s`.

    Parameters
    ----------
    slice_s : float
        Share of the budget, including process start and warm-up; 0 once the budget is used up.
    launches_left : int
        This launch and those that have not finished.
    overhead_s : float
        Seconds that this launch has spent before its first round.
    once_s : float
        The part of `overhead_s` that later launches do not spend again.
    after_s : float
        Seconds that the previous launch spent after its rounds.

    Returns
    -------
    float
        Between 0 and `slice_s`. All remaining launches get the same time if later ones spend ``overhead_s - once_s``
        before their rounds. At 0 the launch measures the least number of rounds (`MIN_ROUNDS_ON_BUDGET`).
    """
    left = max(launches_left, 1)
    once = min(max(once_s, 0.0), overhead_s)
    return max(0.0, slice_s - overhead_s - after_s + once * (left - 1) / left)


class Stopwatch:
    """Measures the time since this launch began, by the device's clock. A scripted clock starts with its device."""

    def __init__(self, job: Mapping[str, Any], device: Device) -> None:
        self._job, self._device = job, device
        # time.monotonic is common to all processes, so the parent's `begun_s` includes process start and imports.
        now = time.monotonic()
        self._before_s = 0.0 if device.kind == "fake" else max(0.0, now - job.get("begun_s", now))
        self._start_s = device.now_s()
        self._once_s = 0.0
        self._new = {spec["id"]: Path(spec["folder"]) for spec in job["cells"] if not Path(spec["folder"]).exists()}

    def at_s(self) -> float:
        """Return the seconds since the launch began."""
        return self._before_s + max(0.0, self._device.now_s() - self._start_s)

    def rounds_s(self) -> float:
        """Return the seconds for rounds (see `rounds_s`). Call it just before the first round."""
        return rounds_s(
            self._job["budget_s"],
            self._job.get("launches_left", 1),
            overhead_s=self.at_s(),
            once_s=self._once_s,
            after_s=self._job.get("after_s", 0.0),
        )

    def with_timestamps(self, emit: Emit) -> Emit:
        """Wrap `emit` to add the time to each event, so that the last event dates the end of a launch, even a crash."""

        def emit_with_time(event: str, **fields: Any) -> None:
            if event == "probe":
                self._note_export(fields["cell"], fields["values"])
            emit(event, **fields, at_s=round(self.at_s(), 3))

        return emit_with_time

    def _note_export(self, cell: str, values: Mapping[str, Any]) -> None:
        """Add the time of an export into a new folder to the one-off costs: later launches will reuse that folder.

        Not for torch.compile, which leaves a cache folder too, but mostly compiles again. Its facts have "cached".
        """
        folder = self._new.pop(cell, None)
        if folder is not None and folder.exists() and "cached" not in values:
            self._once_s += values.get("prepare_s") or 0.0
