"""From which batch on does a network no longer gain from a larger one? Pure, no torch.

The saturating batch is the smallest whose images per second lie within 5 % of the most that was measured. It is judged
by paired ratios of time per image, as guidelines are: within 5 % means the whole interval, and a smaller batch whose
interval spans the 5 % leaves the question open. All batches of a network share the error rate (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from effbench.analysis.summary import CellSummary, paired_ratio, per_image, rounds_of
from effbench.analysis.verdicts import CONFIDENCE, MIN_LAUNCHES
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.core.study import Label

FACTOR = "batch"
WITHIN = 0.05
"""The share of the most images per second that a smaller batch may lack and still count as saturated."""

_SLOWEST = 1 / (1 - WITHIN)


@dataclass(frozen=True)
class Saturation:
    """What a sweep over batches says of one network.

    `batch` saturates it: shown for "saturated", the likeliest for "unsure", the largest that was measured for "rising",
    where a larger one might be faster still; None where nothing was measured. `best` is the batch with the most images
    per second, `losses` the time per image of each smaller batch over that of the best.
    """

    group: Mapping[str, Label]
    verdict: Literal["saturated", "rising", "unsure"]
    batch: int | None = None
    best: int | None = None
    losses: Mapping[int, Estimate | None] = field(default_factory=dict)
    reason: str = ""


def saturations(run: Run, cells: Sequence[CellSummary]) -> tuple[Saturation, ...]:
    """One for each network (each group of the study) of a sweep, in study order; none for a run of another factor."""
    if run.experiment.factor != FACTOR:
        return ()
    groups: list[dict[str, Label]] = []
    for cell in cells:
        group = run.experiment.group_of(cell.cell.case)
        if group not in groups:
            groups.append(group)
    return tuple(
        _judge(run, group, [cell for cell in cells if run.experiment.group_of(cell.cell.case) == group])
        for group in groups
    )


def _judge(run: Run, group: Mapping[str, Label], cells: Sequence[CellSummary]) -> Saturation:
    measured = sorted((cell for cell in cells if cell.throughput), key=lambda cell: cell.cell.batch)
    if not measured:
        return Saturation(group, "unsure", reason="; ".join(dict.fromkeys(c.skipped or "no time" for c in cells)))
    # Images per second are wall-clock time. One CPU thread's own time is that without the neighbours.
    clock = "wall" if run.clock == "device" else run.clock
    best = min(measured, key=lambda cell: _seconds_per_image(cell, clock))
    smaller = [cell for cell in measured if cell.cell.batch < best.cell.batch]
    rounds = rounds_of(run)
    confidence = 1 - (1 - CONFIDENCE) / max(len(smaller), 1)
    losses = {}
    for cell in smaller:
        found = paired_ratio(rounds[cell.cell.id], rounds[best.cell.id], clock, confidence)
        losses[cell.cell.batch] = per_image(found, best.cell, cell.cell)
    batch = next((size for size, loss in losses.items() if loss and _is_within(loss)), best.cell.batch)
    doubts = [
        f"batch {size}: {_spans(loss)}" for size, loss in losses.items() if size < batch and not _is_outside(loss)
    ]
    # A network that waits for the host at small batches is what a sweep looks for, and no disturbance.
    used = [cell for cell in measured if cell.cell.batch <= batch or cell is best]
    flags = dict.fromkeys(flag for cell in used for flag in cell.flags if flag != "host-bound")
    doubts += [*flags, *(_few(best.launches) if best.launches < MIN_LAUNCHES else ())]
    largest = measured[-1].cell.batch
    if doubts:
        return Saturation(group, "unsure", batch, best.cell.batch, losses, "; ".join(doubts))
    if batch == largest:
        beyond = [
            f"batch {cell.cell.batch} {cell.skipped}" for cell in cells if cell.skipped and cell.cell.batch > largest
        ]
        reason = beyond[0] if beyond else f"{largest} is the largest batch measured"
        return Saturation(group, "rising", batch, best.cell.batch, losses, reason)
    return Saturation(group, "saturated", batch, best.cell.batch, losses)


def _seconds_per_image(cell: CellSummary, clock: str) -> float:
    time = cell.latency if clock == "wall" else cell.busy
    return math.inf if time is None else time.point / cell.cell.batch


def _is_within(loss: Estimate) -> bool:
    return loss.high is not None and loss.high <= _SLOWEST


def _is_outside(loss: Estimate | None) -> bool:
    return loss is not None and loss.low is not None and loss.low > _SLOWEST


def _spans(loss: Estimate | None) -> str:
    if loss is None or loss.low is None or loss.high is None:
        return "no interval"
    least, most = (100 * (1 - 1 / bound) for bound in (loss.low, loss.high))
    return f"{least:.1f} to {most:.1f} % below the most"


def _few(launches: int) -> tuple[str]:
    return (f"{launches} of {MIN_LAUNCHES} launches that a verdict needs",)
