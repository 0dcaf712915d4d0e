"""Draw a gate: the change of each cell with its interval, the tolerance, and the smallest detectable slowdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effbench.gates.result import Decision, Finding
from effbench.report.figures import style
from effbench.report.tables import gate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS_AND_MARKERS = {
    "REGRESSION": ("X", style.VERMILLION),
    "PASS": ("o", style.BLUE),
    "INCONCLUSIVE": ("D", style.GREY),
    "ENVIRONMENT": ("s", style.GREY),
}
_ROW_IN = 0.34
_WIDEST = 15.0
"""Changes beyond this per cent are drawn at the edge, so that a cell twice as slow does not hide a change of 3 %."""


def gate_figure(decision: Decision) -> Figure | None:
    """Draw the change of time in per cent, one row per cell; None where no cell was timed.

    The bar is the 95 % interval over launches. The shaded area is beyond the cell's tolerance. The small triangle is
    the smallest slowdown that the measurement detects with 80 % power.
    """
    timed = [finding for finding in decision.findings if finding.change is not None]
    if not timed:
        return None
    with style.plain_style():
        shown = [word for word in _COLOURS_AND_MARKERS if any(finding.verdict == word for finding in timed)]
        handles = [style.handle(*_COLOURS_AND_MARKERS[word], word) for word in shown]
        handles += [
            style.handle("", "#F3D9CC", "beyond the tolerance"),
            style.handle("v", style.INK, "detectable", hollow=True),
        ]
        handles[-2].set(marker="s", markersize=9)
        figure = style.new_figure(_ROW_IN * len(timed) + 0.75, gate.last_line(decision), gate.title(decision), handles)
        _rows(figure.add_subplot(), timed)
    return figure


def _rows(axes: Axes, timed: Sequence[Finding]) -> None:
    limit = min(max(4.0, *(1.15 * end for finding in timed for end in _reach(finding))), _WIDEST)
    style.style_axes(axes)
    axes.axvline(0, color=style.GREY, lw=0.8)
    for place, finding in enumerate(timed):
        marker, colour = _COLOURS_AND_MARKERS.get(finding.verdict, ("o", style.GREY))
        low, point, high = _ends(finding)
        if finding.tolerance is not None:
            axes.fill_betweenx([place - 0.5, place + 0.5], 100 * finding.tolerance, 2 * limit, color="#F3D9CC", lw=0)
        if finding.detectable is not None and 100 * finding.detectable < limit:
            axes.plot(100 * finding.detectable, place - 0.3, "v", color=style.INK, mfc="white", ms=4.5, mew=0.9)
        axes.plot([max(low, -limit), min(high, limit)], [place, place], color=colour, lw=1.6)
        at = min(max(point, -limit), limit)
        axes.plot(at, place, marker, color=colour, ms=style.MARKER_PT, clip_on=False)
        if at != point:
            side = -1 if at > 0 else 1
            axes.annotate(f"{point:+.0f} %", (at, place), (side * 8, 0), textcoords="offset points", va="center",
                          ha="right" if side < 0 else "left", fontsize=style.SMALL_PT)  # fmt: skip
    axes.set_yticks(range(len(timed)), [style.shorten(finding.cell, 40) for finding in timed])
    axes.set(xlim=(-limit, limit), ylim=(len(timed) - 0.5, -0.5))
    axes.set_xlabel("change of time in per cent (above 0: slower)", fontsize=style.TEXT_PT)


def _ends(finding: Finding) -> tuple[float, float, float]:
    """Return low, point and high in per cent; three times the point where there is no interval."""
    change = finding.change
    assert change is not None, "only timed cells are drawn"
    ends = (change.low or change.point, change.point, change.high or change.point)
    return (100 * (ends[0] - 1), 100 * (ends[1] - 1), 100 * (ends[2] - 1))


def _reach(finding: Finding) -> tuple[float, float]:
    """Return the axis range that a row needs, in per cent: its interval, and 1.5 times its tolerance."""
    low, _, high = _ends(finding)
    return max(abs(low), abs(high)), 150 * (finding.tolerance or 0.0)
