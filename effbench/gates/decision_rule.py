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

from effbench.analysis import stats
from effbench.analysis.summary import CONTAMINATED_SHARE, too_many
from effbench.core.cost import Cost
from effbench.core.estimate import Estimate
from effbench.gates import ab_pairs, budgets
from effbench.gates.ab_pairs import Pair
from effbench.gates.result import Finding, Word

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

    verdict: Literal["REGRESSION", "PASS", "INCONCLUSIVE", "ENVIRONMENT"]
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
            cell
            for cell in self.cells
            if cell not in self.found or self.found[cell].verdict in ("INCONCLUSIVE", "ENVIRONMENT")
        ]

    def look_at(self, number: int, pair: Pair) -> dict[str, Looked]:
        """`look` at what is measured so far of both sides."""
        seen = {cell: Evidence.of(pair, cell) for cell in self.cells}
        return self.look(
            number,
            {cell: each.launches for cell, each in seen.items()},
            {cell: each.wall for cell, each in seen.items()} if pair.clock != "wall" else None,
            disturbed={cell: each.disturbed for cell, each in seen.items() if each.disturbed},
            unsteady={cell: each.unsteady for cell, each in seen.items() if each.unsteady},
            split={cell: each.split for cell, each in seen.items() if each.split},
        )

    def look(
        self,
        number: int,
        ratios: Mapping[str, Launches],
        wall: Mapping[str, Launches] | None = None,
        *,
        disturbed: Mapping[str, str] | None = None,
        unsteady: Mapping[str, str] | None = None,
        split: Mapping[str, str] | None = None,
    ) -> dict[str, Looked]:
        """The word on every cell after look `number`, from 0. Verdicts of earlier looks stand.

        `ratios` are on the clock that decides, `wall` on the wall clock where that is another one. What is `disturbed`
        proves nothing and what is `unsteady` cannot pass, each for the reason given. Where a cell is `split`, the CPU
        clock misses work of it, and both clocks must agree on a verdict.
        """
        disturbed, unsteady, split = disturbed or {}, unsteady or {}, split or {}
        ratios = {cell: launches for cell, launches in ratios.items() if cell not in disturbed}
        wall = {cell: launches for cell, launches in wall.items() if cell in ratios} if wall else None
        alpha = stats.alpha_spending(self.rule.alpha, len(self.rule.looks))[number]
        share = alpha * (1 - WALL_SHARE) if wall else alpha
        slower = _adjusted(self.cells, ratios, self.rule.smallest_effect)
        waiting = _adjusted(self.cells, wall or {}, WALL_EFFECT)
        slower_by_wall = _adjusted(
            self.cells, {name: each for name, each in (wall or {}).items() if name in split}, self.rule.smallest_effect
        )
        faster = _adjusted(
            self.cells, {name: _mirrored(each) for name, each in ratios.items()}, self.rule.smallest_effect
        )
        for cell in self.undecided:
            if cell in disturbed:
                self.found[cell] = Looked("ENVIRONMENT", disturbed[cell])
                continue
            launches, tolerance = ratios.get(cell, ()), self.tolerances.get(cell, self.rule.tolerance)
            by_wall, split_by = (wall or {}).get(cell, ()), split.get(cell, "")
            self.found[cell] = replace(
                _word(
                    launches,
                    by_wall,
                    is_slower=slower[cell] <= share and (not split_by or slower_by_wall[cell] <= share),
                    is_waiting=bool(wall) and waiting[cell] <= alpha * WALL_SHARE,
                    tolerance=tolerance,
                    alpha=alpha,
                    unsteady=unsteady.get(cell, ""),
                    split=split_by,
                ),
                is_improved=faster[cell] <= alpha and not split_by,
                detectable=detectable(
                    by_wall if split_by else launches, share / len(self.cells), self.rule.smallest_effect
                ),
            )
        return dict(self.found)


def p_above(launches: Launches, share: float) -> float:
    """One-sided p-value of "the candidate is more than `share` slower": the larger of the sign test over all rounds and
    the t test over launch medians, both on log ratios. 1.0 where the data cannot tell.
    """
    threshold = math.log1p(share)
    rounds = [value for launch in launches for value in launch]
    if not rounds or not all(map(math.isfinite, rounds)):
        return 1.0
    medians = [stats.median(launch) for launch in launches if launch]
    return max(stats.sign_test(rounds, threshold), stats.t_test(medians, threshold))


def p_below(launches: Launches, share: float) -> float:
    """One-sided p-value of "the candidate is less than `share` slower"."""
    return p_above(_mirrored(launches), 1 / (1 + share) - 1)


