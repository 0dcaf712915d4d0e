"""Draw a study under several runtimes: measured ratios over the factor, one line per runtime, one panel per group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.report import text
from effbench.report.figures import style
from effbench.report.figures.study import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_IN = 2.6
_COLUMNS = 2


def runtimes_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    """Draw the ratio to the reference under the same runtime, with its interval, at each level of the group.

    A cross marks a flagged cell, hollow diamonds are the paper's ratios. The axis of ratios is shared and logarithmic.
    """
    with style.plain_style():
        return _runtimes_figure(run, cells)


def _runtimes_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    keys = [key for key in text.grouping(run, cells) if key != "runtime"]
    groups: dict[tuple[Label | None, ...], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.cell.case.labels.get(key) for key in keys), []).append(cell)
    looks = style.colours_and_markers(tuple(dict.fromkeys(cell.cell.runtime for cell in cells)))
    handles = [style.handle(marker, colour, name) for name, (colour, marker) in looks.items()]
    if any(cell.paper_ratio for cell in cells):
        handles.append(style.handle("D", style.INK, "paper", hollow=True))
    rows = math.ceil(len(groups) / _COLUMNS)
    figure = style.new_figure(rows * _PANEL_IN, run.experiment.title, text.subtitle(run, cells), handles)
    low, high = span(cells)
    for place, (group, members) in enumerate(groups.items()):
        axes = figure.add_subplot(rows, min(_COLUMNS, len(groups)), place + 1)
        _panel(axes, run, members, looks)
        named = {key: value for key, value in zip(keys, group, strict=True) if value is not None}
        axes.set_title(text.group_text(named), loc="left", fontsize=style.TEXT_PT, fontweight="bold", color=style.INK)
        style.log_axis(axes, "y", low, high, least=2.5)
        if place % _COLUMNS == 0:
            axes.set_ylabel("time relative to the first\n(above 1: slower)", fontsize=style.TEXT_PT)
    return figure


def _panel(axes: Axes, run: Run, cells: Sequence[CellSummary], looks: dict[str, tuple[str, str]]) -> None:
    style.style_axes(axes)
    axes.grid(axis="y", color="#E4E4E4", lw=0.7)
    axes.axhline(1.0, color=style.GREY, lw=1.0, ls=(0, (4, 3)), zorder=1)
    factor = run.experiment.factor
    taken = {cell.cell.case.labels.get(factor) for cell in cells}
    levels = [level for level in run.experiment.levels if level in taken]
    step = 0.7 / max(len(looks), 1)
    for index, (name, (colour, marker)) in enumerate(looks.items()):
        shift = (index - (len(looks) - 1) / 2) * step
        for cell in cells:
            if cell.cell.runtime != name or cell.ratio is None:
                continue
            x, point = levels.index(cell.cell.case.labels[factor]) + shift, cell.ratio.point
            if cell.ratio.low is not None and cell.ratio.high is not None:
                axes.plot([x, x], [cell.ratio.low, cell.ratio.high], color=colour, lw=1.4, zorder=3)
            axes.plot([x], [point], marker="x" if cell.flags else marker, ms=style.MARKER_PT, color=colour, zorder=4)
    printed = {cell.cell.case.labels[factor]: cell.paper_ratio for cell in cells if cell.paper_ratio is not None}
    for level, ratio in printed.items():
        axes.plot([levels.index(level)], [ratio], marker="D", mfc="none", mew=1.2, ms=9, color=style.INK, zorder=5)
    for edge in range(1, len(levels)):
        axes.axvline(edge - 0.5, color="#EEEEEE", lw=0.8, zorder=0)
    room = (style.WIDTH_IN / _COLUMNS - 0.8) / max(len(levels), 1)
    ticks = [style.wrap_text(text.label_text(level), room, style.SMALL_PT) for level in levels]
    axes.set_xticks(range(len(levels)), ticks)
    axes.set_xlim(-0.5, max(len(levels), 1) - 0.5)
