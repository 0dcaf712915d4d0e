"""Draw the roofline figure: each network's achieved FLOP rate over its arithmetic intensity, under the roofs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from effbench.analysis import rank_agreement
from effbench.analysis.cell_summary import CellSummary
from effbench.core import units
from effbench.core.cost import DEFAULT_LEVEL
from effbench.core.peaks import Peaks, from_facts
from effbench.core.run import Run
from effbench.report import text
from effbench.report.figures import label_placement, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_BODY_IN = 4.6
_NAME_LENGTH = 36


class _Point(NamedTuple):
    """Flops per byte at the default level, Gflop/s, whether the cell is flagged, its name and its family."""

    intensity: float
    achieved: float
    flagged: bool
    name: str
    family: str


def can_draw(run: Run, cells: Sequence[CellSummary]) -> bool:
    """Return whether the run has its device's peaks and a measured cell with multiply-adds."""
    return bool(_peaks(run, cells) and _points(run, cells))


def roofline_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    """Draw one point per cell: achieved flop/s over flops per byte of eager memory access, under the roofs per dtype.

    Cells without multiply-adds are left out. Points are labelled with names if all names fit; otherwise colour and
    marker give the family.
    """
    with style.plain_style():
        return _roofline_figure(run, cells)


def _roofline_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    points, roofs = _points(run, cells), _peaks(run, cells)
    handles = [style.handle("o", style.BLUE, "measured")]
    if any(point.flagged for point in points):
        handles.append(style.handle("X", style.BLUE, "measured, flagged: see the table"))
    handles += [_roof_handle(peaks, several=len(roofs) > 1) for peaks in roofs]
    where = "" if text.is_comparison(run) else f"; at each point: {', '.join(_named_by(run, cells))}"
    title = f"{run.experiment.title}, under the roofline"
    figure = style.new_figure(_BODY_IN, title, text.subtitle(run, cells) + where, handles)
    axes = figure.add_subplot()
    style.style_axes(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.set_xlabel(f"intensity (flops per byte of memory access, {DEFAULT_LEVEL})", fontsize=style.TEXT_PT)
    axes.set_ylabel("achieved (Gflop/s, 2 flops a multiply-add)", fontsize=style.TEXT_PT)
    across = [point.intensity for point in points] + [peaks.ridge for peaks in roofs]
    up = [point.achieved for point in points] + [peaks.flops_per_s / 1e9 for peaks in roofs]
    style.log_axis(axes, "x", min(across), max(across), room=1.6)
    style.log_axis(axes, "y", min(up), max(up), room=1.6)
    for point in points:
        mark = "X" if point.flagged else "o"
        axes.plot(point.intensity, point.achieved, marker=mark, ms=style.MARKER_PT, color=style.BLUE, zorder=3)
    lines = [_roof(axes, peaks) for peaks in roofs]
    for line in lines:
        axes.plot(*zip(*line, strict=True), color=style.VERMILLION, lw=1.4, zorder=2)
    # Labels are placed in the final layout, which matplotlib computes when it draws.
    figure.draw_without_rendering()
    places, names = [point[:2] for point in points], [point.name for point in points]
    named = any(label_placement.label(axes, places, names, far=far, avoid=lines) for far in (60.0, math.inf))
    if not named and text.is_comparison(run):
        _colour_families(figure, axes, points)
    return figure


def _colour_families(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    from matplotlib.lines import Line2D

    families = [family for family, _ in Counter(point.family for point in points).most_common()]
    looks = style.colours_and_markers(families)
    for line, point in zip(list(axes.lines), points, strict=False):
        colour, marker = looks[point.family]
        line.set(color=colour, marker="X" if point.flagged else marker)
    handles = [
        Line2D([], [], ls="", color=looks[family][0], marker=looks[family][1], ms=style.MARKER_PT, label=family)
        for family in families
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=style.TEXT_PT)


def _roof(axes: Axes, peaks: Peaks) -> list[tuple[float, float]]:
    """Draw the memory roof up to the ridge, and the flat arithmetic roof after it. Returns its corners."""
    left, right = axes.get_xlim()
    flat = peaks.flops_per_s / 1e9
    return [(left, left * peaks.bytes_per_s / 1e9), (peaks.ridge, flat), (right, flat)]


def _roof_handle(peaks: Peaks, *, several: bool) -> Line2D:
    from matplotlib.lines import Line2D

    rates = f"{units.digits(peaks.bytes_per_s / 1e9)} GB/s and {units.digits(peaks.flops_per_s / 1e9)} Gflop/s"
    return Line2D(
        [], [], color=style.VERMILLION, lw=1.4, label=f"peaks: {rates}{f', {peaks.dtype}' if several else ''}"
    )


def _points(run: Run, cells: Sequence[CellSummary]) -> list[_Point]:
    keys = _named_by(run, cells)
    points = []
    for cell in cells:
        if cell.cost is None or cell.latency is None or not cell.cost.madds or not cell.cost.memory_access_bytes:
            continue
        flops = 2 * cell.cost.madds
        carried = cell.cell.case.labels
        name = ", ".join(text.label_text(carried[key]) for key in keys if key in carried)
        name = style.shorten(name or text.model_name(cell), _NAME_LENGTH)
        achieved = flops / cell.latency.point / 1e9
        family = rank_agreement.family(cell.cell.case.model)
        points.append(_Point(flops / cell.cost.memory_access_bytes, achieved, bool(cell.flags), name, family))
    return points


def _named_by(run: Run, cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return the labels in which the cells differ."""
    return (*text.grouping(run, cells), run.experiment.factor)


def _peaks(run: Run, cells: Sequence[CellSummary]) -> list[Peaks]:
    dtypes = dict.fromkeys(cell.cell.case.dtype for cell in cells)
    found = (from_facts(run.environment.facts, dtype) for dtype in dtypes)
    return [peaks for peaks in found if peaks is not None]
