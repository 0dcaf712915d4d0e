"""Forecast the least duration of a run from its first calls, and warn if it exceeds the budget. Pure.

A budget limits the rounds. It limits neither the warm-up nor the least number of rounds, so slow networks can exceed
it. The user is warned after the first calls, and again if the forecast doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effbench.core.study import Sampling
from effbench.timing import block_loop
from effbench.timing.sampling import FEWEST_VALUES, MIN_ROUNDS_ON_BUDGET, WINDOW

OVERRUN, OVERRUN_S = 1.1, 5.0
"""A budget counts as overrun beyond this factor and this many seconds: processes take time to start."""

WARN_AGAIN = 2.0
"""Warn again once the forecast is this many times the last one."""


def is_overrun(seconds: float, budget_s: float) -> bool:
    """Return whether this many seconds exceed the budget by enough for a warning."""
    return seconds > OVERRUN * budget_s and seconds > budget_s + OVERRUN_S


def warmup_s(call_s: float, sampling: Sampling, calls: int | None = None) -> float:
    """Return the least seconds that the warm-up of a cell takes. `calls` is the number of calls per block, if known."""
    block = calls or block_loop.calls_per_block(call_s, sampling)
    judged = FEWEST_VALUES - (block_loop.MIN_WARMUP_CALLS - 1 if block == 1 else 0)
    least = call_s * (block_loop.MIN_WARMUP_CALLS + block * judged)
    steady = call_s * (block_loop.MIN_WARMUP_CALLS + block * 2 * WINDOW)
    return max(least, min(max(steady, sampling.warmup_s), sampling.max_warmup_s))


def rounds_s(call_s: float, sampling: Sampling, rounds: int, calls: int | None = None, *, alone: bool = False) -> float:
    """Return the seconds that this many rounds of a cell take. Pass `alone` if it is the only cell."""
    block_s = call_s * (calls or block_loop.calls_per_block(call_s, sampling))
    is_warm = block_s >= (block_loop.WARM_BLOCK_ALONE_S if alone else block_loop.WARM_BLOCK_S)
    return rounds * (block_s + (0.0 if is_warm else call_s))


class Forecast:
    """Forecasts the least time of `launches_left` launches of `cells` cells, each with at least `min_rounds` rounds.

    An A/B run has two `sides`. `used_s` is the part of the budget that was used before.
    """

    def __init__(
        self,
        sampling: Sampling,
        budget_s: float,
        *,
        cells: int,
        launches_left: int,
        used_s: float = 0.0,
        sides: int = 1,
        min_rounds: int | None = None,
    ) -> None:
        self._sampling, self._budget_s, self._alone = sampling, budget_s, cells == 1 and sides == 1
        self._cells = cells
        self._launches_left, self._used_s, self._sides = launches_left, used_s, sides
        self._min_rounds = min_rounds or min(MIN_ROUNDS_ON_BUDGET, sampling.max_rounds)
        self._start_s = self._first_s = 0.0
        self._own_first_s: float | None = None
        """Seconds before the first call of the current launch; None before that call."""
        self._calls: dict[str, list[float]] = {}
        self._warned_s = 0.0
        self._is_measuring = False
        """Whether the rounds have begun; their time is part of earlier forecasts."""

    @property
    def least_s(self) -> float:
        """The least seconds that the whole run takes, from the calls seen so far."""
        each_s = 0.0
        for seconds in self._calls.values():
            call_s = min(seconds)
            each_s += warmup_s(call_s, self._sampling)
            each_s += rounds_s(call_s, self._sampling, self._min_rounds, alone=self._alone)
        return self._used_s + self._before_s + self._launches_left * self._sides * each_s

    @property
    def _before_s(self) -> float:
        """Seconds before the first call, summed over the remaining launches.

        Only the first launch may export a model; every launch starts a process.
        """
        return self._first_s + (self._launches_left - 1) * self._start_s

    def begin_launch(self) -> None:
        """Begin a launch after the first one, so that `rounds` counts the time before its own first call."""
        self._own_first_s = None

    def note_first_call(self, event: Mapping[str, Any]) -> None:
        """Process an event of a launch after the first one."""
        if event["event"] == "call" and self._own_first_s is None:
            self._own_first_s = max(0.0, event.get("at_s", 0.0) - event["seconds"])

    def rounds(self, planned: int) -> int:
        """Return how many rounds the current launch can measure in its share of the budget: at least `min_rounds`, at
        most `planned`.

        What another launch spent before its first call, such as an export, does not count. Call it before the first
        round, so that the number does not depend on the timings of the rounds.
        """
        warm_s = once_s = 0.0
        for seconds in self._calls.values():
            warm_s += self._sides * warmup_s(min(seconds), self._sampling)
            once_s += self._sides * rounds_s(min(seconds), self._sampling, 1, alone=self._alone)
        left_s = (self._budget_s - self._used_s) / self._launches_left - (self._own_first_s or 0.0) - warm_s
        fitting = int(left_s / once_s) if once_s > 0 else planned
        return max(min(self._min_rounds, planned), min(planned, fitting))

    def handle_event(self, event: Mapping[str, Any]) -> str:
        """Process an event of the first launch. Returns a warning for the user, or "".

        The first call of a cell includes one-off costs, so it is used alone only if it exceeds the budget by itself.
        """
        at_s = event.get("at_s", 0.0)
        if event["event"] == "ready":
            self._start_s = self._start_s or at_s
        if event["event"] != "call":
            self._is_measuring = self._is_measuring or event["event"] == "null"
            return self._late_warning(at_s)
        seconds, calls = event["seconds"], self._calls.setdefault(event["cell"], [])
        self.note_first_call(event)
        if not calls and len(self._calls) == 1:
            self._first_s = max(0.0, at_s - seconds)
        calls.append(seconds)
        if len(calls) == 1 and seconds <= self._budget_s:
            return ""
        least_s = self.least_s
        if not is_overrun(least_s, self._budget_s) or least_s < WARN_AGAIN * self._warned_s:
            return self._late_warning(at_s)
        self._warned_s = least_s
        return self._message(event["cell"], min(calls), least_s)

    def _late_warning(self, at_s: float) -> str:
        """Warn if preparing has exceeded the budget: with many quick networks their calls alone would not show it."""
        spent_s = self._used_s + at_s
        is_known = self._warned_s or self._is_measuring or self._used_s >= self._budget_s
        if is_known or not is_overrun(spent_s, self._budget_s):
            return ""
        self._warned_s = spent_s
        return (
            f"preparing has taken {format_seconds(spent_s)} and reached {len(self._calls)} of {self._cells} cells, "
            f"beyond the budget of {self._budget_s:g} s; interrupt it to stop, or ask for fewer cells"
        )

    def _message(self, cell: str, call_s: float, least_s: float) -> str:
        more = "" if self._launches_left == 1 else ", or ask for fewer launches"
        why = f"{cell} takes {format_seconds(call_s)} a call; at that pace"
        if 2 * self._before_s > least_s:
            why = f"everything before the first call takes {format_seconds(self._before_s)}; so"
        return (
            f"{why} the whole measurement takes {format_seconds(least_s)} or more, beyond the "
            f"budget of {self._budget_s:g} s; interrupt it to stop{more}"
        )


def format_seconds(seconds: float) -> str:
    """Format seconds for people: "0.25 s", "93 s", "12 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
