"""The gate's decision rule, on arrays: from paired rounds to a verdict per cell, of one gate or of thousands. No torch.

A slowdown is called only when two tests agree on it: a sign test over all rounds and Student's t over the launches'
medians. Rounds of one process share its luck, so the first alone raises false alarms (12.7 % of suites at a nominal 1
%); with few launches the second alone rests on a handful of values. Holm's procedure corrects over cells, alpha
spending over looks, and a verdict once reached is final.

A *suite* is one gate's worth of launches. `Gate` decides one as it is measured; `decide` decides many, resampled from a
recording. Both ask `evaluate` and `outcomes`. The gate of a stored run, which is not paired, has tests of its own and
asks `outcomes` too.
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
from effbench.gates.evidence import Evidence, middle

Array = NDArray[Any]

LOOKS = (4, 6, 9, 13)
"""Launches after which the gate looks."""
SMALLEST_EFFECT = 0.01
"""A slowdown below this is no regression."""
WALL_EFFECT = 0.10
"""CPU time does not see waiting, so a slowdown of the wall clock beyond this is a regression all the same."""
WALL_SHARE = 0.1
"""The share of alpha that the test of the wall clock may spend."""
POWER = 0.8
"""What `detectable` promises: this share of slowdowns of that size are called."""


@dataclass(frozen=True)
class Rule:
    """How the gate decides. `tolerance` and the effects are shares of the baseline's time: 0.03 is 3 %.

    `alpha` is the chance, over all cells and looks of one gate, to call a regression where no cell is slower than
    `smallest_effect`; per cell, also the chance to pass one that is slower than `tolerance`.
    """

    tolerance: float = 0.03
    alpha: float = 0.05
    looks: tuple[int, ...] = LOOKS
    smallest_effect: float = SMALLEST_EFFECT


class Outcome(IntEnum):
    """What a look finds of a cell, and why. PASS, SLOWER and WAITS are final."""

    PASS = 0
    SLOWER = 1
    WAITS = 2
    DISTURBED = 3
    CLOCKS_DISAGREE = 4
    NOT_SHOWN = 5
    WALL_SLOWER = 6
    UNSTEADY = 7

    @property
    def is_final(self) -> bool:
        return self <= Outcome.WAITS

    @property
    def verdict(self) -> Verdict:
        if self in REGRESSIONS:
            return "REGRESSION"
        if self is Outcome.PASS:
            return "PASS"
        return "ENVIRONMENT" if self is Outcome.DISTURBED else "INCONCLUSIVE"

    def reason(self, tolerance: float, *, disturbed: str = "", split: str = "", unsteady: str = "") -> str:
        """The outcome in words; the three doubts are those of the cell."""
        by_wall = f"more than {100 * WALL_EFFECT:.0f} % slower"
        return {
            Outcome.WAITS: f"it waits: {by_wall} by the wall clock",
            Outcome.DISTURBED: disturbed,
            Outcome.CLOCKS_DISAGREE: f"{split}; a verdict needs the wall clock to agree",
            Outcome.NOT_SHOWN: f"neither a slowdown nor its absence within {100 * tolerance:.3g} % is shown",
            Outcome.WALL_SLOWER: f"the wall clock reads {by_wall}, CPU time does not",
            Outcome.UNSTEADY: unsteady,
        }.get(self, "")


REGRESSIONS = (Outcome.SLOWER, Outcome.WAITS)
Verdict = Literal["REGRESSION", "PASS", "INCONCLUSIVE", "ENVIRONMENT"]


@dataclass(frozen=True)
class Clock:
    """What the tests say of every cell on one clock (suites × cells).

    One-sided p-values: `slower` of "more than the smallest effect slower", `absent` of "less than the tolerance
    slower". `change` is the log ratio itself, NaN where nothing was measured.
    """

    slower: Array
    absent: Array
    change: Array


@dataclass(frozen=True)
class Evaluation:
    """What `outcomes` decides on (suites × cells).

    `deciding` is the clock of the run; `wall` the wall clock where that is another one, and `waiting` the p-value of
    "more than `WALL_EFFECT` slower" on it. What `is_disturbed` proves nothing, what `is_unsteady` cannot pass. Where a
    cell `is_split`, the CPU clock misses work of it, and both clocks must agree on a verdict.
    """

    deciding: Clock
    is_disturbed: Array
    is_split: Array
    is_unsteady: Array
    wall: Clock | None = None
    waiting: Array | None = None


def outcomes(tested: Evaluation, alpha: float) -> Array:
    """The `Outcome` of every cell (suites × cells) at a look that may spend `alpha`."""
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
    cases = {  # the first that holds
        Outcome.DISTURBED: tested.is_disturbed,
        Outcome.SLOWER: is_slower,
        Outcome.WAITS: is_waiting,
        Outcome.CLOCKS_DISAGREE: is_against,
        Outcome.NOT_SHOWN: own.absent > alpha,
        Outcome.WALL_SLOWER: is_wall_slower,
        Outcome.UNSTEADY: tested.is_unsteady,
    }
    found: Array = numpy.select(list(cases.values()), list(cases), Outcome.PASS)
    return found


def improved(faster: Array, tested: Evaluation, alpha: float) -> Array:
    """Which cells are shown to be faster (suites × cells), by their p-values of that."""
    found: Array = (stats.holm(numpy.where(tested.is_disturbed, 1.0, faster)) <= alpha) & ~tested.is_split
    return found


def share_of_alpha(alpha: float, *, has_wall: bool) -> float:
    """What the deciding clock may spend of `alpha`."""
    return alpha * (1 - WALL_SHARE) if has_wall else alpha


# --- tests of paired rounds ---------------------------------------------------------------------------


def evaluate(
    evidence: Evidence, drawn: Array, rule: Rule, tolerances: Sequence[float] = (), shift: Array | float = 0.0
) -> Evaluation:
    """What the tests say of suites of these launches.

    Parameters
    ----------
    drawn
        Places of launches in the evidence (suites × launches).
    tolerances
        By cell; those of the rule by default.
    shift
        Added to the log ratios of a suite's cell (suites × cells).
    """
    within = numpy.asarray(tolerances or [rule.tolerance] * len(evidence.cells))
    is_split = _is_split(evidence, drawn)

    def read(values: Array, *, is_needed: bool = True) -> Clock:
        change = middle(middle(values)[:, drawn].transpose(1, 0, 2)) + shift
        if not is_needed:
            return Clock(numpy.ones(change.shape), numpy.ones(change.shape), change)
        absent = p_above(-values, drawn, 1 / (1 + within) - 1, -numpy.asarray(shift))
        return Clock(p_above(values, drawn, rule.smallest_effect, shift), absent, change)

    wall = evidence.wall
    return Evaluation(
        read(evidence.values),
        _is_disturbed(evidence.disturbed, drawn),
        is_split,
        _is_beyond(evidence.unsteady, drawn),
        None if wall is None else read(wall, is_needed=bool(is_split.any())),
        None if wall is None else p_above(wall, drawn, WALL_EFFECT, shift),
    )


def p_above(values: Array, drawn: Array, share: Array | float, shift: Array | float = 0.0) -> Array:
    """One-sided p-value of "more than `share` slower" of every suite's cell (suites × cells).

    The larger of the sign test over all rounds and the t test over launch medians, both on log ratios. 1.0 where the
    data cannot tell. `values` are cells × launches × rounds, `share` one for all or by cell.
    """
    threshold = numpy.log1p(share) - numpy.broadcast_to(shift, (len(drawn), len(values)))
    levels, level = numpy.unique(threshold, return_inverse=True)
    level = level.reshape(threshold.shape)
    medians = middle(values)[:, drawn].transpose(1, 0, 2)
    rounds = numpy.isfinite(values).sum(axis=2)[:, drawn].sum(axis=2).T
    p_values = numpy.ones(threshold.shape)
    for number, at in enumerate(levels):  # as many as there are slowdowns and tolerances: a few
        above = (values > at).sum(axis=2)[:, drawn].sum(axis=2).T
        found = numpy.maximum(stats.sign_p(above, rounds), stats.t_p(medians, at))
        p_values = numpy.where(level == number, found, p_values)
    return p_values


def detectable(medians: Sequence[float], alpha: float, smallest_effect: float = SMALLEST_EFFECT) -> float | None:
    """The smallest slowdown, as a share, that launches of these medians would have called with a chance of `POWER`.

    By the power of the t test; None below two launches and without scatter.
    """
    if len(medians) < 2 or not (scatter := stats.deviation(medians)):
        return None
    error = scatter / math.sqrt(len(medians))
    return math.expm1(math.log1p(smallest_effect) + stats.noticeable_shift(len(medians) - 1, alpha, POWER) * error)


def _is_disturbed(counts: Array, drawn: Array) -> Array:
    """`analysis.summary.too_many` of a suite's cell (suites × cells)."""
    bad, every = _summed(counts, drawn)
    beyond: Array = _is_beyond(counts, drawn) & ((bad > 1) | (bad == every))
    return beyond


