"""Place labels beside the points of a scatter plot without overlaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points from the figure's corner."""
_Boxes: TypeAlias = npt.NDArray[np.float64]
"""One `_Box` per row."""

_AT_ONCE = 64
"""Candidate places checked in one batch: most labels fit at one of the first."""


def label(
    axes: Axes,
    points: Sequence[tuple[float, float] | None],
    texts: Sequence[str],
    *,
    far: float,
    avoid: Sequence[Sequence[tuple[float, float]]] = (),
) -> bool:
    """Write each text beside its point without overlaps. Returns False, and writes nothing, if one does not fit.

    `far` is the largest distance of a label from its point, in points (1/72 inch). Distant labels get a thin line to
    their point. `avoid` are polylines that no label may cover.
    """
    to_points = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    room: _Box = (frame.x0 * to_points, frame.y0 * to_points, frame.x1 * to_points, frame.y1 * to_points)
    known = [(text, point) for text, point in zip(texts, points, strict=True) if point is not None]
    pixels = [axes.transData.transform(point) for _, point in known]
    centres = [(float(x) * to_points, float(y) * to_points) for x, y in pixels]
    drawn: list[_Box] = []
    for line in avoid:
        corners = [(float(x) * to_points, float(y) * to_points) for x, y in map(axes.transData.transform, line)]
        for start, end in pairwise(corners):
            drawn += _line_boxes(start, end, max(1, int(math.dist(start, end) / 3)))
    widths = [72 * style.width_in(text, style.SMALL_PT) + 4 for text, _ in known]
    # Placement is greedy, so the order matters: try four orders, and keep the one with the shortest lines.
    places = range(len(known))
    right, down = sorted(places, key=lambda at: -centres[at][0]), sorted(places, key=lambda at: centres[at][1])
    tried = [_arrange(order, centres, widths, room, far, drawn) for order in (right, down, right[::-1], down[::-1])]
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
            fontsize=style.SMALL_PT,
            color=style.INK,
            arrowprops=_line(end, box) if _leader_line((x, y), end) else None,
        ).set_in_layout(False)
    return True


def _arrange(
    order: Sequence[int],
    centres: Sequence[tuple[float, float]],
    widths: Sequence[float],
    room: _Box,
    far: float,
    drawn: Sequence[_Box],
) -> list[_Box] | None:
    """Place a box for each label in this order, clear of markers, labels and lines; None if one does not fit.

    A line to a label may cross the boxes in `drawn`, but a label must not cover them.
    """
    half, height = style.MARKER_PT / 2 + 0.5, style.SMALL_PT * 1.3
    taken = _boxes([(x - half, y - half, x + half, y + half) for x, y in centres])
    lines = _boxes(drawn)
    found: dict[int, _Box] = {}
    for at in order:
        x, y = centres[at]
        others = taken[_are_free(taken, _boxes([(x, y, x, y)]))]
        for box in _places((x, y), widths[at], height, far, room, np.concatenate([taken, lines])):
            lead = _boxes(_leader_line((x, y), _nearest((x, y), box)))
            if _are_free(lead, others).all():
                taken = np.concatenate([taken, _boxes([box]), lead])
                found[at] = box
                break
        else:
            return None
    return [found[at] for at in range(len(found))]


def _places(
    centre: tuple[float, float], width: float, height: float, far: float, room: _Box, taken: _Boxes
) -> Iterator[_Box]:
    """Yield free places for a label of this size inside `room` and clear of `taken`, the nearest first."""
    half = np.array([width / 2, height / 2])
    middles = np.array(centre) + _offsets(width, height, far)
    boxes = np.concatenate([middles - half, middles + half], axis=1)
    boxes = boxes[(boxes[:, :2] >= room[:2]).all(axis=1) & (boxes[:, 2:] <= room[2:]).all(axis=1)]
    for first in range(0, len(boxes), _AT_ONCE):
        some = boxes[first : first + _AT_ONCE]
        yield from map(tuple, some[_are_free(some, taken)].tolist())


@cache
def _offsets(width: float, height: float, far: float) -> npt.NDArray[np.float64]:
    """Return offsets of a label's centre on a grid, sorted by the distance of the label's edge; right before left."""
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

    return np.array(sorted((offset for offset in signed if nearness(offset)[0] <= reach), key=nearness))


def _nearest(point: tuple[float, float], box: _Box) -> tuple[float, float]:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _distance(point: tuple[float, float], box: _Box) -> float:
    return math.dist(point, _nearest(point, box))


def _leader_line(point: tuple[float, float], end: tuple[float, float]) -> list[_Box]:
    """Return the line from a point to its label as a chain of small boxes; empty if the label is near enough."""
    across, up = end[0] - point[0], end[1] - point[1]
    if math.hypot(across, up) <= 9:
        return []
    return _line_boxes(point, end, 8)


def _line_boxes(start: Sequence[float], end: Sequence[float], number: int) -> list[_Box]:
    """Return a straight line as a chain of small boxes."""
    across, up = float(end[0] - start[0]), float(end[1] - start[1])
    dots = [(start[0] + step / number * across, start[1] + step / number * up) for step in range(1, number)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in dots]


def _line(end: tuple[float, float], box: _Box) -> dict[str, Any]:
    """Return matplotlib's arguments for drawing that line, from its end at the label's box."""
    at = ((end[0] - box[0]) / (box[2] - box[0]), (end[1] - box[1]) / (box[3] - box[1]))
    return {"arrowstyle": "-", "lw": 0.6, "color": style.GREY, "shrinkA": 0, "shrinkB": 3, "relpos": at}


def _boxes(boxes: Sequence[_Box]) -> _Boxes:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _are_free(boxes: _Boxes, others: _Boxes) -> npt.NDArray[np.bool_]:
    """Return for each box whether it overlaps none of `others`."""
    left, bottom, right, top = boxes[:, :, None].transpose(1, 0, 2)
    across = (left < others[:, 2]) & (others[:, 0] < right)
    overlap = across & (bottom < others[:, 3]) & (others[:, 1] < top)
    free: npt.NDArray[np.bool_] = np.logical_not(overlap.any(axis=1))
    return free
