"""The decision of the interleaved gate: from paired rounds to a verdict per cell. Pure, no torch.

A slowdown is called only when two tests agree on it: a sign test over all rounds and Student's t over the launches'
medians. Rounds of one process share its luck, so the first alone raises false alarms (12.7 % of suites at a nominal 1
%); with few launches the second alone rests on a handful of values. Holm's procedure corrects over cells, alpha
spending over looks, and a verdict once reached is final.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from effbench import stats

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

Launches = Sequence[Sequence[float]]
"""Log ratios, candidate over baseline: one sequence of rounds a launch."""


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


@dataclass(frozen=True)
class Looked:
    """What one look says of one cell. `detectable` is a share, None where one launch cannot tell."""

    verdict: Literal["REGRESSION", "PASS", "INCONCLUSIVE"]
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
        return [
            cell for cell in self.cells if cell not in self.found or self.found[cell].verdict == "INCONCLUSIVE"
        ]

    def look(
        self, number: int, ratios: Mapping[str, Launches], wall: Mapping[str, Launches] | None = None
    ) -> dict[str, Looked]:
        """The word on every cell after look `number`, from 0. Verdicts of earlier looks stand.

        `ratios` are on the clock that decides, `wall` on the wall clock where that is another one.
        """
        alpha = stats.alpha_spending(self.rule.alpha, len(self.rule.looks))[number]
        share = alpha * (1 - WALL_SHARE) if wall else alpha
        slower = _adjusted(self.cells, ratios, self.rule.smallest_effect)
        waiting = _adjusted(self.cells, wall or {}, WALL_EFFECT)
        faster = _adjusted(self.cells, {name: _mirrored(each) for name, each in ratios.items()}, self.rule.smallest_effect)
        for cell in self.undecided:
            launches, tolerance = ratios.get(cell, ()), self.tolerances.get(cell, self.rule.tolerance)
            self.found[cell] = replace(
                _word(
                    launches,
                    (wall or {}).get(cell, ()),
                    is_slower=slower[cell] <= share,
                    is_waiting=bool(wall) and waiting[cell] <= alpha * WALL_SHARE,
                    tolerance=tolerance,
                    alpha=alpha,
                ),
                is_improved=faster[cell] <= alpha,
                detectable=detectable(launches, share / len(self.cells), self.rule.smallest_effect),
            )
        return dict(self.found)


def p_above(launches: Launches, share: float) -> float:
    """One-sided p-value of "the candidate is more than `share` slower": the larger of the sign test over all rounds and
    the t test over launch medians, both on log ratios. 1.0 where the data cannot tell.
    """
    threshold = math.log1p(share)
    rounds = [value for launch in launches for value in launch]
    medians = [stats.median(launch) for launch in launches if launch]
    if not rounds or not all(map(math.isfinite, rounds)):
        return 1.0
    return max(stats.sign_test(rounds, threshold), stats.t_test(medians, threshold))


def p_below(launches: Launches, share: float) -> float:
    """One-sided p-value of "the candidate is less than `share` slower"."""
    return p_above(_mirrored(launches), 1 / (1 + share) - 1)


def detectable(launches: Launches, alpha: float, smallest_effect: float = SMALLEST_EFFECT) -> float | None:
    """The smallest slowdown, as a share, that these launches would have called with a chance of four in five.

    From the scatter of the launches' medians (the t test's power, by its normal shift); None below two launches.
    """
    medians = [stats.median(launch) for launch in launches if launch]
    if len(medians) < 2 or not all(map(math.isfinite, medians)):
        return None
    error = stats.deviation(medians) / math.sqrt(len(medians))
    freedom = len(medians) - 1
    needed = stats.t_quantile(1 - alpha, freedom) + stats.t_quantile(POWER, freedom)
    return math.expm1(math.log1p(smallest_effect) + needed * error)


def _word(
    launches: Launches,
    wall: Launches,
    *,
    is_slower: bool,
    is_waiting: bool,
    tolerance: float,
    alpha: float,
) -> Looked:
    if is_slower:
        return Looked("REGRESSION")
    if is_waiting:
        return Looked("REGRESSION", f"it waits: more than {WALL_EFFECT:.0%} slower by the wall clock")
    if p_below(launches, tolerance) > alpha:
        return Looked("INCONCLUSIVE", f"neither a slowdown nor its absence within {tolerance:.3g} is shown")
    medians = [stats.median(launch) for launch in wall if launch]
    if medians and stats.median(medians) > math.log1p(WALL_EFFECT):
        return Looked("INCONCLUSIVE", f"the wall clock reads more than {WALL_EFFECT:.0%} slower, CPU time does not")
    return Looked("PASS")


def _adjusted(cells: Sequence[str], ratios: Mapping[str, Launches], share: float) -> dict[str, float]:
    """Each cell's p-value of a slowdown above `share`, corrected over all cells (Holm)."""
    values = stats.holm([p_above(ratios.get(cell, ()), share) for cell in cells])
    return dict(zip(cells, values, strict=True))


def _mirrored(launches: Launches) -> list[list[float]]:
    return [[-value for value in launch] for launch in launches]
