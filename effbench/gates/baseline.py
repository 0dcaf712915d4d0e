"""The gate of a stored run: what was measured now against what was measured then. Pure, no torch.

A machine that others share runs at another speed an hour later (measured: 21 % apart in the median, by nothing but
time), so both runs hold a yardstick: a network that no commit of the user's changes. A cell's time is taken over the
yardstick's in the same round, and what slows both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from effbench.analysis import stats
from effbench.analysis.summary import contaminated, share_of, undisturbed_rounds
from effbench.core.estimate import Estimate
from effbench.core.run import Result, Run
from effbench.core.study import Case
from effbench.gates import ab_pairs
from effbench.gates.budgets import differing
from effbench.gates.decision_rule import (
    POWER,
    WALL_EFFECT,
    Clock,
    Evaluation,
    Outcome,
    Rule,
    improved,
    outcomes,
    share_of_alpha,
)
from effbench.gates.result import Costed, Finding, Word
from effbench.host.emulation import EMULATED, is_emulated
from effbench.host.facts import Difference

MIN_LAUNCHES = 3
"""Fewer fresh processes a side say too little of how far launches differ."""


@dataclass(frozen=True)
class Sides:
    """Log times of one cell, one value a launch, in the baseline and in the candidate; Welch's t test on them."""

    baseline: Sequence[float]
    candidate: Sequence[float]

    @property
    def launches(self) -> int:
        """Of the side that has fewer."""
        return min(len(self.baseline), len(self.candidate))

    @property
    def point(self) -> float:
        """The log of the candidate's time over the baseline's."""
        return math.fsum(self.candidate) / len(self.candidate) - math.fsum(self.baseline) / len(self.baseline)

    def error(self) -> tuple[float, float]:
        """The standard error of `point` and its degrees of freedom (Welch, 1947). (0, 1) without any scatter."""
        parts = [(stats.deviation(side) ** 2 / len(side), len(side)) for side in (self.baseline, self.candidate)]
        total = sum(part for part, _ in parts)
        if total <= 1e-24:
            return 0.0, 1.0
        return math.sqrt(total), total**2 / sum(part**2 / (size - 1) for part, size in parts)

    def p_above(self, share: float) -> float:
        """One-sided p-value of "the candidate is more than `share` slower".

        1.0 without scatter, which proves nothing, and below two launches.
        """
        from scipy.special import stdtr

        if self.launches < 2:
            return 1.0
        error, freedom = self.error()
        return float(stdtr(freedom, (math.log1p(share) - self.point) / error)) if error else 1.0

    def p_below(self, share: float) -> float:
        """One-sided p-value of "the candidate is less than `share` slower"."""
        return self.mirrored().p_above(1 / (1 + share) - 1)

    def mirrored(self) -> Sides:
        """Baseline and candidate exchanged."""
        return Sides(self.candidate, self.baseline)

    def change(self) -> Estimate | None:
        """Candidate over baseline with its 95 % interval; None without a launch."""
        if not self.launches:
            return None
        found = stats.welch_interval(self.baseline, self.candidate)
        ends = [None if end is None else math.exp(end) for end in (found.low, found.high)]
        return Estimate(math.exp(found.point), ends[0], ends[1], found.confidence, found.n)

    def detectable(self, alpha: float, smallest_effect: float) -> float | None:
        """The smallest slowdown, as a share, that would have been called with a chance of four in five."""
        if self.launches < 2:
            return None
        error, freedom = self.error()
        if not error:
            return None
        return math.expm1(math.log1p(smallest_effect) + stats.noticeable_shift(freedom, alpha, POWER) * error)


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
    """What the two runs say of each of these cells, named by `name_of`. Conditions are not checked here (`unlike`).

    A slowdown is called when Welch's one-sided t over launch medians, corrected over the cells (Holm), shows it above
    `rule.smallest_effect`; a cell passes only when one above its tolerance is shown absent. `yardstick` is the id of
    the cell that both runs take as the unit. With `same_costs` a count that differs fails too. Where CPU time misses
    work of the cell or the yardstick on either side, both clocks must agree on a verdict.
    """
    clock = candidate.clock
    sides = {cell: _sides(baseline, candidate, cell, yardstick, clock) for cell in cells}
    walls = {cell: _sides(baseline, candidate, cell, yardstick, "wall") for cell in cells}
    tested = [cell for cell in cells if sides[cell].launches >= MIN_LAUNCHES]
    split = {cell: _split(baseline, candidate, cell, yardstick) for cell in tested}
    unsteady = {cell: _unsteady(baseline, candidate, cell) for cell in tested}
    within = {cell: tolerances.get(cell, rule.tolerance) for cell in cells}

    def read(of: Mapping[str, Sides]) -> Clock:
        return Clock(
            numpy.array([[of[cell].p_above(rule.smallest_effect) for cell in tested]]),
            numpy.array([[of[cell].p_below(within[cell]) for cell in tested]]),
            numpy.array([[of[cell].point if of[cell].launches else math.nan for cell in tested]]),
        )

    seen = Evaluation(
        read(sides),
        is_disturbed=numpy.zeros((1, len(tested)), dtype=bool),  # such a cell is in `_trouble`
        is_split=numpy.array([[bool(split[cell]) for cell in tested]], dtype=bool),
        is_unsteady=numpy.array([[bool(unsteady[cell]) for cell in tested]], dtype=bool),
        wall=read(walls) if clock != "wall" else None,
        waiting=numpy.array([[walls[cell].p_above(WALL_EFFECT) for cell in tested]]) if clock != "wall" else None,
    )
    said = dict(zip(tested, map(Outcome, outcomes(seen, rule.alpha)[0].tolist()), strict=True))
    faster = numpy.array([[sides[cell].mirrored().p_above(rule.smallest_effect) for cell in tested]])
    is_improved = dict(zip(tested, improved(faster, seen, rule.alpha)[0].tolist(), strict=True))
    share = share_of_alpha(rule.alpha, has_wall=clock != "wall") / max(1, len(tested))
    findings = []
    for cell in cells:
        before, after = (_result(run, cell) for run in (baseline, candidate))
        costs = differing(after.cost, before.cost, rule=same_costs) if before and after else ()
        found = _broken(costs) or _trouble(baseline, candidate, cell, yardstick)
        if found is None and cell in said:
            reason = said[cell].reason(within[cell], split=split[cell], unsteady=unsteady[cell])
            found = said[cell].verdict, reason
        verdict, reason = found or (
            "INCONCLUSIVE",
            f"{sides[cell].launches} launches on one side; {MIN_LAUNCHES} are needed",
        )
        known = after or before
        findings.append(
            Finding(
                "baseline",
                name_of(known.cell.case) if known else cell,
                verdict,
                reason,
                change=sides[cell].change(),
                wall=walls[cell].change(),
                clock=clock,
                tolerance=within[cell],
                detectable=(walls if split.get(cell) else sides)[cell].detectable(share, rule.smallest_effect),
                launches=sides[cell].launches,
                rounds=min(len(side.blocks) if side else 0 for side in (before, after)),
                set_aside=sum(bool(block.timing.flags) for side in (before, after) if side for block in side.blocks),
                is_improved=is_improved.get(cell, False),
                costs=costs,
            )
        )
    return tuple(findings)


