"""Estimate the gate's alarm rates by resampling suites from one recorded A/A measurement. Without torch.

A suite draws launches of the recording, the same for all its cells, and the gate sees them in the order drawn. A
slowdown is simulated: the candidate times of one cell are multiplied by a factor.
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
from effbench.gates.decision_rule import REGRESSIONS, CellOutcome, Rule, decide
from effbench.gates.evidence import Evidence

Array = NDArray[Any]

SLOWDOWNS = (0.03, 0.05, 0.10)
SUITES = 300
"""Zero alarms in this many suites show a rate of "at most 1 %" at 95 % confidence (one-sided)."""


@dataclass(frozen=True)
class GateOutcome:
    """The gate's verdicts when one cell of each suite is slower by `slowdown` (0: no cell is slower).

    `called` (REGRESSION), `undecided` (INCONCLUSIVE or ENVIRONMENT) and `passed` are shares of the slowed cells; at
    slowdown 0 they are shares of all cells. The `suite_…` fields are shares of suites by their worst cell. `launches`
    is the mean number of launches until every cell of a suite was decided.
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
    """The alarm rates over all suites. A suite draws at most `launches` of the `recorded` launches.

    `caveats` are sentences on the limits of these figures. Without any undisturbed round `gate` is empty.
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
    """Resampled suites: indices of drawn launches (suites × launches), and the index of the slowed cell in each."""

    drawn: Array
    slowed: Array


def resample(
    recorded: Evidence,
    *,
    suites: int = SUITES,
    slowdowns: Sequence[float] = SLOWDOWNS,
    seed: int = 0,
    rule: Rule | None = None,
) -> AlarmRate:
    """Resample suites from a recording and let the gate decide each, without and with every simulated slowdown.

    Parameters
    ----------
    recorded
        An A/A measurement: both sides are the same code.
    rule
        A suite has as many launches as its last look. They are drawn without replacement where the recording holds
        enough.

    Raises
    ------
    InvalidValue
        For suites below one, or a slowdown of zero or less.
    """
    judged = rule or Rule()
    launches = judged.looks[-1]
    if suites < 1:
        raise InvalidValue(f"suites (={suites}) must be at least 1")
    if min(slowdowns, default=1.0) <= 0:
        raise InvalidValue(f"a slowdown (={min(slowdowns)}) must be above zero, such as 0.03 for 3 %")
    drawn = draw_suites(recorded, launches, suites, numpy.random.default_rng(seed)) if recorded.usable else None
    return AlarmRate(
        recorded.cells,
        recorded.clock,
        judged,
        suites,
        launches,
        len(recorded.launches),
        () if drawn is None else tuple(_outcome(recorded, drawn, each, judged) for each in (0.0, *slowdowns)),
        _caveats(recorded, launches),
    )


def draw_suites(recorded: Evidence, launches: int, suites: int, generator: numpy.random.Generator) -> Suites:
    """Draw suites of `launches` launches each, and one usable cell of each suite to slow down."""
    slowed = generator.choice([recorded.cells.index(cell) for cell in recorded.usable], suites)
    return Suites(draw(len(recorded.launches), launches, suites, generator), slowed)


def draw(recorded: int, launches: int, suites: int, generator: numpy.random.Generator) -> Array:
    """Draw indices of launches (suites × launches), without replacement within a suite where there are enough."""
    if launches > recorded:
        return generator.integers(recorded, size=(suites, launches))
    return generator.permuted(numpy.tile(numpy.arange(recorded), (suites, 1)), axis=1)[:, :launches]


def proportion(is_true: Any) -> Estimate:
    """The share of true values, with its exact interval."""
    return stats.proportion_interval(int(sum(is_true)), len(is_true))


def _outcome(recorded: Evidence, suites: Suites, slowdown: float, rule: Rule) -> GateOutcome:
    own = numpy.arange(len(recorded.cells)) == suites.slowed[:, None]
    found, taken = decide(recorded, suites.drawn, rule, numpy.where(own, math.log1p(slowdown), 0.0))
    is_called, is_passed = numpy.isin(found, REGRESSIONS), found == CellOutcome.PASS
    usable = numpy.isin(recorded.cells, recorded.usable)
    called, passed = (each[own] if slowdown else each[:, usable].ravel() for each in (is_called, is_passed))
    suite_called, suite_passed = is_called.any(axis=1), is_passed.all(axis=1)
    return GateOutcome(
        slowdown,
        proportion(called),
        proportion(~called & ~passed),
        proportion(passed),
        proportion(suite_called),
        proportion(~suite_called & ~suite_passed),
        proportion(suite_passed),
        float(numpy.where(taken > 0, taken, suites.drawn.shape[1]).mean()),
    )


def _caveats(recorded: Evidence, launches: int) -> tuple[str, ...]:
    count, usable = len(recorded.launches), recorded.usable
    if not usable:
        return ("No cell has an undisturbed round on both sides, so there is nothing to decide on.",)
    found = []
    if launches > count:
        found.append(
            f"A suite takes up to {launches} launches and {count} were recorded, so they are drawn with replacement: "
            "a launch may count more than once, which makes the gate look more certain than it is."
        )
    elif launches == count:
        found.append(
            f"Every suite ends with the same {count} launches, only in another order. Record at least twice as many "
            "for shares that mean something."
        )
    else:
        found.append(
            f"Suites draw up to {launches} of {count} recorded launches without replacement, so they share launches: "
            "the intervals are narrower than those of independent suites."
        )
    for cell in recorded.cells:
        if cell not in usable:
            aside = recorded.set_aside(cell)
            reason = f"all its {aside} rounds were disturbed" if aside else "it has no rounds on both sides"
            found.append(f"{cell} cannot be judged: {reason}.")
        elif split := recorded.cpu_share(cell):
            found.append(f"{cell}: {split}, so a verdict needs both clocks to agree.")
    return tuple(found)
