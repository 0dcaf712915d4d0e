"""The estimates of one cell: what every table, figure and verdict reads. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effbench import paper
from effbench.analysis.cpu_share import CpuShare
from effbench.core.cost import DEFAULT_LEVEL, Cost
from effbench.core.estimate import Estimate
from effbench.core.run import Metric
from effbench.core.study import Cell


@dataclass(frozen=True)
class CellSummary:
    """Estimates of one cell of a run. What could not be estimated is None.

    Attributes
    ----------
    cell
        What was measured.
    cost
        Its counts.
    latency
        Wall seconds per call of the whole batch: the median over launches of each launch's median block.
    busy
        The same on the run's own clock: CPU time or device events.
    ratio
        Time over that of the reference cell, paired within rounds, on the run's clock; per image where batches differ.
        Exactly 1 without an interval for the reference itself.
    reference
        Id of the reference cell.
    throughput
        Images per second, or what `throughput_unit` names.
    throughput_unit
        Unit of `throughput`.
    paper_speed
        The paper's speed on the matching platform, in `paper_unit`.
    paper_unit
        Unit of `paper_speed`.
    paper_ratio
        The paper's speed of the reference over `paper_speed`, so that it reads like `ratio`.
    full_model
        The network's row of the paper's Table 8.
    speedup
        Time of the same case under eager over its own, paired within rounds, where the run has both.
    bound
        What most launches found the cell to wait for: host or device.
    bounds_s
        Least seconds of a call at each level of memory access, from the device's peaks.
    flags
        Reasons why the cell cannot confirm a claim: "host-bound" where its ratio is of wall time, `NO_DEVICE_TIME`,
        "contaminated", "not steady", `EMULATED`, and what its CPU time misses (`CpuShare.flag`) where ratios are of CPU
        time.
    notes
        Remarks that forbid nothing: "page faults", an output that is not finite, a host-bound cell whose ratio is of
        device time.
    launches
        Number of launches.
    blocks
        Number of blocks, those set aside included.
    set_aside
        Number of blocks that were set aside.
    disturbed
        Number of blocks by outside cause.
    skipped
        Why it was not measured.
    prepared
        What its runtime made of the network (`runtimes.Prepared`), from the launch that exported it.
    metrics
        Secondary metrics.
    cpu
        CPU time over wall time.
    ratio_wall, speedup_wall
        `ratio` and `speedup` by the wall clock, where CPU time misses work of one of the two cells. Then both must be
        read and neither decides.
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
    full_model: paper.FullModel | None = None
    speedup: Estimate | None = None
    bound: str | None = None
    bounds_s: Mapping[str, float] | None = None
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    launches: int = 0
    blocks: int = 0
    set_aside: int = 0
    disturbed: Mapping[str, int] = field(default_factory=dict)
    skipped: str | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    cpu: CpuShare | None = None
    ratio_wall: Estimate | None = None
    speedup_wall: Estimate | None = None

    @property
    def cpu_time_misses_work(self) -> bool:
        """Whether CPU time misses work of the cell while ratios are of CPU time."""
        return self.cpu is not None and self.cpu.flag in self.flags

    def read(self, what: str) -> Mapping[str, Any]:
        """A secondary metric by name.

        Parameters
        ----------
        what
            One of `core.run.METRICS`, or the name of a plug-in's metric.

        Returns
        -------
        dict
            Its values by name; empty where it was not asked for or could not be read.
        """
        return next((item.values for item in self.metrics if item.what == what), {})

    def over_bound(self, level: str = DEFAULT_LEVEL) -> float | None:
        """Measured time over the least time that the device's peaks allow.

        Both are on the run's clock: on one CPU thread the peaks too are those of CPU time.

        Parameters
        ----------
        level
            Level of memory access that the least time is computed from.

        Returns
        -------
        float or None
            None without either, where CPU time misses work of the cell, and where the least time is too small to divide
            by.
        """
        least = (self.bounds_s or {}).get(level)
        ratio = self.busy.point / least if self.busy is not None and least and not self.cpu_time_misses_work else None
        return None if ratio is None or math.isinf(ratio) else ratio
