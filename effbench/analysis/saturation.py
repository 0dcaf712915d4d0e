"""Find the batch size from which on throughput no longer rises. Pure, no torch.

The saturating batch is the smallest whose images per second lie within 5 % of the highest measured. It is judged by
paired ratios of time per image, as guidelines are. A batch is within 5 % if the whole confidence interval is. If the
interval of a smaller batch spans the 5 %, the verdict is "unsure". All batches of a network share the error rate
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.run_sittings import RunSittings
from effbench.analysis.sequential import CONFIDENCE
from effbench.analysis.summary import per_image, ratio_of, rounds_of
from effbench.analysis.verdicts import MIN_LAUNCHES
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.core.study import Label

FACTOR = "batch"
WITHIN = 0.05
"""A batch counts as saturated if its throughput is at most this share below the highest."""

_LARGEST_LOSS = 1 / (1 - WITHIN)


@dataclass(frozen=True)
class Saturation:
    """The saturating batch of one network, from a sweep over batch sizes.

    `batch` is the saturating batch if the verdict is "saturated", and the likeliest one if it is "unsure". If it is
    "rising", `batch` is the largest one measured, and a larger one might be faster still. It is None where nothing was
    measured. `best` is the batch with the highest throughput. `losses` is the time per image of each smaller batch over
    that of the best.
    """

    group: Mapping[str, Label]
    verdict: Literal["saturated", "rising", "unsure"]
    batch: int | None = None
    best: int | None = None
    losses: Mapping[int, Estimate | None] = field(default_factory=dict)
    reason: str = ""


def saturations(run: Run, cells: Sequence[CellSummary]) -> tuple[Saturation, ...]:
    """Judge each network (each group of the study) of a batch sweep, in study order; () for a run of another factor."""
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
    # Throughput is wall-clock throughput. With one CPU thread, CPU time is wall time without other processes.
    clock = "wall" if run.clock == "device" else run.clock
    best = min(measured, key=lambda cell: _seconds_per_image(cell, clock))
    smaller = [cell for cell in measured if cell.cell.batch < best.cell.batch]
    rounds, sittings = rounds_of(run), RunSittings.of(run)
    confidence = 1 - (1 - CONFIDENCE) / max(len(smaller), 1)
    losses = {}
    for cell in smaller:
        found = ratio_of(sittings, rounds[cell.cell.id], rounds[best.cell.id], clock, confidence)
        losses[cell.cell.batch] = per_image(found, best.cell, cell.cell)
    batch = next((size for size, loss in losses.items() if loss and _is_within(loss)), best.cell.batch)
    doubts = [
        f"batch {size}: {_loss_text(loss)}" for size, loss in losses.items() if size < batch and not _is_outside(loss)
    ]
    # Being host-bound at small batches is what a sweep is to show, so it does not make the verdict unsure.
    used = [cell for cell in measured if cell.cell.batch <= batch or cell is best]
    flags = dict.fromkeys(flag for cell in used for flag in cell.flags if flag != "host-bound")
    doubts += [*flags, *(_few_launches(best.launches) if best.launches < MIN_LAUNCHES else ())]
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
    return loss.high is not None and loss.high <= _LARGEST_LOSS


def _is_outside(loss: Estimate | None) -> bool:
    return loss is not None and loss.low is not None and loss.low > _LARGEST_LOSS


def _loss_text(loss: Estimate | None) -> str:
    if loss is None or loss.low is None or loss.high is None:
        return "no interval"
    least, most = (100 * (1 - 1 / bound) for bound in (loss.low, loss.high))
    return f"{least:.1f} to {most:.1f} % below the most"


def _few_launches(launches: int) -> tuple[str]:
    return (f"{launches} of {MIN_LAUNCHES} launches that a verdict needs",)
