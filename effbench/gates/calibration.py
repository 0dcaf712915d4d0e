"""Estimate what the gate can detect on a machine: scatter between launches, power, launches needed. Without torch.

Power is simulated. Launch medians are drawn from a normal distribution with the recorded scatter, and rounds around
each with the recorded noise. Then the gate's rule is applied; the cell's p-value is corrected as if it were the only
slow cell of its suite. A simulated gate has the default looks, whatever the looks of the given rule. Beyond the last
one, each further look has about half as many launches again.
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
"""The largest number of launches considered. Whoever needs more should use a quieter machine."""
DRAWS = 1000
SLOWDOWNS = (0.03, 0.05)
"""The slowdowns for which the needed launches are estimated."""
_LARGEST = 1.0
"""The largest slowdown considered: 100 %. It needs no gate to be noticed."""


@dataclass(frozen=True)
class Scatter:
    """How the log ratio of one cell varies; 0.01 is about 1 %.

    `within` is the standard deviation of rounds around their launch median, from the median absolute deviation.
    `between` is the standard deviation of the launch medians, None for a single launch. `rounds` is the median number
    of rounds of a launch. `centre` is the mean of the launch medians: the estimated difference of the two sides.
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
    """A number, or None with the reason why there is none. `above` is a bound that the number is known to exceed."""

    value: float | None
    reason: str = ""
    above: float | None = None


@dataclass(frozen=True)
class Survey:
    """What a gate can detect on one machine.

    `detectable` is by number of launches and cell, `needed` by slowdown and cell.
    """

    scatter: tuple[Scatter, ...]
    detectable: Mapping[int, Mapping[str, Answer]]
    needed: Mapping[float, Mapping[str, Answer]]


def survey(recorded: Evidence, *, rule: Rule | None = None) -> Survey:
    """Scatter, detectable slowdowns and launches needed, for the recorded number of launches and that of a gate."""
    judged = rule or Rule()
    counts = sorted({len(recorded.launches), LOOKS[-1]} - {0})
    return Survey(
        scatter(recorded),
        {count: smallest_detectable(recorded, count, rule=judged) for count in counts},
        {slowdown: needed_launches(recorded, slowdown, rule=judged) for slowdown in SLOWDOWNS},
    )


def scatter(recorded: Evidence) -> tuple[Scatter, ...]:
    """The scatter of every cell. `reason` names what is missing, if anything."""
    return tuple(_scatter(recorded, cell) for cell in recorded.cells)


def looks_of(launches: int, rule: Rule | None = None) -> tuple[int, ...]:
    """The looks of a gate of `launches` launches: those of the rule, extended at the ratio of its last two looks."""
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
    """The probability that a gate reports this cell when it is slower by `slowdown`.

    The gate has `cells` cells and these looks. With `wall` the wall clock is tested too and takes its share of alpha.
    Raises ValueError for a cell whose scatter is not known.
    """
    p_values = _p_values(found, slowdown, tuple(looks), rule or Rule())
    return float(_alarms(p_values, looks, tuple(looks), cells, rule or Rule(), wall).mean())


def needed_launches(recorded: Evidence, slowdown: float, *, rule: Rule | None = None) -> dict[str, Answer]:
    """For each cell, the fewest launches that detect a slowdown (0.03 is 3 %) with a power of `POWER`."""
    judged, cells, wall = rule or Rule(), len(recorded.cells), recorded.wall is not None
    return {found.cell: _needed(found, slowdown, judged, cells, wall) for found in scatter(recorded)}


def smallest_detectable(recorded: Evidence, launches: int, *, rule: Rule | None = None) -> dict[str, Answer]:
    """For each cell, the smallest slowdown, as a share, that a gate of `launches` launches detects with `POWER`."""
    judged, looks, answers = rule or Rule(), looks_of(launches), {}
    for found in scatter(recorded):
        reason = found.reason or ("one launch cannot tell" if launches < 2 else "")
        answers[found.cell] = (
            Answer(None, reason)
            if reason
            else _detectable(found, looks, judged, len(recorded.cells), recorded.wall is not None)
        )
    return answers


def median_answer(answers: Mapping[str, Answer]) -> Answer:
    """The median answer over the cells. Cells without an answer count as the largest."""
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
        reason = f"{split}, so its ratio is not valid"
    elif between is None:
        reason = "one launch shows no scatter between launches"
    elif between <= 1e-12:
        reason = "its launches do not differ at all, which no clock does"
    centre = math.fsum(medians) / len(medians)
    middle_count = round(stats.median([float(len(items)) for items in launches]))
    return Scatter(cell, len(launches), middle_count, noise, between, centre, aside, reason)


def _needed(found: Scatter, slowdown: float, rule: Rule, cells: int, wall: bool) -> Answer:
    if found.reason:
        return Answer(None, found.reason)
    if slowdown <= rule.smallest_effect:
        return Answer(None, f"below {rule.smallest_effect:.3g} nothing is called a slowdown")
    every = tuple(range(2, CAP + 1))
    p_values = _p_values(found, slowdown, every, rule)
    for launches in range(LOOKS[0], CAP + 1):
        if _alarms(p_values, every, looks_of(launches), cells, rule, wall).mean() >= POWER:
            return Answer(launches)
    return Answer(None, f"it takes more than {CAP} launches", CAP)


def _detectable(found: Scatter, looks: tuple[int, ...], rule: Rule, cells: int, wall: bool) -> Answer:
    def is_seen(slowdown: float) -> bool:
        return power(found, slowdown, looks, cells=cells, rule=rule, wall=wall) >= POWER

    low, high = rule.smallest_effect, _LARGEST
    if not is_seen(high):
        return Answer(None, f"not even a slowdown of {100 * high:.0f} % is called", high)
    while high - low > 1e-4:
        between = (low + high) / 2
        low, high = (low, between) if is_seen(between) else (between, high)
    return Answer(high)


def _p_values(found: Scatter, slowdown: float, counts: tuple[int, ...], rule: Rule) -> Array:
    """p-values of the rule (draws × counts) after each number of launches, for a cell that is slower by `slowdown`."""
    if found.within is None or found.between is None:
        raise ValueError(f"{found.cell}: {found.reason}")
    *parts, spread = _draw(max(counts[-1], CAP), found.rounds)
    launch, noise, noise_median = (part[:, : counts[-1]] for part in parts)
    # The recorded scatter of medians includes the part that comes from the noise of rounds.
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


def _alarms(
    p_values: Array, counts: Sequence[int], looks: tuple[int, ...], cells: int, rule: Rule, wall: bool
) -> Array:
    """Whether each draw is reported as slower at any of the looks."""
    spent = numpy.asarray(stats.alpha_spending(share_of_alpha(rule.alpha, has_wall=wall), len(looks)))
    at = [counts.index(look) for look in looks]
    called: Array = numpy.any(p_values[:, at] * cells <= spent, axis=1)
    return called


@lru_cache(maxsize=2)
def _draw(launches: int, rounds: int) -> tuple[Array, Array, Array, float]:
    """Standard normal draws for launches and rounds, the medians of the rounds, and the standard deviation of those.

    Every cell and slowdown uses the same draws, so that answers do not differ by chance.
    """
    generator = numpy.random.default_rng(rounds)
    noise = generator.standard_normal((DRAWS, launches, rounds))
    medians = numpy.median(noise, axis=2)
    return generator.standard_normal((DRAWS, launches)), noise, medians, float(medians.std())
