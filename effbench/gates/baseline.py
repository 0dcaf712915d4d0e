"""The baseline gate: compare a run measured now with a stored run. Without torch.

The speed of a shared machine changes within hours (measured: medians 21 % apart for unchanged code). So both runs
contain a yardstick: a model that no commit of the user changes. A cell's time is divided by the yardstick's time in the
same round, and what slows both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy

from effbench.analysis import intervals, run_sittings, stats
from effbench.analysis.summary import is_contaminated, share_of, undisturbed_rounds
from effbench.core.estimate import Estimate
from effbench.core.run import Result, Run
from effbench.core.sittings import Scatter
from effbench.core.study import Case
from effbench.gates import ab_pairs
from effbench.gates.budgets import differing_counts
from effbench.gates.decision_rule import (
    POWER,
    WALL_EFFECT,
    CellOutcome,
    Clock,
    Evaluation,
    Rule,
    improved,
    outcomes,
    share_of_alpha,
)
from effbench.gates.result import CountCheck, Finding, GateVerdict
from effbench.host.emulation import EMULATED, is_emulated
from effbench.host.facts import Difference

MIN_LAUNCHES = 3
"""Fewer launches a side cannot estimate how much launches differ."""


@dataclass(frozen=True)
class LaunchTimes:
    """Log times of one cell in the baseline and in the candidate, one value per launch, with Welch's t test.

    `scatter` is that between sittings; None where both were measured in the same one.
    """

    baseline: Sequence[float]
    candidate: Sequence[float]
    scatter: Scatter | None = None

    @property
    def launches(self) -> int:
        """The number of launches of the side that has fewer."""
        return min(len(self.baseline), len(self.candidate))

    @property
    def point(self) -> float:
        """The log of candidate time over baseline time."""
        return math.fsum(self.candidate) / len(self.candidate) - math.fsum(self.baseline) / len(self.baseline)

    def error(self) -> tuple[float, float]:
        """The standard error of `point` and its degrees of freedom (Welch, 1947). (0, 1) if the times do not vary."""
        variance, freedom = intervals.variance_of_change(self.baseline, self.candidate, self.scatter)
        return (math.sqrt(variance), freedom) if variance > 1e-24 else (0.0, 1.0)

    def p_above(self, share: float) -> float:
        """One-sided p-value for "the candidate is slower by more than `share`".

        1.0 below two launches, and if the times do not vary.
        """
        from scipy.special import stdtr

        if self.launches < 2:
            return 1.0
        error, freedom = self.error()
        return float(stdtr(freedom, (math.log1p(share) - self.point) / error)) if error else 1.0

    def p_below(self, share: float) -> float:
        """One-sided p-value for "the candidate is slower by less than `share`"."""
        return self.mirrored().p_above(1 / (1 + share) - 1)

    def mirrored(self) -> LaunchTimes:
        """Baseline and candidate exchanged."""
        return LaunchTimes(self.candidate, self.baseline, self.scatter)

    def change(self) -> Estimate | None:
        """Candidate time over baseline time with its 95 % interval; None without a launch."""
        if not self.launches:
            return None
        return intervals.change_between(self.baseline, self.candidate, self.scatter)

    def detectable(self, alpha: float, smallest_effect: float) -> float | None:
        """The smallest slowdown, as a share, that these launches detect with power `POWER`."""
        if self.launches < 2:
            return None
        error, freedom = self.error()
        if not error:
            return None
        return math.expm1(math.log1p(smallest_effect) + stats.noticeable_shift(freedom, alpha, POWER) * error)


@dataclass(frozen=True)
class _Compared:
    """One cell in both runs: its results, its times on the clock of the run and on the wall, and its tolerance.

    `split` is why CPU time alone cannot compare them, and `unsteady` which side reached no steady state. Both are ""
    for a cell of too few launches, which is not tested.
    """

    cell: str
    before: Result | None
    after: Result | None
    times: LaunchTimes
    wall: LaunchTimes
    tolerance: float
    split: str = ""
    unsteady: str = ""

    @property
    def is_tested(self) -> bool:
        return self.times.launches >= MIN_LAUNCHES


def judge(
    baseline: Run,
    candidate: Run,
    cells: Sequence[str],
    rule: Rule,
    tolerances: Mapping[str, float],
    *,
    yardstick: str | None = None,
    same_costs: bool = False,
) -> tuple[Finding, ...]:
    """Compare the two runs cell by cell. Does not check that the machines match (see `findings_on_other_machine`).

    A cell is a REGRESSION when Welch's one-sided t test over launch medians, with Holm's correction over the cells,
    shows a slowdown above `rule.smallest_effect`. It passes only when the test shows that any slowdown is below its
    tolerance. `yardstick` is the id of the cell by whose time all times are divided. With `same_costs` a count that
    differs is a regression too. Where CPU time misses work of the cell or of the yardstick, both clocks must agree on a
    verdict. Findings carry the names of `name_of`.
    """
    compared = [_compare(baseline, candidate, cell, yardstick, tolerances.get(cell, rule.tolerance)) for cell in cells]
    tested = [item for item in compared if item.is_tested]
    judged = _evaluate(tested, rule, candidate.clock)
    share = share_of_alpha(rule.alpha, has_wall=candidate.clock != "wall") / max(1, len(tested))
    findings = []
    for item in compared:
        before, after = item.before, item.after
        costs = differing_counts(after.cost, before.cost, rule=same_costs) if before and after else ()
        outcome, is_improved = judged.get(item.cell, (None, False))
        verdict, reason = (
            _broken_counts(costs)
            or _why_not_comparable(baseline, candidate, item.cell, yardstick)
            or _verdict_on_times(item, outcome)
        )
        known = after or before
        findings.append(
            Finding(
                "baseline",
                name_of(known.cell.case) if known else item.cell,
                verdict,
                reason,
                change=item.times.change(),
                wall=item.wall.change(),
                clock=candidate.clock,
                tolerance=item.tolerance,
                detectable=(item.wall if item.split else item.times).detectable(share, rule.smallest_effect),
                launches=item.times.launches,
                rounds=min(len(side.blocks) if side else 0 for side in (before, after)),
                set_aside=sum(bool(block.timing.flags) for side in (before, after) if side for block in side.blocks),
                is_improved=is_improved,
                costs=costs,
            )
        )
    return tuple(findings)


def _compare(baseline: Run, candidate: Run, cell: str, yardstick: str | None, tolerance: float) -> _Compared:
    found = _Compared(
        cell,
        _result(baseline, cell),
        _result(candidate, cell),
        _sides(baseline, candidate, cell, yardstick, candidate.clock),
        _sides(baseline, candidate, cell, yardstick, "wall"),
        tolerance,
    )
    if not found.is_tested:
        return found
    return replace(
        found,
        split=_why_clocks_differ(baseline, candidate, cell, yardstick),
        unsteady=_unsteady_side(baseline, candidate, cell),
    )


def _evaluate(tested: Sequence[_Compared], rule: Rule, clock: str) -> dict[str, tuple[CellOutcome, bool]]:
    """Return by cell what the rule makes of the times, and whether they show an improvement."""
    times, walls = [item.times for item in tested], [item.wall for item in tested]

    def read(of: Sequence[LaunchTimes]) -> Clock:
        return Clock(
            numpy.array([[side.p_above(rule.smallest_effect) for side in of]]),
            numpy.array([[side.p_below(item.tolerance) for side, item in zip(of, tested, strict=True)]]),
            numpy.array([[side.point if side.launches else math.nan for side in of]]),
        )

    seen = Evaluation(
        read(times),
        is_disturbed=numpy.zeros((1, len(tested)), dtype=bool),  # `_why_not_comparable` handles disturbed cells
        is_split=numpy.array([[bool(item.split) for item in tested]], dtype=bool),
        is_unsteady=numpy.array([[bool(item.unsteady) for item in tested]], dtype=bool),
        wall=read(walls) if clock != "wall" else None,
        waiting=numpy.array([[side.p_above(WALL_EFFECT) for side in walls]]) if clock != "wall" else None,
    )
    said = map(CellOutcome, outcomes(seen, rule.alpha)[0].tolist())
    faster = numpy.array([[side.mirrored().p_above(rule.smallest_effect) for side in times]])
    is_improved = improved(faster, seen, rule.alpha)[0].tolist()
    return {item.cell: found for item, found in zip(tested, zip(said, is_improved, strict=True), strict=True)}


def _verdict_on_times(compared: _Compared, outcome: CellOutcome | None) -> tuple[GateVerdict, str]:
    """Return the verdict and reason of a cell that can be compared. `outcome` is None if it was not tested."""
    if outcome is None:
        return "INCONCLUSIVE", f"{compared.times.launches} launches on one side; {MIN_LAUNCHES} are needed"
    return outcome.verdict, outcome.reason(compared.tolerance, split=compared.split, unsteady=compared.unsteady)


def findings_on_other_machine(found: Sequence[Difference], cells: Sequence[str]) -> tuple[Finding, ...]:
    """The findings where the machine differs from the baseline's: no cell is judged, every difference is named."""
    reason = f"another machine or setting than the baseline's: {', '.join(map(str, found))}"
    return tuple(Finding("baseline", cell, "ENVIRONMENT", reason) for cell in cells)


