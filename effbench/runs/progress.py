"""Report the progress of a run, and track one launch from its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effbench.core.study import Sampling
from effbench.host.noise import Observation
from effbench.runs.disturbance import Disturbance
from effbench.timing.least_duration import Forecast
from effbench.timing.sampling import MIN_ROUNDS_ON_BUDGET


@dataclass(frozen=True)
class Progress:
    """The progress of a run, as `watch` is called with it.

    Attributes
    ----------
    done
        Finished share of the plan, 0 to 1.
    doing
        The current step.
    note
        A message to show once, with or without a progress bar; ``""`` without one.
    """

    done: float
    doing: str
    note: str = ""


Watch = Callable[[Progress], None]


class LaunchProgress:
    """Track one launch from its events: time used, current cell, progress."""

    def __init__(self, number: int, slot: int, sampling: Sampling, watch: Watch) -> None:
        self.observed, self.begun_s = Observation(), time.monotonic()
        self.disturbance = Disturbance()
        self.number, self.working = number, ""
        self.at_s = self.ended_s = 0.0
        self._slot, self._sampling, self._watch = slot, sampling, watch
        self.forecast: Forecast | None = None
        self._rounds: tuple[float, float] | None = None
        """Start of the rounds and the time available for them, in seconds."""

    def handle_event(self, event: Mapping[str, Any]) -> None:
        """Handle one event and report the progress of the run."""
        kind = event["event"]
        self.disturbance.handle_event(event)
        self.at_s = max(self.at_s, event.get("at_s", 0.0))
        note = self.forecast.handle_event(event) if self.forecast is not None else ""
        if kind == "working" or note:
            self.working = event.get("cell", self.working)
            if self._rounds is None:
                self._report(0.0, "warming up", note)
        elif kind == "null":
            self._rounds = self.at_s, event["budget_s"]
            if not event["budget_s"]:
                self._report(0.0, f"no time is left of the budget, so {MIN_ROUNDS_ON_BUDGET} rounds at the most")
        elif kind == "block":
            begun_s, budget_s = self._rounds or (self.at_s, 0.0)
            by_time = (self.at_s - begun_s) / budget_s if budget_s else 0.0
            share = max(by_time, event["round"] / self._sampling.max_rounds)
            self._report(share, f"round {event['round'] + 1}, {event['cell']}")
        elif kind == "end":
            self.ended_s = self.at_s
            self.observed.sample()

    def _report(self, share: float, doing: str, note: str = "") -> None:
        planned = self._sampling.launches
        done = (self._slot + min(share, 1.0)) / planned
        self._watch(Progress(done, f"{launch_text(self._sampling, self._slot + 1)}: {doing}", note))


def launch_text(sampling: Sampling, launch: int) -> str:
    """Return a launch in the words of the progress bar: ``launch 3/5``, ``launch 3 (until decided, at most 13)``."""
    if sampling.until == "launches":
        return f"launch {launch}/{sampling.launches}"
    return f"launch {launch} (until decided, at most {sampling.launches})"