def unlike(found: Sequence[Difference], cells: Sequence[str]) -> tuple[Finding, ...]:
    """The findings where the machine is not that of the baseline: no cell is judged, every difference is named."""
    reason = f"another machine or setting than the baseline's: {', '.join(map(str, found))}"
    return tuple(Finding("baseline", cell, "ENVIRONMENT", reason) for cell in cells)


def yardstick_of(baseline: Run, cells: Sequence[str]) -> str | None:
    """The cell that times can be taken over: the one reference of these cells, none of them itself, and a network of
    the zoo, which no change to the user's own code makes slower. None where there is no such cell.
    """
    cases = [found.cell.case for cell in cells if (found := _result(baseline, cell)) is not None]
    references = {case.id: case for case in map(baseline.experiment.reference_of, cases) if case is not None}
    if len(references) != 1:
        return None
    (case,) = references.values()
    is_apart = case.id not in cells and ":" not in case.model
    return case.id if is_apart and (found := _result(baseline, case.id)) is not None and found.blocks else None


def geomean(baseline: Run, candidate: Run, cells: Sequence[str], yardstick: str | None) -> Estimate | None:
    """The geometric mean of the changes over the cells, launch by launch, as `Sides.change`; None without a cell.

    Cells whose CPU time misses work are left out.
    """
    told = [cell for cell in cells if not _split(baseline, candidate, cell, yardstick)]
    sides = [_sides(baseline, candidate, cell, yardstick, candidate.clock) for cell in told]
    whole = [item for item in sides if item.launches]
    if not whole:
        return None

    def mean(each: Sequence[Sequence[float]]) -> list[float]:
        return [math.fsum(values) / len(values) for values in zip(*each, strict=False)]

    return Sides(mean([item.baseline for item in whole]), mean([item.candidate for item in whole])).change()


