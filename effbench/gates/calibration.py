"""What the gate can see on a machine: the scatter of its launches, power, and the launches a slowdown takes. No torch.

Power is simulated: launches are drawn from a normal distribution with the recorded scatter of launch medians, and
rounds around each with the recorded noise; then the gate's rule looks at them, with the cell's p-value
corrected as if it were the only slow one of its suite. A plan looks when every gate does, whatever the looks of the
rule at hand, and beyond that at about half as many launches again each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray

from effbench.analysis import stats
from effbench.gates.decision_rule import LOOKS, POWER, Rule, share_of_alpha
from effbench.gates.evidence import Evidence

Array = NDArray[Any]

CAP = 60
"""More launches than this nobody takes: beyond, the answer is another machine."""
DRAWS = 1000
_LARGEST = 1.0
"""A slowdown beyond 100 % is nothing that needs a gate."""


@dataclass(frozen=True)
class Scatter:
    """How one cell's log ratio varies; 0.01 is about 1 %.

    `within` is the deviation of rounds around the median of their launch, by the median absolute deviation; `between`
    that of the launches' medians, None for a single launch. `rounds` is the middle number of a launch. `centre` is the
    mean of the launch medians: what the two sides really differ by.
    """

    cell: str
    launches: int
    rounds: int
    within: float | None
    between: float | None
    centre: float | None
    set_aside: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """A number, or None and the reason why there is none; `above` is what it is known to exceed."""

    value: float | None
    reason: str = ""
    above: float | None = None


@dataclass(frozen=True)
class Survey:
    """What a gate can see on one machine. `detectable` is by number of launches, `needed` by slowdown; then by cell."""

    scatter: tuple[Scatter, ...]
    detectable: Mapping[int, Mapping[str, Answer]]
    needed: Mapping[float, Mapping[str, Answer]]


def survey(recorded: Evidence, *, slowdowns: Sequence[float] = (0.03, 0.05), rule: Rule | None = None) -> Survey:
    """Everything `effbench aa` says of a machine: at the launches recorded, at a whole gate's, and planned."""
    judged = rule or Rule()
    counts = sorted({len(recorded.launches), LOOKS[-1]} - {0})
    return Survey(
        scatter(recorded),
        {count: smallest_detectable(recorded, count, rule=judged) for count in counts},
        {slowdown: needed_launches(recorded, slowdown, rule=judged) for slowdown in slowdowns},
    )


def scatter(recorded: Evidence) -> tuple[Scatter, ...]:
    """One for every cell. `reason` says what is missing."""
    return tuple(_scatter(recorded, cell) for cell in recorded.cells)


def looks_of(launches: int, rule: Rule | None = None) -> tuple[int, ...]:
    """The looks of a gate planned for so many launches: the rule's, then growing as its last two do, and the last."""
    looks = list((rule or Rule()).looks)
    growth = looks[-1] / looks[-2] if len(looks) > 1 else 1.5
    while looks[-1] < launches:
        looks.append(max(looks[-1] + 1, math.ceil(looks[-1] * growth - 1e-9)))
    return (*(look for look in looks if look < launches), launches)


def power(
    found: Scatter,
    slowdown: float,
    looks: Sequence[int],
    *,
    cells: int = 1,
    rule: Rule | None = None,
    wall: bool = False,
) -> float:
    """The chance that a gate of so many cells, with these looks, calls this cell when it is so much slower.

    `wall` says that the wall clock is tested beside and takes its share of alpha. Raises ValueError for a cell whose
    scatter is not known.
    """
    p_values = _p_values(found, slowdown, tuple(looks), rule or Rule())
    return float(_called(p_values, looks, tuple(looks), cells, rule or Rule(), wall).mean())


def needed_launches(
    recorded: Evidence, slowdown: float, *, power: float = POWER, rule: Rule | None = None, cap: int = CAP
) -> dict[str, Answer]:
    """By cell, the fewest launches with which a slowdown (0.03 is 3 %) is called with this chance."""
    judged, answers = rule or Rule(), {}
    for found in scatter(recorded):
        answers[found.cell] = _needed(
            found, slowdown, power, judged, cap, len(recorded.cells), recorded.wall is not None
        )
    return answers


def smallest_detectable(
    recorded: Evidence, launches: int, *, power: float = POWER, rule: Rule | None = None
) -> dict[str, Answer]:
    """By cell, the smallest slowdown, as a share, that is called with this chance in a gate of so many launches."""
    judged, looks, answers = rule or Rule(), looks_of(launches), {}
    for found in scatter(recorded):
        reason = found.reason or ("one launch cannot tell" if launches < 2 else "")
        answers[found.cell] = (
            Answer(None, reason)
            if reason
            else _detectable(found, looks, power, judged, len(recorded.cells), recorded.wall is not None)
        )
    return answers


