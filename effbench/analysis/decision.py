"""What a run that stops by itself has decided, from its blocks: which network is faster, or how precise each ratio is.

The rules are in `analysis.sequential`; this module applies them to a run. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effbench.analysis import between_sittings, sequential, stats
from effbench.analysis.summary import Rounds, ratios_to, rounds_of, time_of
from effbench.analysis.verdicts import MIN_LAUNCHES
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.host.emulation import is_emulated


@dataclass(frozen=True)
class Answer:
    """What was decided about one cell.

    Attributes
    ----------
    cell
        Id of the cell.
    reference
        Id of the cell that it was compared with; None where its own time was asked for.
    verdict
        ``"faster"``, ``"slower"``, ``"same"``, ``"precise"`` or ``"undecided"``.
    estimate
        Its ratio (or time), with the interval that tables show.
    between
        Half width of its interval after any number of launches in this sitting, as a share; None where it has no limit.
    is_futile
        Whether more launches in the same sitting could not decide, because of `between`.
    """

    cell: str
    reference: str | None
    verdict: Literal["faster", "slower", "same", "precise", "undecided"]
    estimate: Estimate | None
    between: float | None = None
    is_futile: bool = False


@dataclass(frozen=True)
class RunDecision:
    """What a run that stops by itself has decided.

    Attributes
    ----------
    until
        What was asked: ``"faster"`` or ``"precision"``.
    after_launches
        Launches that have ended.
    answers
        One per cell that was judged; empty where nothing can be.
    """

    until: str
    after_launches: int
    answers: tuple[Answer, ...]

    @property
    def is_decided(self) -> bool:
        """Whether every question has its answer."""
        return bool(self.answers) and all(item.verdict != "undecided" for item in self.answers)

    @property
    def is_futile(self) -> bool:
        """Whether more launches in this sitting cannot decide what is undecided, or there is nothing to decide."""
        return all(item.is_futile for item in self.answers if item.verdict == "undecided") and not self.is_decided


def decide(run: Run) -> RunDecision | None:
    """Judge a run as it is now; None for a run of a fixed number of launches.

    Ratios are judged where there are any, else the time of each cell by its precision.
    """
    if run.sampling.until == "launches":
        return None
    finished = finished_launches(run)
    return RunDecision(run.sampling.until, finished, _answers(run, finished))


def finished_launches(run: Run) -> int:
    """Return how many launches have ended. One that was interrupted is measured again."""
    return len({launch.slot for launch in run.launches if launch.stopped != "interrupted"})


def _answers(run: Run, finished: int) -> tuple[Answer, ...]:
    if is_emulated(run.environment):  # it has costs, and no times
        return ()
    rounds = rounds_of(run)
    measured = {result.cell.id: result.cell for result in run.results if not result.skipped}
    pairs = {}
    for name, cell in measured.items():
        reference = run.experiment.reference_of(cell.case)
        if reference is not None and reference.id != name and reference.id in measured:
            pairs[name] = reference.id
    # A claim of a study needs more launches than an interval.
    is_early = bool(run.experiment.claims) and finished < MIN_LAUNCHES
    if run.sampling.until == "faster":
        return tuple(_order(run, pair, len(pairs), rounds, is_early) for pair in pairs.items())
    found = []
    for name in pairs or measured:
        estimate = (
            ratios_to(run, measured[name], measured[pairs[name]], rounds)[0]
            if pairs
            else time_of(run, rounds[name], "wall")
        )
        is_met = sequential.is_precise(estimate, run.sampling.precision) and not is_early
        half = _least_half_width(run, name, "ratio" if pairs else "latency", sequential.CONFIDENCE)
        point = None if estimate is None else estimate.point
        futile = not is_met and sequential.is_futile(point, half, until="precision", precision=run.sampling.precision)
        verdict: Literal["precise", "undecided"] = "precise" if is_met else "undecided"
        found.append(Answer(name, pairs.get(name), verdict, estimate, _share(half), futile))
    return tuple(found)


def _order(
    run: Run,
    pair: tuple[str, str],
    ratios: int,
    rounds: Mapping[str, Rounds],
    is_early: bool,
) -> Answer:
    """Judge which of two cells is faster. Where CPU time misses work, both clocks have to agree."""
    cell, reference = (run.result(name).cell for name in pair)
    held = 1 - (1 - sequential.CONFIDENCE) / ratios
    found = [ratio for ratio in ratios_to(run, cell, reference, rounds, held) if ratio is not None]
    said = {sequential.verdict(ratio) for ratio in found}
    verdict = said.pop() if len(said) == 1 and not is_early else "undecided"
    half = _least_half_width(run, cell.id, "ratio", held)
    futile = verdict == "undecided" and any(sequential.is_futile(ratio.point, half) for ratio in found)
    return Answer(cell.id, reference.id, verdict, ratios_to(run, cell, reference, rounds)[0], _share(half), futile)


def _least_half_width(run: Run, cell: str, figure: str, confidence: float) -> float | None:
    """Return the half width, in logarithms, of the interval after any number of launches in this sitting.

    None where it has no limit: on a scripted clock, and where further launches are spread over other sittings.
    """
    scatter = between_sittings.scatter_of(run, cell, figure)
    if scatter is None or run.sampling.spread_s:
        return None
    return scatter.tau * stats.t_quantile(0.5 + confidence / 2, scatter.freedom)


def _share(half: float | None) -> float | None:
    return None if half is None else math.expm1(half)
