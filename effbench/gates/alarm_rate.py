"""How often the gate is right and wrong, over suites resampled from one recorded A/A measurement. No torch.

A suite draws launches of the recording, the same for all its cells, and the gate meets them in the order drawn. A
slowdown is a multiplication of one cell's candidate times: multiplied, not injected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate
from effbench.gates.decision_rule import REGRESSIONS, Outcome, Rule, decide
from effbench.gates.evidence import Evidence

Array = NDArray[Any]

SLOWDOWNS = (0.03, 0.05, 0.10)
SUITES = 300
"""No alarm in so many suites is what supports "at most 1 %" at 95 % confidence (one-sided)."""


@dataclass(frozen=True)
class GateOutcome:
    """What the gate said when one cell of each suite was this much slower (0: none was).

    `called`, `undecided` (INCONCLUSIVE or ENVIRONMENT) and `passed` are shares of the slowed cells, at 0 of all cells;
    the `suite_…` are shares of whole suites by their worst cell. `launches` is the mean number that a suite took until
    every cell was decided.
    """

    slowdown: float
    called: Estimate
    undecided: Estimate
    passed: Estimate
    suite_called: Estimate
    suite_undecided: Estimate
    suite_passed: Estimate
    launches: float


@dataclass(frozen=True)
class AlarmRate:
    """What became of all suites. `launches` is the most that a suite draws, `recorded` what there was to draw from.

    `caveats` are sentences on what these figures are worth; without any undisturbed round there is nothing else.
    """

    cells: tuple[str, ...]
    clock: str
    rule: Rule
    suites: int
    launches: int
    recorded: int
    gate: tuple[GateOutcome, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class Suites:
    """Suites drawn from a recording: places of launches (suites × launches), and the cell that is slowed in each."""

    drawn: Array
    slowed: Array


def resample(
    recorded: Evidence,
    *,
    suites: int = SUITES,
    slowdowns: Sequence[float] = SLOWDOWNS,
    seed: int = 0,
    rule: Rule | None = None,
    launches: int | None = None,
) -> AlarmRate:
    """Resample suites from a recording and let the gate decide each, at no slowdown and at each of these.

    Parameters
    ----------
    recorded
        An A/A measurement: both sides are the same code.
    launches
        The most that a suite may take, by default as many as the rule's last look. They are drawn without replacement
        where the recording holds enough.

    Raises
    ------
    InvalidValue
        For suites or launches below one, or a slowdown of zero or less.
    """
    judged = rule or Rule()
    most = judged.looks[-1] if launches is None else launches
    for name, value in (("suites", suites), ("launches", most)):
        if value < 1:
            raise InvalidValue(f"{name} (={value}) must be at least 1")
    if min(slowdowns, default=1.0) <= 0:
        raise InvalidValue(f"a slowdown (={min(slowdowns)}) must be above zero, such as 0.03 for 3 %")
    drawn = draw_suites(recorded, most, suites, numpy.random.default_rng(seed)) if recorded.usable else None
    return AlarmRate(
        recorded.cells,
        recorded.clock,
        judged,
        suites,
        most,
        len(recorded.launches),
        () if drawn is None else tuple(_outcome(recorded, drawn, each, judged) for each in (0.0, *slowdowns)),
        _caveats(recorded, most, judged),
    )


def draw_suites(recorded: Evidence, launches: int, suites: int, generator: numpy.random.Generator) -> Suites:
    """Suites of so many launches, in each of which one usable cell is to be slowed."""
    slowed = generator.choice([recorded.cells.index(cell) for cell in recorded.usable], suites)
    return Suites(draw(len(recorded.launches), launches, suites, generator), slowed)


def draw(recorded: int, launches: int, suites: int, generator: numpy.random.Generator) -> Array:
    """Places of launches (suites × launches): no launch twice in a suite where there are enough."""
    if launches > recorded:
        return generator.integers(recorded, size=(suites, launches))
    return generator.permuted(numpy.tile(numpy.arange(recorded), (suites, 1)), axis=1)[:, :launches]


def share(said: Any) -> Estimate:
    """The share of truths among these, with its exact interval."""
    return stats.proportion_interval(int(sum(said)), len(said))


def _outcome(recorded: Evidence, suites: Suites, slowdown: float, rule: Rule) -> GateOutcome:
    own = numpy.arange(len(recorded.cells)) == suites.slowed[:, None]
    found, taken = decide(recorded, suites.drawn, rule, numpy.where(own, math.log1p(slowdown), 0.0))
    is_called, is_passed = numpy.isin(found, REGRESSIONS), found == Outcome.PASS
    usable = numpy.isin(recorded.cells, recorded.usable)
    called, passed = (each[own] if slowdown else each[:, usable].ravel() for each in (is_called, is_passed))
    suite_called, suite_passed = is_called.any(axis=1), is_passed.all(axis=1)
    return GateOutcome(
        slowdown,
        share(called),
        share(~called & ~passed),
        share(passed),
        share(suite_called),
        share(~suite_called & ~suite_passed),
        share(suite_passed),
        float(numpy.where(taken > 0, taken, suites.drawn.shape[1]).mean()),
    )


def _caveats(recorded: Evidence, launches: int, rule: Rule) -> tuple[str, ...]:
    count, usable, most = len(recorded.launches), recorded.usable, min(launches, rule.looks[-1])
    if not usable:
        return ("No cell has an undisturbed round on both sides, so there is nothing to decide on.",)
    found = []
    if most > count:
        found.append(
            f"A suite takes up to {launches} launches and {count} were recorded, so they are drawn with replacement: "
            "the same launch counts more than once, which makes the gate surer than it is."
        )
    elif most == count:
        found.append(
            f"Every suite ends with the same {count} launches, only met in another order: with twice as many the "
            "shares begin to mean something."
        )
    else:
        found.append(
            f"Suites draw up to {launches} of {count} recorded launches without replacement, so they share launches: "
            "the figures rank rules and do not certify a rate."
        )
    if launches < rule.looks[0]:
        found.append(f"The gate first looks at {rule.looks[0]} launches: with {launches} it decides nothing.")
    for cell in recorded.cells:
        if cell not in usable:
            aside = recorded.set_aside(cell)
            reason = f"all its {aside} rounds were disturbed" if aside else "it has no rounds on both sides"
            found.append(f"{cell} says nothing: {reason}.")
        elif split := recorded.cpu_share(cell):
            found.append(f"{cell}: {split}, so a verdict needs both clocks to agree.")
    return tuple(found)