def middle(answers: Mapping[str, Answer]) -> Answer:
    """The answer of the suite's median cell; cells without an answer count as the largest."""
    ordered = sorted(answers.values(), key=lambda answer: math.inf if answer.value is None else answer.value)
    return ordered[len(ordered) // 2] if ordered else Answer(None, "there is no cell")


def _scatter(recorded: Evidence, cell: str) -> Scatter:
    values = recorded.values[recorded.cells.index(cell)]
    launches = [items for row in values.tolist() if (items := [value for value in row if not math.isnan(value)])]
    aside = recorded.set_aside(cell)
    if not launches:
        reason = f"all {aside} rounds were disturbed" if aside else "it has no rounds on both sides"
        return Scatter(cell, 0, 0, None, None, None, aside, reason)
    medians = recorded.medians(cell)
    noise = 1.4826 * stats.median(
        [abs(value - at) for items, at in zip(launches, medians, strict=True) for value in items]
    )
    between = stats.deviation(medians) if len(medians) > 1 else None
    reason = ""
    if split := recorded.cpu_share(cell):
        reason = f"{split}, so its ratio tells nothing"
    elif between is None:
        reason = "one launch shows no scatter between launches"
    elif between <= 1e-12:
        reason = "its launches do not differ at all, which no clock does"
    centre = math.fsum(medians) / len(medians)
    middle_count = round(stats.median([float(len(items)) for items in launches]))
    return Scatter(cell, len(launches), middle_count, noise, between, centre, aside, reason)


def _needed(found: Scatter, slowdown: float, power: float, rule: Rule, cap: int, cells: int, wall: bool) -> Answer:
    if found.reason:
        return Answer(None, found.reason)
    if slowdown <= rule.smallest_effect:
        return Answer(None, f"below {rule.smallest_effect:.3g} nothing is called a slowdown")
    every = tuple(range(2, cap + 1))
    p_values = _p_values(found, slowdown, every, rule)
    for launches in range(LOOKS[0], cap + 1):
        if _called(p_values, every, looks_of(launches), cells, rule, wall).mean() >= power:
            return Answer(launches)
    return Answer(None, f"it takes more than {cap} launches", cap)


def _detectable(found: Scatter, looks: tuple[int, ...], power: float, rule: Rule, cells: int, wall: bool) -> Answer:
    def is_seen(slowdown: float) -> bool:
        p_values = _p_values(found, slowdown, looks, rule)
        return bool(_called(p_values, looks, looks, cells, rule, wall).mean() >= power)

    low, high = rule.smallest_effect, _LARGEST
    if not is_seen(high):
        return Answer(None, f"not even a slowdown of {100 * high:.0f} % is called", high)
    while high - low > 1e-4:
        between = (low + high) / 2
        low, high = (low, between) if is_seen(between) else (between, high)
    return Answer(high)


def _p_values(found: Scatter, slowdown: float, counts: tuple[int, ...], rule: Rule) -> Array:
    """p of the rule (draws × counts) after each number of launches, of a cell that is so much slower."""
    if found.within is None or found.between is None:
        raise ValueError(f"{found.cell}: {found.reason}")
    *parts, spread = _drawn(max(counts[-1], CAP), found.rounds)
    launch, noise, noise_median = (part[:, : counts[-1]] for part in parts)
    # The recorded scatter of medians holds what the rounds' noise adds to it.
    apart = math.sqrt(max(found.between**2 - (found.within * spread) ** 2, 0.0))
    above_threshold = math.log1p(slowdown) - math.log1p(rule.smallest_effect)
    at = above_threshold + apart * launch
    above = (found.within * noise + at[:, :, None] > 0).sum(axis=2).cumsum(axis=1)
    medians = at + found.within * noise_median
    p_values = numpy.empty((len(launch), len(counts)))
    for column, count in enumerate(counts):
        p_values[:, column] = numpy.maximum(
            stats.sign_p(above[:, count - 1], numpy.asarray(count * found.rounds)), stats.t_p(medians[:, :count], 0.0)
        )
    return p_values


def _called(
    p_values: Array, counts: Sequence[int], looks: tuple[int, ...], cells: int, rule: Rule, wall: bool
) -> Array:
    """Whether each draw is called at any of the looks."""
    spent = numpy.asarray(stats.alpha_spending(share_of_alpha(rule.alpha, has_wall=wall), len(looks)))
    at = [counts.index(look) for look in looks]
    called: Array = numpy.any(p_values[:, at] * cells <= spent, axis=1)
    return called


@lru_cache(maxsize=2)
def _drawn(launches: int, rounds: int) -> tuple[Array, Array, Array, float]:
    """Standard normal launches, rounds within, the rounds' medians, and the deviation of those.

    The same for every cell and slowdown, so that answers differ by what is asked and not by luck.
    """
    generator = numpy.random.default_rng(rounds)
    noise = generator.standard_normal((DRAWS, launches, rounds))
    medians = numpy.median(noise, axis=2)
    return generator.standard_normal((DRAWS, launches)), noise, medians, float(medians.std())
