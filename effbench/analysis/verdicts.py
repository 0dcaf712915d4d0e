"""Decide whether each guideline of a study holds, from the paired ratios of a run. Pure, no torch.

A pair holds when the whole confidence interval of its ratio lies above 1 by the smallest effect that matters (1 %). It
fails when the interval lies wholly below that, and is unsure otherwise. Where the two cells differ in multiply-adds,
the ratio must lie beyond what that difference alone would explain, in either direction. The pairs of a claim share its
error rate (Bonferroni), so a claim of three pairs is judged by three 98.3 % intervals.

A pair is also unsure where CPU time misses work of one of its cells: both the CPU and the wall-clock ratio are shown.

On a GPU pairs are judged by device time, even for host-bound cells. The reason of such a pair then says how the
wall-clock times compare.
"""

from __future__ import annotations

from collections.abc import Mapping

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.run_sittings import RunSittings
from effbench.analysis.sequential import CONFIDENCE, SMALLEST_EFFECT
from effbench.analysis.summary import Rounds, clock_of, ratio_of, rounds_of, summarise, wall_ratio_of
from effbench.core.estimate import Estimate, PairEvidence, Verdict
from effbench.core.run import Run
from effbench.core.study import Claim, Label
from effbench.host.emulation import EMULATED

MIN_LAUNCHES = 5
"""Fewest launches for a verdict. Launches are the replicates of the experiment, so few launches mean few samples."""


def judge(run: Run, cells: tuple[CellSummary, ...] | None = None) -> tuple[Verdict, ...]:
    """Judge every claim of the study in every group (such as one scale of one channel set), in study order."""
    summaries = {cell.cell.id: cell for cell in cells or summarise(run)}
    rounds, sittings = rounds_of(run), RunSittings.of(run)
    groups: list[dict[str, Label]] = []
    for result in run.results:
        group = run.experiment.group_of(result.cell.case)
        if group not in groups:
            groups.append(group)
    return tuple(
        verdict
        for claim in run.experiment.claims
        for group in groups
        if (verdict := _judge(run, claim, group, summaries, rounds, sittings)) is not None
    )


def _judge(
    run: Run,
    claim: Claim,
    group: Mapping[str, Label],
    summaries: Mapping[str, CellSummary],
    rounds: Mapping[str, Rounds],
    sittings: RunSittings,
) -> Verdict | None:
    members = {
        result.cell.case.labels[run.experiment.factor]: summaries[result.cell.id]
        for result in run.results
        if run.experiment.group_of(result.cell.case) == group
    }
    if not any(level in members for level in claim.headline):
        return None
    confidence = 1 - (1 - CONFIDENCE) / len(claim.pairs)
    evidence = tuple(_pair(run, pair, members, rounds, sittings, confidence) for pair in claim.pairs)
    headline = next(
        (item for item in evidence if (item.slower, item.faster) == claim.headline),
        None,
    ) or _pair(run, claim.headline, members, rounds, sittings, CONFIDENCE)
    failed = [item for item in evidence if item.verdict == "fails"]
    unsure = [item for item in evidence if item.verdict == "unsure"]
    if failed:
        return Verdict(claim.name, claim.text, dict(group), "fails", headline, evidence, _join_reasons(failed))
    if unsure:
        return Verdict(claim.name, claim.text, dict(group), "unsure", headline, evidence, _join_reasons(unsure))
    hidden = [item for item in evidence if item.reason]
    return Verdict(claim.name, claim.text, dict(group), "holds", headline, evidence, _join_reasons(hidden))


def _join_reasons(items: list[PairEvidence]) -> str:
    """List each reason once, followed by the pairs it applies to: "not slower by 1 %: 4 over 2"."""
    pairs: dict[str, list[str]] = {}
    for item in items:
        pairs.setdefault(item.reason, []).append(f"{item.slower} over {item.faster}")
    return "; ".join(f"{reason}: {', '.join(named)}" for reason, named in pairs.items())


