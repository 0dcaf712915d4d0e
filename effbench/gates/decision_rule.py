"""The decision rule of the gates: turn paired rounds into a verdict for each cell. Works on arrays, without torch.

A slowdown is reported only when two tests reject: a sign test over all rounds and Student's t test over the launch
medians. Rounds of one process are correlated, so the sign test alone raises false alarms (12.7 % of suites at a nominal
1 %). With few launches the t test alone rests on a handful of values. Holm's procedure corrects for the number of
cells, alpha spending for the number of looks. A look is an interim analysis. A verdict, once reached, is final.

A *suite* is the set of launches of one gate. `Gate` decides one suite while it is measured. `decide` decides many
suites that were resampled from a recorded measurement. Both use `evaluate` and `outcomes`. The gate of a stored run has
no pairs: it computes its own tests (`baseline`) and uses `outcomes` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from effbench.analysis import cpu_share, stats
from effbench.analysis.summary import CONTAMINATED_SHARE
from effbench.gates.ab_pairs import Pair
from effbench.gates.evidence import Evidence, nan_median

Array = NDArray[Any]

LOOKS = (4, 6, 9, 13)
"""Numbers of launches after which the gate runs its tests (the looks)."""
SMALLEST_EFFECT = 0.01
"""A slowdown below this share is never a regression."""
WALL_EFFECT = 0.10
"""A slowdown in wall time above this share is a regression even where CPU time decides: CPU time misses waiting."""
WALL_SHARE = 0.1
"""The share of alpha that the test of the wall clock may spend."""
POWER = 0.8
"""The power of `detectable`: the probability that a slowdown of that size is reported."""


@dataclass(frozen=True)
class Rule:
    """The parameters of the decision rule. `tolerance` and `smallest_effect` are shares of the baseline's time (0.03 is
    3 %).

    `alpha` is the false-alarm rate of one gate over all its cells and looks: the probability of any REGRESSION while no
    cell is slower than `smallest_effect`. For each cell it is also the probability of PASS while the cell is slower
    than `tolerance`.
    """

    tolerance: float = 0.03
    alpha: float = 0.05
    looks: tuple[int, ...] = LOOKS
    smallest_effect: float = SMALLEST_EFFECT


class CellOutcome(IntEnum):
    """The outcome of one cell at one look, with its cause. PASS, SLOWER and WAITS are final.

    WAITS is a slowdown in wall time that CPU time does not show.
    """

    PASS = 0
    SLOWER = 1
    WAITS = 2
    DISTURBED = 3
    CLOCKS_DISAGREE = 4
    NOT_SHOWN = 5
    WALL_SLOWER = 6
    UNSTEADY = 7

    @property
    def verdict(self) -> RuleVerdict:
        if self in REGRESSIONS:
            return "REGRESSION"
        if self is CellOutcome.PASS:
            return "PASS"
        return "ENVIRONMENT" if self is CellOutcome.DISTURBED else "INCONCLUSIVE"

    def reason(self, tolerance: float, *, disturbed: str = "", split: str = "", unsteady: str = "") -> str:
        """The outcome as a sentence. `disturbed`, `split` and `unsteady` are the cell's texts of `Evidence.doubts`."""
        by_wall = f"more than {100 * WALL_EFFECT:.0f} % slower"
        return {
            CellOutcome.WAITS: f"it waits longer: {by_wall} in wall time",
            CellOutcome.DISTURBED: disturbed,
            CellOutcome.CLOCKS_DISAGREE: f"{split}; a verdict needs the wall clock to agree",
            CellOutcome.NOT_SHOWN: f"neither a slowdown nor its absence within {100 * tolerance:.3g} % is shown",
            CellOutcome.WALL_SLOWER: f"{by_wall} in wall time, not in CPU time",
            CellOutcome.UNSTEADY: unsteady,
        }.get(self, "")


