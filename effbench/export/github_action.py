"""Export for github-action-benchmark, one file for times (smaller is better) and one for speeds (larger is better).


Each is a list of ``{name, value, unit, range, extra}``, read with ``tool: customSmallerIsBetter`` and
``tool: customBiggerIsBetter``. Source: github.com/benchmark-action/github-action-benchmark, its README and reader.
"""

from __future__ import annotations

from collections.abc import Sequence

from effbench.core import units
from effbench.core.run import Run
from effbench.export.measured import MeasuredCell, as_json
from effbench.report.text import percent


def smaller(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return latency in milliseconds, for ``customSmallerIsBetter``."""
    return _render(cells, "ms", [[1e3 * end for end in _ends(cell)] for cell in cells])


def bigger(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return throughput in images per second, for ``customBiggerIsBetter``."""
    return _render(cells, "images/s", [[cell.batch / end for end in _ends(cell)] for cell in cells])


def _ends(cell: MeasuredCell) -> list[float]:
    """Return the time, and the ends of its interval if it has one."""
    time = cell.latency
    return [time.point] if time.low is None or time.high is None else [time.point, time.low, time.high]


def _render(cells: Sequence[MeasuredCell], unit: str, values: Sequence[Sequence[float]]) -> str:
    entries = []
    for cell, (value, *interval) in zip(cells, values, strict=True):
        entry: dict[str, str | float] = {"name": cell.name, "value": value, "unit": unit}
        if interval:
            # The action takes one number after ±; the interval, which is not symmetric, is in the tooltip.
            entry["range"] = f"± {(max(interval) - min(interval)) / 2:.6g}"
        entries.append(entry | {"extra": "\n".join(_extra(cell, unit, interval))})
    return as_json(entries)


def _extra(cell: MeasuredCell, unit: str, interval: Sequence[float]) -> list[str]:
    """Return the lines of the tooltip."""
    found, cost = cell.summary, cell.summary.cost
    lines = [f"{found.launches} launches, {len(cell.blocks)} blocks"]
    if interval:
        low, high = (units.digits(end) for end in sorted(interval))
        lines.insert(0, f"{percent(cell.latency.confidence)} interval {low} to {high} {unit}")
    if cost is not None:
        lines.append(f"{units.count(cost.madds)} multiply-adds, {units.count(cost.params)} parameters")
        lines.append(f"memory access {units.count(cost.memory_access)} elements")
    return [*lines, *found.flags]
