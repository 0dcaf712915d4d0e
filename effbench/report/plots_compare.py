"""The figure of models side by side: throughput against both analytic costs, and latencies in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from effbench import units
from effbench.core import Run
from effbench.report import captions, ink
from effbench.summary import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SCATTER_IN = 3.3
_BAR_IN = 0.27
_MOST_NAMES = 15
"""More names than this crowd the points even where each finds a place."""
_NAME_LENGTH = 44
_REASON_LENGTH = 60

_Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points from the figure's corner."""


def compare_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    """Two scatter panels (throughput against madds and against memory access) over bars of latency, fastest first.

    Points carry their model's name where every name finds a free place, else the number that stands beside the name
    at the bars. A skipped model keeps its line among the bars, with the reason.
    """
    with ink.plain_style():
        return _compare_figure(run, cells)


def _compare_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    ordered = sorted(cells, key=lambda cell: math.inf if cell.latency is None else cell.latency.point)
    names = _names(ordered)
    bars_in = _BAR_IN * max(len(ordered), 1) + 0.6
    figure = ink.new_figure(
        _SCATTER_IN + bars_in,
        run.experiment.title,
        captions.subtitle(run, cells),
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
        axes.set_xlabel(label, fontsize=ink.TEXT_PT)
        scatters.append((axes, points))
    unit = next((cell.throughput_unit for cell in ordered if cell.throughput is not None), "images/s")
    scatters[0][0].set_ylabel(f"throughput ({unit})", fontsize=ink.TEXT_PT)
    bars = below.add_subplot()
    _bars(bars, ordered, names)
    # Free places are sought in the final layout, which is computed when the figure is drawn.
    figure.draw_without_rendering()
    if len(names) > _MOST_NAMES or not all(_label(axes, points, names, far=60.0) for axes, points in scatters):
        numbers = [str(number) for number in range(1, len(names) + 1)]
        bars.set_yticks(range(len(names)), [f"{name}   {number}" for name, number in zip(names, numbers, strict=True)])
        for axes, points in scatters:
            for text in list(axes.texts):
                text.remove()
            _label(axes, points, numbers, far=math.inf)
    return figure


def _names(cells: Sequence[CellSummary]) -> list[str]:
    """Model names, or cell names where one model has several cells."""
    models = [captions.model_name(cell) for cell in cells]
    names = models if len(set(models)) == len(models) else [cell.cell.id for cell in cells]
    return [ink.shorten(name, _NAME_LENGTH) for name in names]


def _legend(cells: Sequence[CellSummary]) -> list[Line2D]:
    if not any(cell.flags for cell in cells):
        return []
    return [
        ink.handle("o", ink.BLUE, "measured"),
        ink.handle("X", ink.BLUE, "measured, flagged: see the table"),
    ]


def _points(cells: Sequence[CellSummary], attribute: str) -> list[tuple[float, float] | None]:
    """Cost in millions against throughput; None for a cell that lacks either."""
    points: list[tuple[float, float] | None] = []
    for cell in cells:
        cost = None if cell.cost is None else getattr(cell.cost, attribute) / 1e6
        points.append((cost, cell.throughput) if cost and cell.throughput else None)
    return points


def _scatter(axes: Axes, cells: Sequence[CellSummary], points: Sequence[tuple[float, float] | None]) -> None:
    ink.dress(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    known = [point for point in points if point is not None]
    if not known:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=ink.GREY)
        return
    costs, speeds = zip(*known, strict=True)
    ink.log_axis(axes, "x", min(costs), max(costs), room=1.3)
    ink.log_axis(axes, "y", min(speeds), max(speeds), room=1.3)
    for cell, point in zip(cells, points, strict=True):
        if point is not None:
            axes.plot(*point, marker="X" if cell.flags else "o", ms=ink.MARKER_PT, color=ink.BLUE, zorder=3)


def _bars(axes: Axes, cells: Sequence[CellSummary], names: Sequence[str]) -> None:
    ink.dress(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("latency of one batch (ms)", fontsize=ink.TEXT_PT)
    ends = [1e3 * (cell.latency.high or cell.latency.point) for cell in cells if cell.latency is not None]
    longest = max(ends, default=1.0)
    # The last quarter of the axis holds the numbers at the ends of the bars.
    axes.set_xlim(0, 1.33 * longest)
    for place, cell in enumerate(cells):
        if cell.latency is None:
            reason = "not measured" if cell.skipped is None else ink.shorten(f"skipped: {cell.skipped}", _REASON_LENGTH)
            _beside(axes, place, 0.0, reason)
            continue
        time = cell.latency
        axes.barh(place, 1e3 * time.point, height=0.62, color=ink.BLUE, alpha=0.45, lw=0)
        end = time.point
        if time.low is not None and time.high is not None:
            reach = [[1e3 * (time.point - time.low)], [1e3 * (time.high - time.point)]]
            axes.errorbar(
                [1e3 * time.point], [place], xerr=reach, fmt="none", ecolor=ink.INK, elinewidth=1.3, capsize=3
            )
            end = time.high
        words = [units.digits(1e3 * time.point) + ("" if time.half_width is None else f" {units.plus_minus(time)}")]
        _beside(axes, place, 1e3 * end, ", ".join([*words, *cell.flags]))


def _beside(axes: Axes, place: int, x: float, text: str) -> None:
    axes.annotate(
        text, (x, place), (6, 0), textcoords="offset points", va="center", fontsize=ink.SMALL_PT, color=ink.INK
    )


# --- labels that stay apart -------------------------------------------------------------------------


def _label(axes: Axes, points: Sequence[tuple[float, float] | None], texts: Sequence[str], *, far: float) -> bool:
    """Write each text beside its point, clear of the others. False, with nothing written, where one finds no place.

    `far` is how many points of distance a label may take; beyond a few, a thin line leads back to its point.
    """
    to_points = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    room: _Box = (frame.x0 * to_points, frame.y0 * to_points, frame.x1 * to_points, frame.y1 * to_points)
    known = [(text, point) for text, point in zip(texts, points, strict=True) if point is not None]
    pixels = [axes.transData.transform(point) for _, point in known]
    centres = [(float(x) * to_points, float(y) * to_points) for x, y in pixels]
    widths = [72 * ink.width_in(text, ink.SMALL_PT) + 4 for text, _ in known]
    # Placing is greedy, so whoever comes first has the choice: of four orders, the shortest lines are kept.
    places = range(len(known))
    right, down = sorted(places, key=lambda at: -centres[at][0]), sorted(places, key=lambda at: centres[at][1])
    tried = [_arrange(order, centres, widths, room, far) for order in (right, down, right[::-1], down[::-1])]
    complete = [boxes for boxes in tried if boxes is not None]
    if not complete:
        return False
    boxes = min(complete, key=lambda boxes: sum(map(_distance, centres, boxes)))
    for (text, point), (x, y), box in zip(known, centres, boxes, strict=True):
        end = _nearest((x, y), box)
        axes.annotate(
            text,
            point,
            ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=ink.SMALL_PT,
            color=ink.INK,
            arrowprops=_line(end, box) if _lead((x, y), end) else None,
        ).set_in_layout(False)
    return True


def _arrange(
    order: Sequence[int],
    centres: Sequence[tuple[float, float]],
    widths: Sequence[float],
    room: _Box,
    far: float,
) -> list[_Box] | None:
    """A box for each label, placed in this order, clear of markers, labels and lines; None where one has no place."""
    half, height = ink.MARKER_PT / 2 + 0.5, ink.SMALL_PT * 1.3
    taken: list[_Box] = [(x - half, y - half, x + half, y + half) for x, y in centres]
    found: dict[int, _Box] = {}
    for at in order:
        x, y = centres[at]
        others = [other for other in taken if not _overlap(other, (x, y, x, y))]
        for dx, dy in _offsets(widths[at], height, far):
            box = (x + dx - widths[at] / 2, y + dy - height / 2, x + dx + widths[at] / 2, y + dy + height / 2)
            if not _inside(box, room) or any(_overlap(box, other) for other in taken):
                continue
            lead = _lead((x, y), _nearest((x, y), box))
            if not any(_overlap(dot, other) for dot in lead for other in others):
                taken += [box, *lead]
                found[at] = box
                break
        else:
            return None
    return [found[at] for at in range(len(found))]


@cache
def _offsets(width: float, height: float, far: float) -> tuple[tuple[float, float], ...]:
    """Offsets of a label's centre from its point on a grid, by how far the label's edge is; right beats left."""
    reach = min(far, 160.0)
    step = 5.0
    across = [width / 2 + step + index * step for index in range(int(reach / step))]
    within = [index * step for index in range(int(width / 2 / step) + 1)]
    up = [height / 2 + step + index * step for index in range(int(reach / step))]
    grid = [(dx, dy) for dx in (*within, *across) for dy in (0.0, *up) if dy or dx > width / 2]
    signed = {(side * dx, turn * dy) for dx, dy in grid for side in (1, -1) for turn in (1, -1)}

    def nearness(offset: tuple[float, float]) -> tuple[float, float, float, float]:
        dx, dy = abs(offset[0]), abs(offset[1])
        gap = math.hypot(max(dx - width / 2, 0.0), max(dy - height / 2, 0.0))
        return gap, dy, -offset[0], -offset[1]

    return tuple(sorted((offset for offset in signed if nearness(offset)[0] <= reach), key=nearness))


def _nearest(point: tuple[float, float], box: _Box) -> tuple[float, float]:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _distance(point: tuple[float, float], box: _Box) -> float:
    return math.dist(point, _nearest(point, box))


def _lead(point: tuple[float, float], end: tuple[float, float]) -> list[_Box]:
    """The line from a point to its label as a chain of small boxes; none where the label is near enough."""
    across, up = end[0] - point[0], end[1] - point[1]
    if math.hypot(across, up) <= 9:
        return []
    dots = [(point[0] + step / 8 * across, point[1] + step / 8 * up) for step in range(1, 8)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in dots]


def _line(end: tuple[float, float], box: _Box) -> dict[str, Any]:
    """Matplotlib's drawing of that line, from its end at the label's box."""
    at = ((end[0] - box[0]) / (box[2] - box[0]), (end[1] - box[1]) / (box[3] - box[1]))
    return {"arrowstyle": "-", "lw": 0.6, "color": ink.GREY, "shrinkA": 0, "shrinkB": 3, "relpos": at}


def _inside(box: _Box, room: _Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