def yardstick_of(baseline: Run, cells: Sequence[str]) -> str | None:
    """The id of the cell that can serve as the yardstick of these cells, or None.

    It is the common reference of all of them, is not one of them, and is a zoo model, so that no change to the user's
    code affects it.
    """
    cases = [found.cell.case for cell in cells if (found := _result(baseline, cell)) is not None]
    references = {case.id: case for case in map(baseline.experiment.reference_of, cases) if case is not None}
    if len(references) != 1:
        return None
    (case,) = references.values()
    is_apart = case.id not in cells and ":" not in case.model
    return case.id if is_apart and (found := _result(baseline, case.id)) is not None and found.blocks else None


def geomean(baseline: Run, candidate: Run, cells: Sequence[str], yardstick: str | None) -> Estimate | None:
    """The geometric mean of the changes over the cells, launch by launch; None without a cell.

    Cells whose CPU time misses work are left out.
    """
    told = [cell for cell in cells if not _why_clocks_differ(baseline, candidate, cell, yardstick)]
    sides = [_sides(baseline, candidate, cell, yardstick, candidate.clock) for cell in told]
    whole = [item for item in sides if item.launches]
    if not whole:
        return None

    def mean(each: Sequence[Sequence[float]]) -> list[float]:
        return [math.fsum(values) / len(values) for values in zip(*each, strict=False)]

    # Cells share the state of the machine, so their mean scatters between sittings as far as any of them may.
    scatter = max((item.scatter for item in whole if item.scatter), key=lambda found: found.tau, default=None)
    before, after = mean([item.baseline for item in whole]), mean([item.candidate for item in whole])
    return LaunchTimes(before, after, scatter).change()


