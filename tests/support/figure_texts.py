"""The texts of a drawn figure, with their places."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every visible text with the box that Agg gives it."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = []
    for axes in figure.axes:
        # Ticks outside the limits are kept by matplotlib but not drawn.
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                tick.label1.set_visible(tick.label1.get_visible() and low <= tick.get_loc() <= high)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), Text.get_window_extent(text, renderer)))
    return found


def require_room(figure: Figure) -> None:
    """Fail where a text overlaps another one or leaves the figure."""
    texts = texts_of(figure)
    frame = figure.bbox
    outside = [text for text, box in texts if box.x0 < 0 or box.y0 < 0 or box.x1 > frame.width or box.y1 > frame.height]
    assert outside == []
    touching = [
        (one, other)
        for (one, first), (other, second) in itertools.combinations(texts, 2)
        if min(first.x1, second.x1) - max(first.x0, second.x0) > 0.5
        and min(first.y1, second.y1) - max(first.y0, second.y0) > 0.5
    ]
    assert touching == []