def _is_beyond(counts: Array, drawn: Array) -> Array:
    """Whether more than a tenth is, of a suite's cell (suites × cells)."""
    bad, every = _summed(counts, drawn)
    beyond: Array = bad > CONTAMINATED_SHARE * every
    return beyond


def _summed(counts: Array, drawn: Array) -> Array:
    summed: Array = counts[:, drawn].sum(axis=2).transpose(2, 1, 0)
    return summed


def _is_split(evidence: Evidence, drawn: Array) -> Array:
    """Whether the CPU clock misses work of a suite's cell (suites × cells) on either side."""
    if evidence.shares is None:
        return numpy.zeros((len(drawn), len(evidence.cells)), dtype=bool)
    sides = [middle(side[:, drawn].transpose(1, 0, 2)) for side in evidence.shares]
    unusual: Array = numpy.any([(share < cpu_share.LEAST) | (share > cpu_share.MOST) for share in sides], axis=0)
    return unusual


# --- many gates at once, and one as it is measured ----------------------------------------------------


def decide(evidence: Evidence, drawn: Array, rule: Rule, shift: Array | float = 0.0) -> tuple[Array, Array]:
    """The last outcome of every cell in every suite, and the launches that each suite took until all were decided.

    `drawn` (suites × launches) are places of launches in the evidence, in the order in which a suite meets them;
    `shift` (suites × cells) is added to the log ratios of a suite's cell. Looks beyond the drawn launches do not
    happen: without any look a cell is NOT_SHOWN.
    """
    suites, launches = drawn.shape
    found = numpy.full((suites, len(evidence.cells)), Outcome.NOT_SHOWN)
    taken = numpy.zeros(suites, dtype=int)
    for look, alpha in zip(rule.looks, stats.alpha_spending(rule.alpha, len(rule.looks)), strict=True):
        if look > launches:
            break
        is_open = found > Outcome.WAITS
        taken[is_open.any(axis=1)] = look
        tested = evaluate(evidence, drawn[:, :look], rule, shift=shift)
        found = numpy.where(is_open, outcomes(tested, alpha), found)
    return found, taken


