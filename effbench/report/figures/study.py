"""Draw a guideline study: measured ratios with intervals and the paper's ratios, one panel per group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from effbench.analysis.cell_summary import CellSummary
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Verdict
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.report import text as report_text
from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


_PANEL_IN = 2.35
_LOG_SPAN = 4.0
"""Ratios that span more than this are drawn on a logarithmic axis."""


def study_figure(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> Figure:
    """Draw the ratio to the reference over the study's factor, one panel per group of the other labels, one scale.

    Filled circles with intervals are measured (a cross if a flag prevents a verdict), hollow diamonds are the paper's.
    Levels are equally spaced in the study's order; a line joins them only if they are numbers.
    """
    with style.plain_style():
        return _study_figure(run, cells, verdicts)


def study_in(axes: Axes, run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> None:
    """The same in axes of the caller's. Raises InvalidValue for a run of several groups, which are as many panels."""
    groups = _groups(run, cells)
    if len(groups) > 1:
        keys = " and ".join(dict.fromkeys(key for group in groups for key in group))
        raise InvalidValue(
            f"this run is drawn in {len(groups)} panels (by {keys}), which do not fit into one axes; leave out ax, or "
            f"measure one of them with select={{{keys.split(' and ')[0]!r}: …}}"
        )
    with style.plain_style():
        levels = _levels(run, cells)
        _panel(axes, run, cells, levels, dodge=0.11 if any(cell.paper_ratio for cell in cells) else 0.0)
        names = [report_text.label_text(level) for level in levels]
        room_in = axes.get_window_extent().width / axes.get_figure(root=True).dpi / max(len(names), 1)  # type: ignore[union-attr]
        is_narrow = any(style.width_in(name, style.SMALL_PT) > room_in - 0.08 for name in names)
        axes.set_xticks(range(len(levels)), names, rotation=90 if is_narrow else 0)
        axes.set_xlim(-0.5, max(len(levels), 1) - 0.5)
        _scale(axes, span(cells))
        axes.set_ylabel(_ratio_label(run), fontsize=style.TEXT_PT)
        axes.set_xlabel(run.experiment.factor, fontsize=style.TEXT_PT)
        said = "\n".join(f"{item.verdict}: {item.claim}" for item in verdicts)
        _title(axes, report_text.group_text(groups[0]) if groups else "", said, _lines(said))
        style.legend_inside(axes, _legend(cells))


def _groups(run: Run, cells: Sequence[CellSummary]) -> list[dict[str, Label]]:
    keys = report_text.grouping(run, cells)
    groups: list[dict[str, Label]] = []
    for cell in cells:
        group = _group(cell, keys)
        if group not in groups:
            groups.append(group)
    return groups