def _pair(
    run: Run,
    pair: tuple[Label, Label],
    members: Mapping[Label, CellSummary],
    rounds: Mapping[str, Rounds],
    sittings: RunSittings,
    confidence: float,
) -> PairEvidence:
    slower, faster = pair
    missing = [str(level) for level in pair if level not in members]
    if missing:
        return PairEvidence(slower, faster, None, "unsure", f"{' and '.join(missing)} not measured")
    cells = [members[level] for level in pair]
    paper_ratio = None
    if cells[0].paper_speed and cells[1].paper_speed:
        paper_ratio = cells[1].paper_speed / cells[0].paper_speed
    sides = rounds[cells[0].cell.id], rounds[cells[1].cell.id]
    clock = clock_of(run.clock, *sides)
    ratio = ratio_of(sittings, *sides, clock, confidence)
    skipped = [f"{cell.cell.id} skipped ({cell.skipped})" for cell in cells if cell.skipped]
    flagged = list(dict.fromkeys(flag for cell in cells for flag in cell.flags))
    if skipped or ratio is None:
        untimed = EMULATED if EMULATED in flagged else "no round measured both"
        return PairEvidence(slower, faster, ratio, "unsure", "; ".join(skipped) or untimed, paper_ratio)
    if flagged:
        wall = wall_ratio_of(sittings, *sides, clock, confidence)
        return PairEvidence(slower, faster, ratio, "unsure", ", ".join(flagged), paper_ratio, wall)
    if ratio.n < MIN_LAUNCHES or ratio.low is None or ratio.high is None:
        reason = f"{ratio.n} of {MIN_LAUNCHES} launches that a verdict needs"
        return PairEvidence(slower, faster, ratio, "unsure", reason, paper_ratio)
    costs = _cost_ratio(*cells)
    threshold = 1 + SMALLEST_EFFECT
    wall_ratio = None
    if clock == "device" and any(cell.bound == "host" for cell in cells):
        wall_ratio = ratio_of(sittings, *sides, "wall", confidence)
    if ratio.low > threshold * max(1.0, costs):
        return PairEvidence(
            slower, faster, ratio, "holds", _reason_if_holds(wall_ratio, cells[0].cell.runtime), paper_ratio
        )
    if ratio.high < threshold * min(1.0, costs):
        return PairEvidence(
            slower, faster, ratio, "fails", _reason_if_fails(wall_ratio, cells[0].cell.runtime), paper_ratio
        )
    if ratio.low > threshold or ratio.high < threshold:
        reason = f"{100 * abs(costs - 1):.1f} % {'more' if costs > 1 else 'fewer'} multiply-adds could explain it"
        return PairEvidence(slower, faster, ratio, "unsure", reason, paper_ratio)
    return PairEvidence(slower, faster, ratio, "unsure", "the interval spans a 1 % difference", paper_ratio)


def _reason_if_holds(wall_ratio: Estimate | None, runtime: str) -> str:
    """Return the reason of a pair that holds. `wall_ratio` is its wall-clock ratio if a cell is host-bound."""
    if wall_ratio is None:
        return ""
    if _is_slower(wall_ratio):
        return f"in device time, and in wall time {_under_runtime(runtime)}, where the host is the bottleneck"
    return f"in device time only; {_under_runtime(runtime)} the host is the bottleneck"


def _reason_if_fails(wall_ratio: Estimate | None, runtime: str) -> str:
    """Return the reason of a pair that fails; `wall_ratio` as in `_reason_if_holds`."""
    if wall_ratio is None:
        return "not slower by 1 %"
    end = "slower in wall time, because of the host" if _is_slower(wall_ratio) else "the host is the bottleneck"
    return f"not slower by 1 % in device time; {_under_runtime(runtime)} {end}"


def _is_slower(wall_ratio: Estimate) -> bool:
    return wall_ratio.low is not None and wall_ratio.low > 1 + SMALLEST_EFFECT


def _under_runtime(runtime: str) -> str:
    return "in eager Python" if runtime == "eager" else f"under {runtime}"


def _cost_ratio(slower: CellSummary, faster: CellSummary) -> float:
    """Return the multiply-adds of one cell over the other's, or 1 where either is unknown.

    Channel counts are whole numbers, so costs meant to be equal differ slightly. A difference in time that this cost
    difference explains is no evidence about the guideline.
    """
    if slower.cost is None or faster.cost is None or not faster.cost.madds:
        return 1.0
    return slower.cost.madds / faster.cost.madds
