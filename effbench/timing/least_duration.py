"""What a run takes at the least, as soon as its first calls are known. Pure.

A budget shortens rounds. It shortens neither the warm-up nor the least number of rounds, so slow networks can take
longer than it: that is said at once, and again once it turns out to be twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effbench.core.study import Sampling
from effbench.timing import block_loop, stop, warmup

OVERRUN, OVERRUN_S = 1.1, 5.0
"""A budget counts as overrun from this share of it on, and from so many seconds on: processes take time to start."""

AGAIN = 2.0
"""Said again once it is so many times what was said."""


def is_overrun(seconds: float, budget_s: float) -> bool:
    """Whether so many seconds overrun the budget by more than what is not worth a word."""
    return seconds > OVERRUN * budget_s and seconds > budget_s + OVERRUN_S


def warmup_s(call_s: float, sampling: Sampling, calls: int | None = None) -> float:
    """Seconds that the warm-up of a cell takes at the least. `calls` are those of a block, where that is decided."""
    block = calls or block_loop.calls_per_block(call_s, sampling)
    judged = warmup.LEAST - (block_loop.MIN_WARMUP_CALLS - 1 if block == 1 else 0)
    least = call_s * (block_loop.MIN_WARMUP_CALLS + block * judged)
    steady = call_s * (block_loop.MIN_WARMUP_CALLS + block * 2 * warmup.WINDOW)
    return max(least, min(max(steady, sampling.warmup_s), sampling.max_warmup_s))


def rounds_s(call_s: float, sampling: Sampling, rounds: int, calls: int | None = None, *, alone: bool = False) -> float:
    """Seconds that so many rounds of a cell take. `alone` says that it is the only one."""
    block_s = call_s * (calls or block_loop.calls_per_block(call_s, sampling))
    is_warm = block_s >= (block_loop.WARM_BLOCK_ALONE_S if alone else block_loop.WARM_BLOCK_S)
    return rounds * (block_s + (0.0 if is_warm else call_s))


class Forecast:
    """The least time of `left` launches of so many cells and sides, each of `least` rounds, from its first calls on.

    `used_s` is what of the budget was used before.
    """

    def __init__(
        self,
        sampling: Sampling,
        budget_s: float,
        *,
        cells: int,
        left: int,
        used_s: float = 0.0,
        sides: int = 1,
        least: int | None = None,
    ) -> None:
        self._sampling, self._budget_s, self._alone = sampling, budget_s, cells == 1 and sides == 1
        self._cells = cells
        self._left, self._used_s, self._sides = left, used_s, sides
        self._least = least or min(stop.MIN_ROUNDS_ON_BUDGET, sampling.max_rounds)
        self._start_s = self._first_s = 0.0
        self._calls: dict[str, list[float]] = {}
        self._said_s = 0.0
        self._measures = False
        """Whether the rounds have begun: what they take was said before."""

    @property
    def least_s(self) -> float:
        """Seconds that the whole run takes at the least, by what is known so far."""
        each_s = 0.0
        for seconds in self._calls.values():
            call_s = min(seconds)
            each_s += warmup_s(call_s, self._sampling)
            each_s += rounds_s(call_s, self._sampling, self._least, alone=self._alone)
        return self._used_s + self._before_s + self._left * self._sides * each_s

    @property
    def _before_s(self) -> float:
        """What comes before the first call of each launch: it may be an export, which later launches find, while
        processes start every time.
        """
        return self._first_s + (self._left - 1) * self._start_s

    def rounds(self, planned: int) -> int:
        """Rounds that each launch can measure within the budget, between the least and those planned.

        Asked before the first round, so that it depends on nothing that is measured in them.
        """
        warm_s = once_s = 0.0
        for seconds in self._calls.values():
            warm_s += self._sides * warmup_s(min(seconds), self._sampling)
            once_s += self._sides * rounds_s(min(seconds), self._sampling, 1, alone=self._alone)
        left_s = (self._budget_s - self._used_s) / self._left - self._first_s - warm_s
        fitting = int(left_s / once_s) if once_s > 0 else planned
        return max(min(self._least, planned), min(planned, fitting))

    def take(self, event: Mapping[str, Any]) -> str:
        """Hear of an event of the first launch. What there is to say now; "" for nothing.

        The first call of a cell pays for more than the network, so it counts alone only where it is beyond the budget.
        """
        at_s = event.get("at_s", 0.0)
        if event["event"] == "ready":
            self._start_s = self._start_s or at_s
        if event["event"] != "call":
            self._measures = self._measures or event["event"] == "null"
            return self._late(at_s)
        seconds, calls = event["seconds"], self._calls.setdefault(event["cell"], [])
        if not calls and len(self._calls) == 1:
            self._first_s = max(0.0, at_s - seconds)
        calls.append(seconds)
        if len(calls) == 1 and seconds <= self._budget_s:
            return ""
        least_s = self.least_s
        if not is_overrun(least_s, self._budget_s) or least_s < AGAIN * self._said_s:
            return self._late(at_s)
        self._said_s = least_s
        return self._words(event["cell"], min(calls), least_s)

    def _late(self, at_s: float) -> str:
        """Many quick networks overrun a budget before their calls show it: each is built, looked at and counted."""
        spent_s = self._used_s + at_s
        is_known = self._said_s or self._measures or self._used_s >= self._budget_s
        if is_known or not is_overrun(spent_s, self._budget_s):
            return ""
        self._said_s = spent_s
        return (
            f"preparing has taken {shown(spent_s)} and reached {len(self._calls)} of {self._cells} cells, beyond the "
            f"budget of {self._budget_s:g} s; interrupt it to stop, or ask for fewer cells"
        )

    def _words(self, cell: str, call_s: float, least_s: float) -> str:
        more = "" if self._left == 1 else ", or ask for fewer launches"
        why = f"{cell} takes {shown(call_s)} a call; at that pace"
        if 2 * self._before_s > least_s:
            why = f"what comes before the first call takes {shown(self._before_s)}; so"
        return (
            f"{why} the whole takes {shown(least_s)} or more, beyond the "
            f"budget of {self._budget_s:g} s; interrupt it to stop{more}"
        )


def shown(seconds: float) -> str:
    """Seconds for people: "0.25 s", "93 s", "12 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