REGRESSIONS = (CellOutcome.SLOWER, CellOutcome.WAITS)
RuleVerdict = Literal["REGRESSION", "PASS", "INCONCLUSIVE", "ENVIRONMENT"]


@dataclass(frozen=True)
class Clock:
    """Test results of every cell on one clock; arrays of suites × cells.

    `slower` is the one-sided p-value for "slower by more than the smallest effect", `absent` the one for "slower by
    less than the tolerance". `change` is the log ratio, NaN where nothing was measured.
    """

    slower: Array
    absent: Array
    change: Array


@dataclass(frozen=True)
class Evaluation:
    """The input of `outcomes`; arrays of suites × cells.

    `deciding` holds the tests on the run's own clock. `wall` holds those on the wall clock where that is another one,
    and `waiting` the p-value for "slower by more than `WALL_EFFECT`" in wall time. A cell that `is_disturbed` gets no
    verdict, and one that `is_unsteady` cannot pass. Where `is_split`, CPU time misses part of the cell's work, so both
    clocks must agree on a verdict.
    """

    deciding: Clock
    is_disturbed: Array
    is_split: Array
    is_unsteady: Array
    wall: Clock | None = None
    waiting: Array | None = None


def outcomes(tested: Evaluation, alpha: float) -> Array:
    """The `CellOutcome` of every cell (suites × cells) at a look with significance level `alpha`."""
    own, wall, is_split = tested.deciding, tested.wall, tested.is_split
    share = share_of_alpha(alpha, has_wall=wall is not None)
    is_slower = stats.holm(numpy.where(tested.is_disturbed, 1.0, own.slower)) <= share
    is_waiting = is_against = is_wall_slower = numpy.zeros(is_slower.shape, dtype=bool)
    if wall is not None and tested.waiting is not None:
        by_wall = stats.holm(numpy.where(tested.is_disturbed | ~is_split, 1.0, wall.slower)) <= share
        is_slower &= ~is_split | by_wall
        is_waiting = stats.holm(numpy.where(tested.is_disturbed, 1.0, tested.waiting)) <= alpha * WALL_SHARE
        is_apart = numpy.abs(own.change - wall.change) > math.log1p(WALL_EFFECT)
        is_against = is_split & (is_apart | (own.absent > alpha) | (wall.absent > alpha))
        is_wall_slower = wall.change > math.log1p(WALL_EFFECT)
    cases = {  # the first condition that holds decides
        CellOutcome.DISTURBED: tested.is_disturbed,
        CellOutcome.SLOWER: is_slower,
        CellOutcome.WAITS: is_waiting,
        CellOutcome.CLOCKS_DISAGREE: is_against,
        CellOutcome.NOT_SHOWN: own.absent > alpha,
        CellOutcome.WALL_SLOWER: is_wall_slower,
        CellOutcome.UNSTEADY: tested.is_unsteady,
    }
    found: Array = numpy.select(list(cases.values()), list(cases), CellOutcome.PASS)
    return found


def improved(faster: Array, tested: Evaluation, alpha: float) -> Array:
    """Which cells are significantly faster (suites × cells); `faster` holds their one-sided p-values."""
    found: Array = (stats.holm(numpy.where(tested.is_disturbed, 1.0, faster)) <= alpha) & ~tested.is_split
    return found


def share_of_alpha(alpha: float, *, has_wall: bool) -> float:
    """The part of `alpha` for the tests on the deciding clock; the wall-clock test gets the rest."""
    return alpha * (1 - WALL_SHARE) if has_wall else alpha


# --- tests of paired rounds ---------------------------------------------------------------------------


