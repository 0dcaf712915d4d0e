"""How long one launch may measure: its share of what is left of the run's budget.

A launch first starts its process, prepares the networks and warms them up, and only then measures rounds. All of it
counts against the budget. Work that only the first launch does, such as exporting a model, is shared by all launches
that are left, so that each of them measures for the same time.
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
    """Seconds of rounds for a launch whose slice of the budget is `slice_s` = (budget - used) / launches left.

    Parameters
    ----------
    slice_s : float
        The slice, process start and warm-up included; 0 once the budget is used up.
    launches_left : int
        This launch and those that have not finished.
    overhead_s : float
        What this launch has spent before its first round.
    once_s : float
        The part of `overhead_s` that later launches need not spend again.
    after_s : float
        What a launch spends after its rounds, as the last one did.

    Returns
    -------
    float
        Every launch left gets equally much where later ones spend ``overhead_s - once_s`` before their rounds. Between
        0 and `slice_s`: at 0 the launch measures the least number of rounds (`stop.MIN_ROUNDS_ON_BUDGET`).
    """
    left = max(launches_left, 1)
    once = min(max(once_s, 0.0), overhead_s)
    return max(0.0, slice_s - overhead_s - after_s + once * (left - 1) / left)


class Stopwatch:
    """Time since this launch began, by the clock that budgets are kept by. A scripted clock starts when it is made."""

    def __init__(self, job: Mapping[str, Any], device: Device) -> None:
        self._job, self._device = job, device
        # time.monotonic is the same in all processes of a machine, so the start of this process and its imports count.
        now = time.monotonic()
        self._before_s = 0.0 if device.kind == "fake" else max(0.0, now - job.get("begun_s", now))
        self._start_s = device.now_s()
        self._once_s = 0.0
        self._new = {spec["id"]: Path(spec["folder"]) for spec in job["cells"] if not Path(spec["folder"]).exists()}

    def at_s(self) -> float:
        """Seconds since the launch began."""
        return self._before_s + max(0.0, self._device.now_s() - self._start_s)

    def rounds_s(self) -> float:
        """The time for rounds, asked just before the first of them (`rounds_s`)."""
        return rounds_s(
            self._job["budget_s"],
            self._job.get("launches_left", 1),
            overhead_s=self.at_s(),
            once_s=self._once_s,
            after_s=self._job.get("after_s", 0.0),
        )

    def stamped(self, emit: Emit) -> Emit:
        """`emit` with the time of each event in it, so that whatever ends the launch, its last event says when."""

        def stamping(event: str, **fields: Any) -> None:
            if event == "probe":
                self._note_export(fields["cell"], fields["values"])
            emit(event, **fields, at_s=round(self.at_s(), 3))

        return stamping

    def _note_export(self, cell: str, values: Mapping[str, Any]) -> None:
        """An export into a folder that was not there is found there by later launches.

        torch.compile leaves a folder too but says whether it could use it ("cached"): most launches compile again.
        """
        folder = self._new.pop(cell, None)
        if folder is not None and folder.exists() and "cached" not in values:
            self._once_s += values.get("prepare_s") or 0.0