def _study_figure(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> Figure:
    keys, groups = report_text.grouping(run, cells), _groups(run, cells)
    panels = [(group, [cell for cell in cells if _group(cell, keys) == group]) for group in groups or [{}]]
    levels = _levels(run, cells)
    columns, ticks, rotation = _layout(len(panels), [report_text.label_text(level) for level in levels])
    room = (style.WIDTH_IN - 0.95) / columns - 0.15
    words = [_verdict_lines(group, verdicts, room) for group, _ in panels]
    rows = math.ceil(len(panels) / columns)
    lines = max(map(_lines, words))
    labels_in = max(map(len, ticks), default=0) * 0.075 if rotation else max(map(_lines, ticks), default=1) * 0.14
    figure = style.new_figure(
        rows * (_PANEL_IN + 0.15 * (lines + 1) + labels_in),
        run.experiment.title,
        report_text.subtitle(run, cells),
        _legend(cells),
    )
    limits = span(cells)
    for place, ((group, members), said) in enumerate(zip(panels, words, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        _panel(axes, run, members, levels, dodge=0.11 if any(cell.paper_ratio for cell in cells) else 0.0)
        _title(axes, style.wrap_text(report_text.group_text(group), room, style.TEXT_PT), said, lines)
        axes.set_xticks(range(len(levels)), ticks, rotation=rotation)
        axes.set_xlim(-0.5, max(len(levels), 1) - 0.5)
        _scale(axes, limits)
        if place % columns:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(_ratio_label(run), fontsize=style.TEXT_PT)
        if place >= len(panels) - columns:
            axes.set_xlabel(run.experiment.factor, fontsize=style.TEXT_PT)
    return figure


def _ratio_label(run: Run) -> str:
    reference = f"{run.experiment.factor} {report_text.label_text(run.experiment.reference)}"
    room = 0.85 * _PANEL_IN
    gap = " " if style.width_in(f"time relative to {reference}", style.TEXT_PT) <= room else "\n"
    return f"time relative to{gap}{style.wrap_text(reference, room, style.TEXT_PT)}\n(above 1: slower)"


def _group(cell: CellSummary, keys: Sequence[str]) -> dict[str, Label]:
    labels = cell.cell.case.labels
    return {key: labels[key] for key in keys if key in labels}


def _levels(run: Run, cells: Sequence[CellSummary]) -> list[Label]:
    """Return the levels of the cells, in the study's order; levels that the study does not list come last."""
    factor = run.experiment.factor
    taken = dict.fromkeys(label for cell in cells if (label := cell.cell.case.labels.get(factor)) is not None)
    listed = [level for level in run.experiment.levels if level in taken]
    return listed + [level for level in taken if level not in listed]


def _layout(panels: int, names: Sequence[str]) -> tuple[int, list[str], int]:
    """Return the number of panels per row, tick labels and their rotation: as many panels as leave room for labels."""
    for columns in sorted({min(panels, 3), min(panels, 2), 1}, reverse=True):
        room = ((style.WIDTH_IN - 0.7) / columns - 0.2) / max(len(names), 1) - 0.08
        ticks = [style.wrap_text(name, room, style.SMALL_PT) for name in names]
        if all(style.width_in(tick, style.SMALL_PT) <= room for tick in ticks):
            return math.ceil(panels / math.ceil(panels / columns)), ticks, 0
    return min(panels, 2), [style.shorten(name, 28) for name in names], 90


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _verdict_lines(group: Mapping[str, Label], verdicts: Sequence[Verdict], room_in: float) -> str:
    """Return one line per claim: its verdict and its name."""
    here = [item for item in verdicts if all(item.group.get(key, value) == value for key, value in group.items())]
    return "\n".join(style.wrap_text(f"{item.verdict}: {item.claim}", room_in, style.SMALL_PT) for item in here)


def _title(axes: Axes, name: str, said: str, lines: int) -> None:
    """Write the group's name above its verdicts. `lines` is the number of verdict lines reserved in every panel."""
    axes.annotate(
        said,
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=style.SMALL_PT,
        color=style.INK,
    )
    pad = 6 + (1.3 * style.SMALL_PT * lines if said else 0)
    axes.set_title(name, loc="left", fontsize=style.TEXT_PT, fontweight="bold", color=style.INK, pad=pad)


def _legend(cells: Sequence[CellSummary]) -> list[Line2D]:
    confidence = next((cell.ratio.confidence for cell in cells if cell.ratio and cell.ratio.low is not None), None)
    interval = "" if confidence is None else f", {report_text.percent(confidence)} interval"
    handles = [style.handle("o", style.BLUE, f"measured{interval}")]
    if any(cell.flags and cell.ratio for cell in cells):
        handles.append(style.handle("X", style.BLUE, "measured, flagged: cannot confirm"))
    platform = report_text.platforms(cells)
    if platform is not None:
        handles.append(style.handle("D", style.VERMILLION, f"paper, {platform}", hollow=True))
    return handles


def _panel(axes: Axes, run: Run, cells: Sequence[CellSummary], levels: Sequence[Label], *, dodge: float) -> None:
    style.style_axes(axes)
    axes.grid(axis="y", color="#E4E4E4", lw=0.7)
    axes.axhline(1.0, color=style.GREY, lw=1.0, ls=(0, (4, 3)), zorder=1)
    at = {level: place for place, level in enumerate(levels)}
    joined = all(isinstance(level, (int, float)) and not isinstance(level, bool) for level in levels)
    factor = run.experiment.factor
    factor_cells = sorted(
        ((at[cell.cell.case.labels[factor]], cell) for cell in cells if factor in cell.cell.case.labels),
        key=lambda item: item[0],
    )
    line = "-" if joined else ""
    ours = [(place - dodge, cell) for place, cell in factor_cells if cell.ratio is not None]
    axes.plot([x for x, _ in ours], [_point(cell) for _, cell in ours], color=style.BLUE, zorder=2, ls=line, lw=1.2)
    bounded = [(x, cell.ratio) for x, cell in ours if cell.ratio and None not in (cell.ratio.low, cell.ratio.high)]
    below = [ratio.point - (ratio.low or 0.0) for _, ratio in bounded]
    above = [(ratio.high or 0.0) - ratio.point for _, ratio in bounded]
    axes.errorbar(
        [x for x, _ in bounded],
        [ratio.point for _, ratio in bounded],
        yerr=[below, above],
        fmt="none",
        ecolor=style.BLUE,
        elinewidth=1.6,
        capsize=4,
        capthick=1.2,
        zorder=4,
    )
    for x, cell in ours:
        axes.plot(
            [x], [_point(cell)], marker="X" if cell.flags else "o", ms=style.MARKER_PT, color=style.BLUE, zorder=5
        )
    paper = [(place + dodge, cell.paper_ratio) for place, cell in factor_cells if cell.paper_ratio is not None]
    axes.plot(
        [x for x, _ in paper],
        [ratio for _, ratio in paper],
        color=style.VERMILLION,
        marker="D",
        mfc="white",
        mew=1.4,
        ms=style.MARKER_PT - 1,
        zorder=3,
        ls=line,
        lw=0.8,
    )
    for place, cell in factor_cells:
        if cell.ratio is None:
            word = "skipped" if cell.skipped is not None else "no ratio"
            axes.text(
                place - dodge,
                0.04,
                word,
                transform=axes.get_xaxis_transform(),
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=style.SMALL_PT,
                color=style.GREY,
                bbox={"fc": "white", "ec": "none", "pad": 1.0},
            )


def _point(cell: CellSummary) -> float:
    return math.nan if cell.ratio is None else cell.ratio.point


def span(cells: Sequence[CellSummary]) -> tuple[float, float]:
    """Return the range of the shared axis: all points, intervals, the paper's points, and 1."""
    values = [1.0]
    for cell in cells:
        if cell.ratio is not None:
            values += [value for value in (cell.ratio.point, cell.ratio.low, cell.ratio.high) if value is not None]
        if cell.paper_ratio is not None:
            values.append(cell.paper_ratio)
    shown = [value for value in values if math.isfinite(value) and value > 0]
    return min(shown), max(shown)


def _scale(axes: Axes, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = limits
    if high / low > _LOG_SPAN:
        style.log_axis(axes, "y", low, high)
        return
    # Show at least a few per cent, since otherwise noise would look like an effect.
    pad = max(0.08 * (high - low), 0.03)
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