def evaluate(
    evidence: Evidence, drawn: Array, rule: Rule, tolerances: Sequence[float] = (), shift: Array | float = 0.0
) -> Evaluation:
    """Test every cell of every suite.

    Parameters
    ----------
    drawn
        Indices of launches in the evidence (suites × launches).
    tolerances
        The tolerance of each cell. Default: the rule's.
    shift
        Simulated change, added to the log ratios (suites × cells).
    """
    within = numpy.asarray(tolerances or [rule.tolerance] * len(evidence.cells))
    is_split = _is_split(evidence, drawn)

    def read(values: Array, *, is_needed: bool = True) -> Clock:
        change = nan_median(nan_median(values)[:, drawn].transpose(1, 0, 2)) + shift
        if not is_needed:
            return Clock(numpy.ones(change.shape), numpy.ones(change.shape), change)
        absent = p_above(-values, drawn, 1 / (1 + within) - 1, -numpy.asarray(shift))
        return Clock(p_above(values, drawn, rule.smallest_effect, shift), absent, change)

    wall = evidence.wall
    return Evaluation(
        read(evidence.values),
        _is_disturbed(evidence.disturbed, drawn),
        is_split,
        _exceeds_share(evidence.unsteady, drawn),
        None if wall is None else read(wall, is_needed=bool(is_split.any())),
        None if wall is None else p_above(wall, drawn, WALL_EFFECT, shift),
    )


def p_above(values: Array, drawn: Array, share: Array | float, shift: Array | float = 0.0) -> Array:
    """One-sided p-values for "slower by more than `share`" (suites × cells).

    Each is the larger p-value of the sign test over all rounds and the t test over launch medians, both on log ratios.
    It is 1.0 where there is too little data. `values` has the shape cells × launches × rounds. `share` is one number
    or one a cell.
    """
    threshold = numpy.log1p(share) - numpy.broadcast_to(shift, (len(drawn), len(values)))
    levels, level = numpy.unique(threshold, return_inverse=True)
    level = level.reshape(threshold.shape)
    medians = nan_median(values)[:, drawn].transpose(1, 0, 2)
    rounds = numpy.isfinite(values).sum(axis=2)[:, drawn].sum(axis=2).T
    p_values = numpy.ones(threshold.shape)
    for number, at in enumerate(levels):  # one a distinct threshold, of which there are few
        above = (values > at).sum(axis=2)[:, drawn].sum(axis=2).T
        found = numpy.maximum(stats.sign_p(above, rounds), stats.t_p(medians, at))
        p_values = numpy.where(level == number, found, p_values)
    return p_values


def detectable(medians: Sequence[float], alpha: float, smallest_effect: float = SMALLEST_EFFECT) -> float | None:
    """The smallest slowdown, as a share, that the t test on these launch medians detects with power `POWER`.

    None below two launches, and where the medians do not vary.
    """
    if len(medians) < 2 or not (scatter := stats.deviation(medians)):
        return None
    error = scatter / math.sqrt(len(medians))
    return math.expm1(math.log1p(smallest_effect) + stats.noticeable_shift(len(medians) - 1, alpha, POWER) * error)


def _is_disturbed(counts: Array, drawn: Array) -> Array:
    """Whether too many rounds were disturbed (suites × cells), as `analysis.summary.are_too_many` defines it."""
    bad, every = _totals(counts, drawn)
    beyond: Array = _exceeds_share(counts, drawn) & ((bad > 1) | (bad == every))
    return beyond


def _exceeds_share(counts: Array, drawn: Array) -> Array:
    """Whether more than `CONTAMINATED_SHARE` of the rounds or warm-ups are affected (suites × cells)."""
    bad, every = _totals(counts, drawn)
    beyond: Array = bad > CONTAMINATED_SHARE * every
    return beyond


def _totals(counts: Array, drawn: Array) -> Array:
    summed: Array = counts[:, drawn].sum(axis=2).transpose(2, 1, 0)
    return summed