@dataclass(frozen=True)
class Looked:
    """What one look says of one cell. `detectable` is a share, None where one launch cannot tell."""

    verdict: Verdict
    reason: str = ""
    is_improved: bool = False
    detectable: float | None = None


@dataclass
class Gate:
    """The looks of one gate, in order. `tolerances` are those of single cells; the rest have the rule's."""

    cells: Sequence[str]
    rule: Rule = field(default_factory=Rule)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    found: dict[str, Looked] = field(default_factory=dict)
    """The latest word on each cell."""

    @property
    def undecided(self) -> list[str]:
        """Cells that more launches may still decide."""
        final = ("REGRESSION", "PASS")
        return [cell for cell in self.cells if cell not in self.found or self.found[cell].verdict not in final]

    def look_at(self, number: int, pair: Pair) -> dict[str, Looked]:
        """`look` at what is measured so far of both sides."""
        return self.look(number, Evidence.of(pair, self.cells))

    def look(self, number: int, evidence: Evidence) -> dict[str, Looked]:
        """The word on every cell after look `number`, from 0. Verdicts of earlier looks stand."""
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
            outcome, doubts = Outcome(said[place]), evidence.doubts(cell)
            if outcome is Outcome.DISTURBED:
                self.found[cell] = Looked(outcome.verdict, doubts["disturbed"])
                continue
            self.found[cell] = Looked(
                outcome.verdict,
                outcome.reason(tolerances[place], **doubts),
                is_improved[place],
                detectable(evidence.medians(cell, by_wall=bool(doubts["split"])), share, rule.smallest_effect),
            )
        return dict(self.found)
