"""From raw blocks to one estimate per cell: what every table, figure and verdict reads. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from effbench.core import Cell, Cost, Estimate


@dataclass(frozen=True)
class CellSummary:
    """One cell of a run, estimated.

    `latency` is wall seconds per call of the whole batch: the median over launches of each launch's median block.
    `ratio` is the cell's time over its reference cell's, paired within rounds, on the run's clock; None for a skipped cell, exactly 1
    without interval for the reference itself. `paper_speed` is the paper's figure in `paper_unit` for the matching platform,
    `paper_ratio` the paper's reference speed over it (so that it reads like `ratio`). `flags` are reasons why the cell cannot
    confirm a claim: "host-bound", "contaminated", "not steady". `notes` are worth a line but forbid nothing: "page faults".
    """

    cell: Cell
    cost: Cost | None = None
    latency: Estimate | None = None
    busy: Estimate | None = None
    ratio: Estimate | None = None
    reference: str | None = None
    throughput: float | None = None
    throughput_unit: str = "images/s"
    paper_speed: float | None = None
    paper_unit: str | None = None
    paper_ratio: float | None = None
    bound: str | None = None
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    launches: int = 0
    blocks: int = 0
    set_aside: int = 0
    skipped: str | None = None
