"""Draw how well metrics predict latency: errors by metric on each device, and predictions of single networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effbench.analysis.prediction import CLOSE, Sample, Score
from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN, _SCATTER_IN = 0.27, 2.7
_COLUMNS = 3
_SPAN = 3.0
"""Predictions that are off by more than this factor are drawn at the edge."""

_DECADES = 1e3
"""If times span more than this factor, ticks are at powers of ten only, for lack of room."""

_MANY_NETWORKS = 100
"""More networks than this are drawn as small, transparent points, so that density is visible."""

Assessed = Sequence[tuple[Sample, Sequence[Score]]]


def prediction_figure(title: str, found: Assessed) -> Figure:
    """Draw errors and predictions.

    Above: out-of-fold median error with intervals, one panel per sample, for each metric alone and combined with the
    first. Below, for the first sample: predicted over measured time of each network, from the first metric alone and
    from the pair of metrics with the least error.
    """
    with style.plain_style():
        return _prediction_figure(title, found)


def _prediction_figure(title: str, found: Assessed) -> Figure:
    first = next(iter(found[0][0].metrics))
    rows = math.ceil(len(found) / _COLUMNS)
    columns = min(len(found), _COLUMNS)
    most = max(len(sample.metrics) for sample, _ in found)
    panels_in = rows * (most * _ROW_IN + 0.75)
    figure = style.new_figure(
        panels_in + _SCATTER_IN,
        title,
        "Median error of the predicted time per image, of networks whose family the fit has not seen",
        [
            style.handle("o", style.BLUE, "the metric alone"),
            style.handle("D", style.VERMILLION, f"with {first}", hollow=True),
        ],
    )
    grid = figure.add_gridspec(2, 1, height_ratios=[panels_in, _SCATTER_IN])
    above, below = figure.add_subfigure(grid[0, 0]), figure.add_subfigure(grid[1, 0])
    reach = 100 * max(score.error.high or score.error.point for _, scores in found for score in scores)
    for place, (sample, scores) in enumerate(found):
        axes = above.add_subplot(rows, columns, place + 1)
        room = (style.WIDTH_IN - 1.9) / columns / 1.15  # bold text is wider than `fold` measures
        axes.set_title(
            style.wrap_text(sample.title, room, style.TEXT_PT), loc="left", fontsize=style.TEXT_PT, fontweight="bold"
        )
        _errors(axes, sample, scores)
        axes.set_xlim(0, 1.05 * reach)
        if place % columns:
            axes.tick_params(labelleft=False)
    sample, scores = found[0]
    best = min((score for score in scores if len(score.metrics) > 1), key=lambda score: score.error.point)
    for place, score in enumerate((scores[0], best)):
        axes = below.add_subplot(1, 2, place + 1)
        _offsets(axes, sample, score)
        if place == 0:
            axes.set_ylabel("predicted / measured time", fontsize=style.TEXT_PT)
    return figure


def _errors(axes: Axes, sample: Sample, scores: Sequence[Score]) -> None:
    style.style_axes(axes)
    axes.grid(axis="x", color="#E4E4E4", lw=0.7)
    names = list(sample.metrics)
    for score in scores:
        alone = len(score.metrics) == 1
        colour = style.BLUE if alone else style.VERMILLION
        y = names.index(score.metrics[-1]) + (-0.14 if alone else 0.14)
        if score.error.low is not None and score.error.high is not None:
            axes.plot([100 * score.error.low, 100 * score.error.high], [y, y], color=colour, lw=1.5, zorder=2)
        marker, face = ("o", colour) if alone else ("D", "white")
        size = style.MARKER_PT if alone else style.MARKER_PT - 1.5
        axes.plot([100 * score.error.point], [y], marker=marker, color=colour, mfc=face, mew=1.3, ms=size, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("median error (%)", fontsize=style.TEXT_PT)


def _offsets(axes: Axes, sample: Sample, score: Score) -> None:
    from matplotlib.ticker import LogLocator

    style.style_axes(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    milliseconds = [1e3 * time for time in sample.times_s]
    pairs = zip(score.predicted, sample.times_s, strict=True)
    ratios = [min(max(predicted / time, 1 / _SPAN), _SPAN) for predicted, time in pairs]
    style.log_axis(axes, "x", min(milliseconds), max(milliseconds))
    if max(milliseconds) > _DECADES * min(milliseconds):
        axes.xaxis.set_major_locator(LogLocator())
    style.log_axis(axes, "y", 1 / _SPAN, _SPAN)
    axes.axhspan(1 - CLOSE, 1 + CLOSE, color=style.GREY, alpha=0.15, lw=0)
    axes.axhline(1.0, color=style.GREY, lw=1.0, zorder=1)
    size, alpha = (2.6, 0.35) if len(ratios) > _MANY_NETWORKS else (style.MARKER_PT - 1, 0.8)
    axes.plot(milliseconds, ratios, ls="", marker="o", ms=size, color=style.BLUE, alpha=alpha, mew=0, zorder=2)
    named = style.wrap_text(f"from {' + '.join(score.metrics)}", style.WIDTH_IN / 2 - 0.5, style.TEXT_PT)
    said = f"{named}\n{100 * score.close.point:.0f} % of networks within {100 * CLOSE:.0f} %"
    axes.set_title(said, loc="left", fontsize=style.TEXT_PT)
    axes.set_xlabel(f"measured time per image (ms), {sample.title}", fontsize=style.TEXT_PT)