def notes(yardstick: str | None) -> tuple[str, ...]:
    """What to know of a comparison with a stored run before reading it."""
    if yardstick is None:
        return (
            "The baseline holds no yardstick, so a slower machine cannot be told from slower code: store it with "
            "--save-baseline, or compare two revisions with --against.",
        )
    return ("Times are taken over the yardstick's in the same round.",)


def remarks(baseline: Run, candidate: Run, cells: Sequence[str], yardstick: str | None) -> tuple[str, ...]:
    """What is worth knowing of these two runs and decides nothing."""
    found = []
    change = _sides(baseline, candidate, yardstick, None, candidate.clock).change() if yardstick else None
    if change is not None:
        found.append(f"The yardstick itself took ×{change.point:.3f} of its time then.")
    for cell in cells:
        before, after = (_result(run, cell) for run in (baseline, candidate))
        if before and after and before.cell.case != after.cell.case:
            found.append(f"{name_of(after.cell.case)} is made in another way than in the baseline.")
    versions = [run.environment.facts.get("effbench.version") for run in (baseline, candidate)]
    if versions[0] != versions[1]:
        found.append(f"The baseline was measured by effbench {versions[0]}, the candidate by {versions[1]}.")
    return tuple(found)


def name_of(case: Case) -> str:
    """How reports call a case: by the model's name alone where that is its only label."""
    return str(case.labels["model"]) if tuple(case.labels) == ("model",) else case.id


def _broken(costs: Sequence[Costed]) -> tuple[Word, str] | None:
    names = [item.name for item in costs if not item.is_kept]
    return ("REGRESSION", f"it costs something else: {', '.join(names)}") if names else None


def _trouble(baseline: Run, candidate: Run, cell: str, yardstick: str | None) -> tuple[Word, str] | None:
    """What keeps a cell from being judged at all: the verdict and the reason."""
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
        if one is not None and contaminated(one)
    ]
    if disturbed:
        sides = " and ".join(dict.fromkeys(disturbed))
        return (
            "ENVIRONMENT",
            f"others disturbed more than a tenth of the blocks of the {sides}; measure on a quieter machine",
        )
    return None


def _unsteady(baseline: Run, candidate: Run, cell: str) -> str:
    """Which side was measured before its times had settled; "" where none was."""
    for side, run in (("baseline", baseline), ("candidate", candidate)):
        warmups = [launch.warmups[cell] for launch in run.launches if cell in launch.warmups]
        if not all(warmup.steady for warmup in warmups):
            return f"the {side} did not reach a steady state"
    return ""


def _split(baseline: Run, candidate: Run, cell: str, yardstick: str | None) -> str:
    """Why CPU time alone cannot tell how the two runs differ; "" where it can."""
    measured = {
        f"{side}{of}": share_of(undisturbed_rounds(found))
        for side, run in (("baseline", baseline), ("candidate", candidate))
        for of, name in (("", cell), ("'s yardstick", yardstick))
        if name and (found := _result(run, name)) is not None
    }
    return ab_pairs.split(candidate.clock, measured)


def _sides(baseline: Run, candidate: Run, cell: str, yardstick: str | None, clock: str) -> Sides:
    return Sides(*(_medians(run, cell, yardstick, clock) for run in (baseline, candidate)))


def _medians(run: Run, cell: str, yardstick: str | None, clock: str) -> list[float]:
    """Each launch's median log time, over the yardstick's in the same round where there is one."""
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
