"""Draw a model comparison: throughput against multiply-adds and memory access, and latencies as sorted bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effbench.analysis.cell_summary import CellSummary
from effbench.core import units
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.report.figures import label_placement, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SCATTER_IN = 3.3
_BAR_IN = 0.27
_MOST_NAMES = 15
"""With more names than this, labels crowd the points even if all of them fit."""
_NAME_LENGTH = 44
_REASON_LENGTH = 60


def compare_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    """Draw two scatter panels (throughput against madds and against memory access) over bars of latency, fastest first.

    Points are labelled with their model's name if all names fit, else with the number that precedes the name at the
    bars. A skipped model keeps its row among the bars, with the reason.
    """
    with style.plain_style():
        return _compare_figure(run, cells)


def _compare_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    ordered = sorted(cells, key=lambda cell: math.inf if cell.latency is None else cell.latency.point)
    names = _names(ordered)
    bars_in = _BAR_IN * max(len(ordered), 1) + 0.6
    figure = style.new_figure(
        _SCATTER_IN + bars_in,
        run.experiment.title,
        report_text.subtitle(run, cells),
        _legend(ordered),
    )
    grid = figure.add_gridspec(2, 1, height_ratios=[_SCATTER_IN, bars_in])
    above, below = figure.add_subfigure(grid[0, 0]), figure.add_subfigure(grid[1, 0])
    costs = (("madds", "madds (M)"), ("memory_access", "memory access (M elements)"))
    scatters = []
    for place, (attribute, label) in enumerate(costs):
        axes = above.add_subplot(1, 2, place + 1)
        points = _points(ordered, attribute)
        _scatter(axes, ordered, points)
        axes.set_xlabel(label, fontsize=style.TEXT_PT)
        scatters.append((axes, points))
    unit = next((cell.throughput_unit for cell in ordered if cell.throughput is not None), "images/s")
    scatters[0][0].set_ylabel(f"throughput ({unit})", fontsize=style.TEXT_PT)
    bars = below.add_subplot()
    _bars(bars, ordered, names)
    # Labels are placed in the final layout, which matplotlib computes when it draws.
    figure.draw_without_rendering()
    if len(names) > _MOST_NAMES or not all(
        label_placement.label(axes, points, names, far=60.0) for axes, points in scatters
    ):
        numbers = [str(number) for number in range(1, len(names) + 1)]
        bars.set_yticks(range(len(names)), [f"{name}   {number}" for name, number in zip(names, numbers, strict=True)])
        for axes, points in scatters:
            for text in list(axes.texts):
                text.remove()
            label_placement.label(axes, points, numbers, far=math.inf)
    return figure


def latencies_in(axes: Axes, cells: Sequence[CellSummary]) -> None:
    """The lower panel alone, in axes of the caller's: bars of latency, fastest first."""
    ordered = sorted(cells, key=lambda cell: math.inf if cell.latency is None else cell.latency.point)
    with style.plain_style():
        _bars(axes, ordered, _names(ordered))


def _names(cells: Sequence[CellSummary]) -> list[str]:
    """Return model names, or cell names where one model has several cells."""
    models = [report_text.model_name(cell) for cell in cells]
    names = models if len(set(models)) == len(models) else [cell.cell.id for cell in cells]
    return [style.shorten(name, _NAME_LENGTH) for name in names]


def _legend(cells: Sequence[CellSummary]) -> list[Line2D]:
    if not any(cell.flags for cell in cells):
        return []
    return [
        style.handle("o", style.BLUE, "measured"),
        style.handle("X", style.BLUE, "measured, flagged: see the table"),
    ]


def _points(cells: Sequence[CellSummary], attribute: str) -> list[tuple[float, float] | None]:
    """Return (cost in millions, throughput) of each cell; None if either is missing."""
    points: list[tuple[float, float] | None] = []
    for cell in cells:
        cost = None if cell.cost is None else getattr(cell.cost, attribute) / 1e6
        points.append((cost, cell.throughput) if cost and cell.throughput else None)
    return points


def _scatter(axes: Axes, cells: Sequence[CellSummary], points: Sequence[tuple[float, float] | None]) -> None:
    style.style_axes(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    known = [point for point in points if point is not None]
    if not known:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=style.GREY)
        return
    costs, speeds = zip(*known, strict=True)
    style.log_axis(axes, "x", min(costs), max(costs), room=1.3)
    style.log_axis(axes, "y", min(speeds), max(speeds), room=1.3)
    for cell, point in zip(cells, points, strict=True):
        if point is not None:
            axes.plot(*point, marker="X" if cell.flags else "o", ms=style.MARKER_PT, color=style.BLUE, zorder=3)


def _bars(axes: Axes, cells: Sequence[CellSummary], names: Sequence[str]) -> None:
    style.style_axes(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("latency of one batch (ms)", fontsize=style.TEXT_PT)
    ends = [1e3 * (cell.latency.high or cell.latency.point) for cell in cells if cell.latency is not None]
    longest = max(ends, default=1.0)
    # The last quarter of the axis is for the numbers at the ends of the bars.
    axes.set_xlim(0, 1.33 * longest)
    for place, cell in enumerate(cells):
        if cell.latency is None:
            reason = (
                "not measured" if cell.skipped is None else style.shorten(f"skipped: {cell.skipped}", _REASON_LENGTH)
            )
            _beside(axes, place, 0.0, reason)
            continue
        time = cell.latency
        axes.barh(place, 1e3 * time.point, height=0.62, color=style.BLUE, alpha=0.45, lw=0)
        end = time.point
        if time.low is not None and time.high is not None:
            reach = [[1e3 * (time.point - time.low)], [1e3 * (time.high - time.point)]]
            axes.errorbar(
                [1e3 * time.point], [place], xerr=reach, fmt="none", ecolor=style.INK, elinewidth=1.3, capsize=3
            )
            end = time.high
        words = [units.digits(1e3 * time.point) + ("" if time.half_width is None else f" {units.plus_minus(time)}")]
        _beside(axes, place, 1e3 * end, ", ".join([*words, *cell.flags]))


def _beside(axes: Axes, place: int, x: float, text: str) -> None:
    axes.annotate(
        text, (x, place), (6, 0), textcoords="offset points", va="center", fontsize=style.SMALL_PT, color=style.INK
    )
