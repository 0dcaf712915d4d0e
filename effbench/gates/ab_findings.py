"""The findings of the A/B gate: the verdict of each cell with the numbers to show. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy

from effbench.analysis import stats
from effbench.analysis.summary import are_too_many
from effbench.core.cost import Cost
from effbench.core.estimate import Estimate
from effbench.gates import ab_pairs, budgets
from effbench.gates.ab_pairs import Pair
from effbench.gates.decision_rule import Gate
from effbench.gates.evidence import Evidence, nan_median
from effbench.gates.result import Finding, GateVerdict


def findings(
    gate: Gate, pair: Pair | None, skipped: Mapping[str, Mapping[str, str]], *, same_costs: bool = False
) -> tuple[Finding, ...]:
    """The finding of every cell after the last look, in the order of the gate.

    `skipped` holds, by side ("baseline", "candidate"), the cells that cannot be measured and the reasons. `pair` is
    None where nothing was measured. With `same_costs`, a count that differs between the sides is a regression.
    """
    return tuple(_finding(gate, cell, pair, skipped, same_costs) for cell in gate.cells)


def _finding(
    gate: Gate, cell: str, pair: Pair | None, skipped: Mapping[str, Mapping[str, str]], same_costs: bool
) -> Finding:
    tolerance = gate.tolerances.get(cell, gate.rule.tolerance)
    costs = budgets.differing_counts(*_costs(pair, cell), rule=same_costs)
    reasons = [skipped.get(side, {}).get(cell) for side in ab_pairs.SIDES]
    if any(reasons):
        return Finding("against", cell, *verdict_without_times(*reasons), tolerance=tolerance, costs=costs)
    looked = gate.found.get(cell)
    if pair is None or looked is None:
        return Finding(
            "against", cell, "INCONCLUSIVE", "it has too few launches for the first look", tolerance=tolerance
        )
    found = ab_pairs.rounds(pair, cell)
    aside = sum(bool(item.flags) for item in found)
    # Of a cell with too many disturbed rounds, all rounds are shown.
    is_disturbed = are_too_many(aside, len(found))
    shown = [
        ab_pairs.log_ratios_by_launch(rounds, keep_disturbed=is_disturbed)
        for rounds in (found, ab_pairs.rounds(pair, cell, "wall"))
    ]
    broken = [item for item in costs if not item.is_met]
    return Finding(
        gate="against",
        cell=cell,
        verdict="REGRESSION" if broken else looked.verdict,
        reason=f"{', '.join(item.name for item in broken)} must be equal" if broken else looked.reason,
        change=stats.cluster_bootstrap(shown[0]),
        wall=stats.cluster_bootstrap(shown[1]) if pair.clock != "wall" else None,
        clock=pair.clock,
        tolerance=tolerance,
        detectable=looked.detectable,
        launches=len(shown[0]),
        rounds=len(found),
        set_aside=aside,
        is_improved=looked.is_improved,
        costs=costs,
    )


def verdict_without_times(baseline: str | None, candidate: str | None) -> tuple[GateVerdict, str]:
    """The verdict and reason for a cell that a side cannot run, given the reasons of both sides.

    A cell that only the baseline runs is a REGRESSION. A cell is NEW only if the baseline's revision does not contain
    it, by the cause in its `core.errors.Reason`. If the baseline contains it but cannot run it, there is nothing to
    compare with and the cell does not pass.
    """
    if baseline and candidate and not any(map(_is_machine_fault, (baseline, candidate))):
        return "INCONCLUSIVE", f"neither side runs it: {candidate}"
    for side, reason in zip(ab_pairs.SIDES, (baseline, candidate), strict=True):
        if _is_machine_fault(reason):
            return "ENVIRONMENT", f"the {side} cannot run it: {reason}"
    if not baseline:
        return "REGRESSION", f"the baseline runs it, the candidate does not: {candidate}"
    if _cause(baseline) == "absent":
        return "NEW", f"the baseline does not have it: {baseline}"
    if _cause(baseline) == "lacks":
        advice = "give --against-python the python of an environment that has it"
        return "ENVIRONMENT", f"the baseline cannot run it here: {baseline}, or {advice}"
    return "INCONCLUSIVE", f"the baseline does not run it: {baseline}; there is nothing to compare with"


def _is_machine_fault(reason: str | None) -> bool:
    """Whether the machine is the cause: a process could not start, or memory ran out."""
    return reason is not None and (_cause(reason) == "start" or "out of memory" in reason)


def _cause(reason: str) -> str:
    return getattr(reason, "cause", "")


def _costs(pair: Pair | None, cell: str) -> tuple[Cost | None, Cost | None]:
    """The costs of the candidate and of the baseline."""
    runs = () if pair is None else (pair.candidate, pair.baseline)
    found = [next((result.cost for result in run if result.cell.id == cell), None) for run in runs]
    return (found[0], found[1]) if found else (None, None)


def geomean(pair: Pair, cells: Sequence[str]) -> Estimate | None:
    """The geometric mean of these cells' changes, over the launches that measured all of them.

    Cells whose CPU time misses work are left out. None without such a launch.
    """
    told = Evidence.of(pair, cells)
    whole = [not told.split.get(cell) for cell in cells]  # the CPU-time ratio of any other cell is not valid
    medians = nan_median(told.values)[whole]
    means = medians[:, numpy.isfinite(medians).all(axis=0)].mean(axis=0) if any(whole) else numpy.empty(0)
    return stats.cluster_bootstrap([[mean] for mean in means.tolist()]) if len(means) else None