def disagree(launches: Launches, wall: Launches) -> bool:
    """Whether the clock that decides and the wall clock differ about a change by more than `WALL_EFFECT`."""
    middles = [[stats.median(launch) for launch in clock if launch] for clock in (launches, wall)]
    if not all(middles):
        return False
    return abs(stats.median(middles[0]) - stats.median(middles[1])) > math.log1p(WALL_EFFECT)


def detectable(launches: Launches, alpha: float, smallest_effect: float = SMALLEST_EFFECT) -> float | None:
    """The smallest slowdown, as a share, that these launches would have called with a chance of four in five.

    From the scatter of the launches' medians, by the power of the t test; None below two launches and without scatter.
    """
    if not all(math.isfinite(value) for launch in launches for value in launch):
        return None
    medians = [stats.median(launch) for launch in launches if launch]
    if len(medians) < 2 or not (scatter := stats.deviation(medians)):
        return None
    error = scatter / math.sqrt(len(medians))
    return math.expm1(math.log1p(smallest_effect) + stats.noticeable_shift(len(medians) - 1, alpha, POWER) * error)


def _word(
    launches: Launches,
    wall: Launches,
    *,
    is_slower: bool,
    is_waiting: bool,
    tolerance: float,
    alpha: float,
    unsteady: str,
    split: str,
) -> Looked:
    if is_slower:
        return Looked("REGRESSION")
    if is_waiting:
        return Looked("REGRESSION", f"it waits: more than {100 * WALL_EFFECT:.0f} % slower by the wall clock")
    if split and (disagree(launches, wall) or max(p_below(each, tolerance) for each in (launches, wall)) > alpha):
        return Looked("INCONCLUSIVE", f"{split}; a verdict needs the wall clock to agree")
    if p_below(launches, tolerance) > alpha:
        return Looked("INCONCLUSIVE", f"neither a slowdown nor its absence within {100 * tolerance:.3g} % is shown")
    medians = [stats.median(launch) for launch in wall if launch]
    if medians and stats.median(medians) > math.log1p(WALL_EFFECT):
        return Looked(
            "INCONCLUSIVE", f"the wall clock reads more than {100 * WALL_EFFECT:.0f} % slower, CPU time does not"
        )
    return Looked("INCONCLUSIVE", unsteady) if unsteady else Looked("PASS")


def _adjusted(cells: Sequence[str], ratios: Mapping[str, Launches], share: float) -> dict[str, float]:
    """Each cell's p-value of a slowdown above `share`, corrected over all cells (Holm)."""
    values = stats.holm([p_above(ratios.get(cell, ()), share) for cell in cells])
    return dict(zip(cells, values, strict=True))


def _mirrored(launches: Launches) -> list[list[float]]:
    return [[-value for value in launch] for launch in launches]