def _is_split(evidence: Evidence, drawn: Array) -> Array:
    """Whether CPU time misses part of the work on either side (suites × cells)."""
    if evidence.shares is None:
        return numpy.zeros((len(drawn), len(evidence.cells)), dtype=bool)
    sides = [nan_median(side[:, drawn].transpose(1, 0, 2)) for side in evidence.shares]
    unusual: Array = numpy.any(
        [(share < cpu_share.MIN_USUAL) | (share > cpu_share.MAX_USUAL) for share in sides], axis=0
    )
    return unusual


# --- decide many recorded suites, or one while it is measured ----------------------------------------------------


def decide(evidence: Evidence, drawn: Array, rule: Rule, shift: Array | float = 0.0) -> tuple[Array, Array]:
    """The last outcome of every cell in every suite, and the number of launches until each suite was decided.

    `drawn` (suites × launches) holds indices of launches in the evidence, in measuring order. `shift` (suites × cells)
    is added to the log ratios. Looks that need more launches than were drawn are left out. A cell without any look is
    NOT_SHOWN.
    """
    suites, launches = drawn.shape
    found = numpy.full((suites, len(evidence.cells)), CellOutcome.NOT_SHOWN)
    taken = numpy.zeros(suites, dtype=int)
    for look, alpha in zip(rule.looks, stats.alpha_spending(rule.alpha, len(rule.looks)), strict=True):
        if look > launches:
            break
        is_open = found > CellOutcome.WAITS
        taken[is_open.any(axis=1)] = look
        tested = evaluate(evidence, drawn[:, :look], rule, shift=shift)
        found = numpy.where(is_open, outcomes(tested, alpha), found)
    return found, taken


@dataclass(frozen=True)
class CellVerdict:
    """The verdict of one look on one cell. `detectable` is a share (0.03 is 3 %), None below two launches."""

    verdict: RuleVerdict
    reason: str = ""
    is_improved: bool = False
    detectable: float | None = None


@dataclass
class Gate:
    """Apply the rule to one suite, look after look. `tolerances` override the rule's tolerance for single cells."""

    cells: Sequence[str]
    rule: Rule = field(default_factory=Rule)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    found: dict[str, CellVerdict] = field(default_factory=dict)
    """The latest verdict of each cell."""

    @property
    def undecided(self) -> list[str]:
        """The cells without a final verdict."""
        final = ("REGRESSION", "PASS")
        return [cell for cell in self.cells if cell not in self.found or self.found[cell].verdict not in final]

    def look_at(self, number: int, pair: Pair) -> dict[str, CellVerdict]:
        """Run look `number` (from 0) on the runs measured so far."""
        return self.look(number, Evidence.of(pair, self.cells))

    def look(self, number: int, evidence: Evidence) -> dict[str, CellVerdict]:
        """The verdict of every cell after look `number` (from 0). Final verdicts of earlier looks are kept."""
        rule, every = self.rule, numpy.arange(len(evidence.launches))[None]
        alpha = stats.alpha_spending(rule.alpha, len(rule.looks))[number]
        tolerances = [self.tolerances.get(cell, rule.tolerance) for cell in self.cells]
        tested = evaluate(evidence, every, rule, tolerances)
        said = outcomes(tested, alpha)[0].tolist()
        is_improved = improved(p_above(-evidence.values, every, rule.smallest_effect), tested, alpha)[0].tolist()
        share = share_of_alpha(alpha, has_wall=evidence.wall is not None) / max(len(self.cells), 1)
        for place, cell in enumerate(self.cells):
            if cell not in self.undecided:
                continue
            outcome, doubts = CellOutcome(said[place]), evidence.doubts(cell)
            if outcome is CellOutcome.DISTURBED:
                self.found[cell] = CellVerdict(outcome.verdict, doubts["disturbed"])
                continue
            self.found[cell] = CellVerdict(
                outcome.verdict,
                outcome.reason(tolerances[place], **doubts),
                is_improved[place],
                detectable(evidence.medians(cell, by_wall=bool(doubts["split"])), share, rule.smallest_effect),
            )
        return dict(self.found)
