"""What a run that stops by itself has decided, from its blocks: which network is faster, or how precise each ratio is.

The rules are in `analysis.sequential`; this module applies them to a run. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effbench.analysis import run_sittings, sequential, stats
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.run_sittings import RunSittings
from effbench.analysis.summary import ratios_to, rounds_of, summarise
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
    flags
        Why the cell or its reference can decide nothing, such as ``"contaminated"``; ``""`` where they can.
    """

    cell: str
    reference: str | None
    verdict: Literal["faster", "slower", "same", "precise", "undecided"]
    estimate: Estimate | None
    between: float | None = None
    is_futile: bool = False
    flags: str = ""


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
    measured = {cell.cell.id: cell for cell in summarise(run) if not cell.skipped}
    pairs = {
        name: cell.reference
        for name, cell in measured.items()
        if cell.reference is not None and cell.reference != name and cell.reference in measured
    }
    # A claim of a study needs more launches than an interval.
    is_early = bool(run.experiment.claims) and finished < MIN_LAUNCHES
    if run.sampling.until == "precision":
        return tuple(_precision(run, measured[name], bool(pairs), is_early) for name in pairs or measured)
    rounds, sittings = rounds_of(run), RunSittings.of(run)
    confidence = 1 - (1 - sequential.CONFIDENCE) / max(len(pairs), 1)
    found = []
    for name, reference in pairs.items():
        sides = measured[name], measured[reference]
        ratios = ratios_to(run, sittings, sides[0].cell, sides[1].cell, rounds, confidence)
        found.append(_order(run, sides, [ratio for ratio in ratios if ratio is not None], confidence, is_early))
    return tuple(found)


def _precision(run: Run, cell: CellSummary, is_ratio: bool, is_early: bool) -> Answer:
    """Judge whether a ratio, or the time of a cell without a reference, is known to the wanted precision."""
    estimate, figure = (cell.ratio, "ratio") if is_ratio else (cell.latency, "latency")
    half = _least_half_width(run, cell.cell.id, figure, sequential.CONFIDENCE)
    is_met = sequential.is_precise(estimate, run.sampling.precision) and not is_early
    point = None if estimate is None else estimate.point
    futile = not (is_met or is_early) and sequential.is_futile(
        point, half, until="precision", precision=run.sampling.precision
    )
    verdict: Literal["precise", "undecided"] = "precise" if is_met else "undecided"
    reference = cell.reference if is_ratio else None
    return Answer(cell.cell.id, reference, verdict, estimate, _share(half), futile)


def _order(
    run: Run, sides: tuple[CellSummary, CellSummary], ratios: Sequence[Estimate], confidence: float, is_early: bool
) -> Answer:
    """Judge which of two cells is faster. Where CPU time misses work, both clocks have to agree (`ratios`)."""
    cell, reference = sides
    # Where CPU time misses work of a cell, it is flagged for that, and the two clocks decide.
    flags = dict.fromkeys(flag for side in sides for flag in side.flags if not side.cpu or flag != side.cpu.flag)
    said = {sequential.verdict(ratio) for ratio in ratios}
    verdict = said.pop() if len(said) == 1 and not (is_early or flags) else "undecided"
    half = _least_half_width(run, cell.cell.id, "ratio", confidence)
    futile = verdict == "undecided" and not (is_early or flags)
    futile = futile and any(sequential.is_futile(ratio.point, half) for ratio in ratios)
    return Answer(cell.cell.id, reference.cell.id, verdict, cell.ratio, _share(half), futile, ", ".join(flags))


def _least_half_width(run: Run, cell: str, figure: str, confidence: float) -> float | None:
    """Return the half width, in logarithms, of the interval after any number of launches in this sitting.

    None where it has no limit: on a scripted clock, and where launches are spread over several sittings.
    """
    scatter = run_sittings.scatter_of([run], cell, figure)
    sittings = set(run_sittings.sitting_of_launches(run).values())
    if scatter is None or run.sampling.spread_s or len(sittings) > 1:
        return None
    return scatter.tau * stats.t_quantile(0.5 + confidence / 2, scatter.freedom)


def _share(half: float | None) -> float | None:
    return None if half is None else math.expm1(half)
