"""Draw a run-time breakdown: each model's latency as a stacked bar, with the paper's Figure 2 below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.time_shares import Split
from effbench.core import units
from effbench.core.run import Run
from effbench.report import text
from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette; both kinds of convolution are blue.
_COLOURS = {
    "Conv": "#0072B2",
    "Depthwise": "#56B4E9",
    "Elemwise": "#D55E00",
    "Data": "#009E73",
    "Shuffle": "#CC79A7",
    "Other": "#F0E442",
}
_DARK = ("#0072B2", "#D55E00", "#009E73")
"""Dark colours, on which numbers are white."""

_ROW_IN, _GAP = 0.34, 0.45
_LEAST_LABELLED = 3.0
"""Segments below this per cent are too narrow for their number."""
_NAME_LENGTH = 32


class _Bar(NamedTuple):
    """One stacked bar, in per cent of the latency."""

    name: str
    shares: Mapping[str, float]
    unattributed: float
    note: str
    at: float
    printed: bool = False
    """Whether the shares are the paper's."""


def breakdown_figure(run: Run, cells: Sequence[CellSummary], parts: Sequence[Split]) -> Figure:
    """Draw one bar per model, in per cent of its latency, and the paper's bar below it if the paper has the network.

    The hatched end of a bar is the unattributed time. A bar is longer than 100 % if the operators under the profiler
    took longer than the whole call without it.
    """
    with style.plain_style():
        return _breakdown_figure(run, cells, parts)


def _breakdown_figure(run: Run, cells: Sequence[CellSummary], parts: Sequence[Split]) -> Figure:
    from matplotlib.ticker import PercentFormatter

    bars = _bars(cells, parts)
    drawn = [name for name in _COLOURS if any(bar.shares.get(name) for bar in bars)]
    handles = [style.handle("s", _COLOURS[name], name) for name in drawn]
    handles.append(style.handle("s", style.GREY, "unattributed", hollow=True))
    height = _ROW_IN * (bars[-1].at + 1) + 0.6
    figure = style.new_figure(height, "Where the time goes", text.subtitle(run, cells), handles)
    axes = figure.add_subplot()
    style.style_axes(axes)
    for bar in bars:
        _stack(axes, bar)
    end = max(100.0, *(sum(bar.shares.values()) for bar in bars))
    axes.axvline(100.0, color=style.INK, lw=1.0, ls=(0, (4, 3)), zorder=4)
    axes.set_xlim(0.0, end + 24)
    axes.set_xticks(range(0, int(end) + 1, 20))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylim(bars[-1].at + 0.6, -0.6)
    axes.set_yticks([bar.at for bar in bars], [bar.name for bar in bars], fontsize=style.SMALL_PT)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the latency without the profiler", fontsize=style.TEXT_PT)
    return figure


def _bars(cells: Sequence[CellSummary], parts: Sequence[Split]) -> list[_Bar]:
    bars: list[_Bar] = []
    at = 0.0
    for cell, item in zip(cells, parts, strict=True):
        name = style.shorten(text.model_name(cell), _NAME_LENGTH)
        shares = {part: 100 * share.point for part, share in item.shares.items()}
        rest = 0.0 if item.unattributed is None else 100 * item.unattributed.point
        bars.append(_Bar(name, shares, rest, _note(item), at))
        if item.paper is not None:
            at += 1.0
            printed = {part: 100 * share for part, share in item.paper.items()}
            bars.append(_Bar(f"paper, {text.platform_text(item.platform)}", printed, 0.0, "", at, True))
        at += 1.0 + _GAP
    return bars


def _note(item: Split) -> str:
    if item.latency_s is None or item.overhead is None:
        return f"not broken down: {style.shorten(item.missing or '', 60)}"
    return f"{units.rounded(1e3 * item.latency_s.point, 3)} ms; profiler ×{item.overhead.point:.2f}"


def _stack(axes: Axes, bar: _Bar) -> None:
    left = 0.0
    for name, colour in _COLOURS.items():
        share = bar.shares.get(name, 0.0)
        axes.barh(bar.at, share, left=left, height=0.8, color=colour, edgecolor="white", lw=0.6, zorder=3)
        if share >= _LEAST_LABELLED:
            shade = "white" if colour in _DARK else style.INK
            place = (left + share / 2, bar.at)
            axes.text(
                *place,
                f"{share:.3g}" if bar.printed else f"{share:.0f}",
                ha="center",
                va="center",
                fontsize=style.SMALL_PT,
                color=shade,
                zorder=5,
            )
        left += share
    rest = max(0.0, bar.unattributed)
    axes.barh(bar.at, rest, left=left, height=0.8, color="white", edgecolor=style.GREY, hatch="////", lw=0.8, zorder=2)
    if rest >= 2 * _LEAST_LABELLED:
        box = {"fc": "white", "ec": "none", "pad": 1.0}
        place = (left + rest / 2, bar.at)
        axes.text(
            *place,
            f"{rest:.0f}",
            ha="center",
            va="center",
            fontsize=style.SMALL_PT,
            color=style.INK,
            bbox=box,
            zorder=5,
        )
    axes.text(
        max(left + rest, 100.0 if bar.shares else 0.0) + 1.2,
        bar.at,
        bar.note,
        va="center",
        fontsize=style.SMALL_PT,
        color=style.GREY,
    )