# --- from a pair of runs to findings ----------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What a pair of runs holds about one cell. `disturbed`, `unsteady`, `split` say why it proves less, or are empty.

    `launches` and `wall` are log ratios on the pair's clock and on the wall clock, without the rounds that an outside
    cause disturbed; those of a disturbed cell are kept, since there is nothing better to show.
    """

    launches: Launches
    wall: Launches
    rounds: int
    set_aside: int
    disturbed: str = ""
    unsteady: str = ""
    split: str = ""

    @staticmethod
    def of(pair: Pair, cell: str) -> Evidence:
        found = ab_pairs.rounds(pair, cell)
        aside = sum(1 for item in found if item.flags)
        disturbed = unsteady = ""
        if too_many(aside, len(found)):
            causes = ", ".join(dict.fromkeys(flag for item in found for flag in item.flags))
            disturbed = f"{aside} of {len(found)} rounds were disturbed from outside ({causes})"
        keep = bool(disturbed)
        warmups = [
            launch.warmups[cell]
            for run in (pair.baseline, pair.candidate)
            for launch in run.launches
            if cell in launch.warmups
        ]
        restless = sum(1 for warmup in warmups if not warmup.steady)
        if restless > CONTAMINATED_SHARE * len(warmups):
            unsteady = f"no steady state in {restless} of {len(warmups)} warm-ups"
        return Evidence(
            ab_pairs.by_launch(found, keep_disturbed=keep),
            ab_pairs.by_launch(ab_pairs.rounds(pair, cell, "wall"), keep_disturbed=keep),
            len(found),
            aside,
            disturbed,
            unsteady,
            ab_pairs.split(pair.clock, dict(zip(ab_pairs.SIDES, ab_pairs.cpu_shares(found), strict=True))),
        )


def findings(
    gate: Gate, pair: Pair | None, skipped: Mapping[str, Mapping[str, str]], *, same_costs: bool = False
) -> tuple[Finding, ...]:
    """Every cell's finding, in the order of the gate, once it has looked for the last time.

    `skipped` tells by side ("baseline", "candidate") which cells cannot be measured, and why. `pair` is None where
    nothing was measured. With `same_costs` a count that differs between the sides is a regression.
    """
    return tuple(_finding(gate, cell, pair, skipped, same_costs) for cell in gate.cells)


def _finding(
    gate: Gate, cell: str, pair: Pair | None, skipped: Mapping[str, Mapping[str, str]], same_costs: bool
) -> Finding:
    tolerance = gate.tolerances.get(cell, gate.rule.tolerance)
    costs = budgets.differing(*_costs(pair, cell), rule=same_costs)
    reasons = [skipped.get(side, {}).get(cell) for side in ab_pairs.SIDES]
    if any(reasons):
        return Finding("against", cell, *unmeasured(*reasons), tolerance=tolerance, costs=costs)
    looked = gate.found.get(cell)
    if pair is None or looked is None:
        return Finding("against", cell, "INCONCLUSIVE", "it was not measured often enough to look", tolerance=tolerance)
    seen = Evidence.of(pair, cell)
    broken = [item for item in costs if not item.is_kept]
    return Finding(
        gate="against",
        cell=cell,
        verdict="REGRESSION" if broken else looked.verdict,
        reason=f"{', '.join(item.name for item in broken)} must be equal" if broken else looked.reason,
        change=stats.cluster_bootstrap(seen.launches),
        wall=stats.cluster_bootstrap(seen.wall) if pair.clock != "wall" else None,
        clock=pair.clock,
        tolerance=tolerance,
        detectable=looked.detectable,
        launches=len(seen.launches),
        rounds=seen.rounds,
        set_aside=seen.set_aside,
        is_improved=looked.is_improved,
        costs=costs,
    )


def unmeasured(baseline: str | None, candidate: str | None) -> tuple[Word, str]:
    """A cell that a side cannot run: broken is worse than slow, and new has nothing to be slower than.

    New is only what the baseline's revision does not hold, which its `core.errors.Reason` says. One that it holds and
    that does not run there leaves nothing to compare with, and that passes nothing.
    """
    if baseline and candidate and not any(map(_is_of_the_machine, (baseline, candidate))):
        return "INCONCLUSIVE", f"neither side runs it: {candidate}"
    for side, reason in zip(ab_pairs.SIDES, (baseline, candidate), strict=True):
        if _is_of_the_machine(reason):
            return "ENVIRONMENT", f"the {side} cannot run it: {reason}"
    if not baseline:
        return "REGRESSION", f"the baseline runs it, this does not: {candidate}"
    if _cause(baseline) == "absent":
        return "NEW", f"the baseline does not have it: {baseline}"
    if _cause(baseline) == "lacks":
        advice = "give --against-python the python of an environment that has it"
        return "ENVIRONMENT", f"the baseline cannot run it here: {baseline}, or {advice}"
    return "INCONCLUSIVE", f"the baseline does not run it: {baseline}; there is nothing to compare with"


def _is_of_the_machine(reason: str | None) -> bool:
    """Whether a process could not start there, or there was too little memory."""
    return reason is not None and (_cause(reason) == "start" or "out of memory" in reason)


def _cause(reason: str) -> str:
    return getattr(reason, "cause", "")


def _costs(pair: Pair | None, cell: str) -> tuple[Cost | None, Cost | None]:
    """Of the candidate and of the baseline."""
    runs = () if pair is None else (pair.candidate, pair.baseline)
    found = [next((result.cost for result in run if result.cell.id == cell), None) for run in runs]
    return (found[0], found[1]) if found else (None, None)


def geomean(pair: Pair, cells: Sequence[str]) -> Estimate | None:
    """The geometric mean of these cells' changes, over the launches that measured all of them; None without one.

    Cells whose CPU time misses work are left out.
    """
    by_cell = []
    for cell in cells:
        if Evidence.of(pair, cell).split:
            continue  # its ratio is none
        launches: dict[int, list[float]] = {}
        for item in ab_pairs.rounds(pair, cell):
            if not item.flags:
                launches.setdefault(item.launch, []).append(item.log_ratio)
        by_cell.append({number: stats.median(rounds) for number, rounds in launches.items()})
    common = sorted(set.intersection(*map(set, by_cell))) if by_cell else []
    means = [math.fsum(medians[number] for medians in by_cell) / len(by_cell) for number in common]
    return stats.cluster_bootstrap([[mean] for mean in means]) if means else None