def notes(yardstick: str | None) -> tuple[str, ...]:
    """Remarks on how a comparison with a stored run is to be read."""
    if yardstick is None:
        return (
            "The baseline holds no yardstick, so a slower machine cannot be told from slower code: store it with "
            "--save-baseline, or compare two revisions with --against.",
        )
    return ("Times are taken over the yardstick's in the same round.",)


def remarks(baseline: Run, candidate: Run, cells: Sequence[str], yardstick: str | None) -> tuple[str, ...]:
    """Remarks on these two runs that do not affect the verdict."""
    found = []
    change = _sides(baseline, candidate, yardstick, None, candidate.clock).change() if yardstick else None
    if change is not None:
        found.append(f"The yardstick itself took ×{change.point:.3f} of its time in the baseline.")
    if note := run_sittings.change_note(baseline, candidate, "ratio" if yardstick else "busy"):
        found.append(note)
    for cell in cells:
        before, after = (_result(run, cell) for run in (baseline, candidate))
        if before and after and before.cell.case != after.cell.case:
            found.append(f"{name_of(after.cell.case)} is defined differently than in the baseline.")
    versions = [run.environment.facts.get("effbench.version") for run in (baseline, candidate)]
    if versions[0] != versions[1]:
        found.append(f"The baseline was measured by effbench {versions[0]}, the candidate by {versions[1]}.")
    return tuple(found)


