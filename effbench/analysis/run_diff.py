"""Compare two stored runs cell by cell: which cells became slower or faster. Pure, no torch.

Two runs of the same code at different times on a shared machine differ (measured: 21 % in the median). A gate should
therefore not rely on this comparison: an A/B run, which alternates both versions in one job, has few false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from effbench.analysis import intervals, run_sittings, sequential, stats
from effbench.analysis.summary import rounds_of, summarise
from effbench.core import units
from effbench.core.cost import Cost
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Comparison, Estimate
from effbench.core.run import Run
from effbench.host.emulation import EMULATED, is_emulated

_COUNTS = ("madds", "params", "memory_access")
_LISTED = 4


def compare_runs(baseline: Run, candidate: Run) -> tuple[Comparison, ...]:
    """Compare every cell of either run: candidate time over baseline time on the runs' clock.

    A cell is "slower" or "faster" when the whole 95 % interval (Welch, over launch medians of log time, with the
    scatter between sittings unless both runs were made in the same one) lies beyond 1 %, "same" when it lies within
    ± 3 %, "missing" when only one run has the cell, and "unsure" otherwise. It is also "unsure" where CPU time misses
    work of the cell in one of the runs; `wall` is then the change in wall time. Costs
    that differ are listed, since the cell of that name may have become another network. The conditions of the two runs
    are not compared here.
    """
    sides = [{result.cell.id: result for result in run.results} for run in (baseline, candidate)]
    flags = [{cell.cell.id: cell for cell in summarise(run)} for run in (baseline, candidate)]
    is_one_sitting = run_sittings.share_sitting(baseline, candidate)
    comparisons = []
    for cell in dict.fromkeys([*sides[0], *sides[1]]):
        absent = [name for name, side in zip(("baseline", "candidate"), sides, strict=True) if cell not in side]
        if absent:
            comparisons.append(Comparison(cell, "missing", None, f"not in the {absent[0]}"))
            continue
        if (
            sides[0][cell].cell.case != sides[1][cell].cell.case
            or sides[0][cell].cell.batch != sides[1][cell].cell.batch
        ):
            comparisons.append(Comparison(cell, "missing", None, "the same name, but another network, input or batch"))
            continue
        medians = [_launch_medians(run, cell, run.clock) for run in (baseline, candidate)]
        if not all(medians):
            untimed = (
                EMULATED
                if any(is_emulated(run.environment) for run in (baseline, candidate))
                else "no undisturbed block"
            )
            reason = next((side[cell].skipped for side in sides if side[cell].skipped), untimed)
            comparisons.append(Comparison(cell, "missing", None, str(reason)))
            continue
        disturbed = list(dict.fromkeys(flag for side in flags for flag in side[cell].flags))
        scatter = None if is_one_sitting else run_sittings.scatter_of((baseline, candidate), cell, "busy")
        found = _classify(cell, intervals.change_between(medians[0], medians[1], scatter), disturbed)
        if any(side[cell].cpu_time_misses_work for side in flags):
            walls = [_launch_medians(run, cell, "wall") for run in (baseline, candidate)]
            wall = intervals.change_between(walls[0], walls[1], scatter) if all(walls) else None
            found = replace(found, wall=wall)
        costs = _differing_costs(sides[0][cell].cost, sides[1][cell].cost)
        reasons = [text for text in (found.reason, _cost_changes(costs)) if text]
        comparisons.append(replace(found, reason="; ".join(reasons), costs=costs))
    return tuple(comparisons)


def require_shared(baseline: Run, candidate: Run) -> None:
    """Raise InvalidValue, with some cells of each run, if the runs have no cell in common."""
    names = [[result.cell.id for result in run] for run in (baseline, candidate)]
    if not set(names[0]) & set(names[1]):
        listed = [", ".join(side[:_LISTED]) + (", …" if side[_LISTED:] else "") or "none" for side in names]
        raise InvalidValue(
            f"the two runs have no cell in common: the baseline has {listed[0]}, the candidate {listed[1]}; name "
            "runs of the same study or models"
        )


def _differing_costs(baseline: Cost | None, candidate: Cost | None) -> dict[str, tuple[int, int]]:
    if baseline is None or candidate is None:
        return {}
    pairs = {name: (getattr(baseline, name), getattr(candidate, name)) for name in _COUNTS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _cost_changes(costs: Mapping[str, tuple[int, int]]) -> str:
    texts = []
    for name, (was, now) in costs.items():
        shown = units.counts_to_compare(now, was)
        texts.append(f"{name.replace('_', ' ')} {shown[0]} against {shown[1]}{f' (×{now / was:.3g})' if was else ''}")
    return f"its counts differ: {', '.join(texts)}" if texts else ""


def _launch_medians(run: Run, cell: str, clock: str) -> list[float]:
    by_launch: dict[int, list[float]] = {}
    for (launch, _), block in rounds_of(run)[cell].items():
        seconds = block.per_call_s(clock)
        if seconds:
            by_launch.setdefault(launch, []).append(math.log(seconds))
    return [stats.median(values) for values in by_launch.values()]


def _classify(cell: str, change: Estimate, disturbed: list[str]) -> Comparison:
    if change.low is None or change.high is None:
        return Comparison(cell, "unsure", change, f"{change.n} launch a side; an interval needs two")
    if disturbed:
        return Comparison(cell, "unsure", change, ", ".join(disturbed))
    verdict = sequential.verdict(change)
    if verdict == "undecided":
        return Comparison(cell, "unsure", change, "the interval is too wide for a verdict")
    return Comparison(cell, verdict, change)