def name_of(case: Case) -> str:
    """The name of a case in reports: the model's name where that is its only label, else the id."""
    return str(case.labels["model"]) if tuple(case.labels) == ("model",) else case.id


def _broken_counts(costs: Sequence[CountCheck]) -> tuple[GateVerdict, str] | None:
    names = [item.name for item in costs if not item.is_met]
    return ("REGRESSION", f"it costs something else: {', '.join(names)}") if names else None


def _why_not_comparable(
    baseline: Run, candidate: Run, cell: str, yardstick: str | None
) -> tuple[GateVerdict, str] | None:
    """The verdict and reason of a cell that cannot be compared; None for one that can."""
    before, after = _result(baseline, cell), _result(candidate, cell)
    if is_emulated(baseline.environment) or is_emulated(candidate.environment):
        return "ENVIRONMENT", f"{EMULATED}; measure on the hardware itself"
    if before is None:
        return "NEW", "it is not in the baseline"
    if not before.blocks:
        reason = f"it did not run in the baseline: {before.skipped or 'it has no block'}"
        return "INCONCLUSIVE", f"{reason}; there is nothing to compare with, store it anew"
    if after is None or not after.blocks:
        return "REGRESSION", f"it does not run: {(after.skipped if after else None) or 'it has no block'}"
    unit = [_result(run, yardstick) for run in (baseline, candidate)] if yardstick else []
    disturbed = [
        side
        for side, one in zip(("baseline", "candidate") * 2, (before, after, *unit), strict=False)
        if one is not None and is_contaminated(one)
    ]
    if disturbed:
        sides = " and ".join(dict.fromkeys(disturbed))
        return (
            "ENVIRONMENT",
            f"others disturbed more than a tenth of the blocks of the {sides}; measure on a quieter machine",
        )
    return None


def _unsteady_side(baseline: Run, candidate: Run, cell: str) -> str:
    """The side that was measured without a steady state, as a reason; "" where there is none."""
    for side, run in (("baseline", baseline), ("candidate", candidate)):
        warmups = [launch.warmups[cell] for launch in run.launches if cell in launch.warmups]
        if not all(warmup.steady for warmup in warmups):
            return f"the {side} did not reach a steady state"
    return ""


def _why_clocks_differ(baseline: Run, candidate: Run, cell: str, yardstick: str | None) -> str:
    """Why CPU time alone cannot compare the two runs; "" where it can."""
    measured = {
        f"{side}{of}": share_of(undisturbed_rounds(found))
        for side, run in (("baseline", baseline), ("candidate", candidate))
        for of, name in (("", cell), ("'s yardstick", yardstick))
        if name and (found := _result(run, name)) is not None
    }
    return ab_pairs.why_clocks_differ(candidate.clock, measured)


def _sides(baseline: Run, candidate: Run, cell: str, yardstick: str | None, clock: str) -> LaunchTimes:
    before, after = (_medians(run, cell, yardstick, clock) for run in (baseline, candidate))
    scatter = run_sittings.scatter_of((baseline, candidate), cell, "ratio" if yardstick else "busy")
    return LaunchTimes(before, after, None if run_sittings.share_sitting(baseline, candidate) else scatter)


def _medians(run: Run, cell: str, yardstick: str | None, clock: str) -> list[float]:
    """The median log time of each launch, divided by the yardstick's in the same round if there is one."""
    found, unit = _result(run, cell), _result(run, yardstick) if yardstick else None
    if found is None or (yardstick and unit is None) or is_emulated(run.environment):
        return []
    units = {} if unit is None else undisturbed_rounds(unit)
    launches: dict[int, list[float]] = {}
    for key, block in undisturbed_rounds(found).items():
        one = units[key].per_call_s(clock) if key in units else None if yardstick else 1.0
        seconds = block.per_call_s(clock)
        if seconds and one:
            launches.setdefault(key[0], []).append(math.log(seconds / one))
    return [stats.median(values) for values in launches.values()]


def _result(run: Run, cell: str) -> Result | None:
    return next((result for result in run if result.cell.id == cell), None)
