"""The figure of a batch sweep: images per second against images per call, one line a network, saturation marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effbench.core import Run
from effbench.report import captions, ink
from effbench.saturation import Saturation
from effbench.summary import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BODY_IN = 4.4
_LOG_SPAN = 8.0
"""Throughputs that span more than this are drawn on a logarithmic axis."""


def sweep_figure(run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]) -> Figure:
    """Throughput with its interval over a logarithmic axis of batches; a ring stands at the batch that saturates.

    A dotted ring is the likeliest batch where it is unsure; a network whose throughput still rises has none.
    """
    with ink.plain_style():
        return _sweep_figure(run, cells, found)


def _sweep_figure(run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]) -> Figure:
    names = [_name(item, run, cells) for item in found]
    looks = ink.looks(names)
    handles = [ink.handle(looks[name][1], looks[name][0], name) for name in names]
    figure = ink.new_figure(_BODY_IN, run.experiment.title, _subtitle(run, cells), handles)
    axes = figure.add_subplot()
    ink.dress(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.set_xlabel("images per call (batch)", fontsize=ink.TEXT_PT)
    axes.set_ylabel("images per second", fontsize=ink.TEXT_PT)
    for item, name in zip(found, names, strict=True):
        members = [cell for cell in cells if run.experiment.group_of(cell.cell.case) == item.group and cell.throughput]
        _line(axes, members, *looks[name])
        marked = next((cell for cell in members if cell.cell.batch == item.batch), None)
        if marked is not None and item.verdict != "rising":
            _ring(axes, marked, looks[name][0], is_sure=item.verdict == "saturated")
    _scales(axes, [cell for cell in cells if cell.throughput])
    return figure


def _ring(axes: Axes, cell: CellSummary, colour: str, *, is_sure: bool) -> None:
    at = (float(cell.cell.batch), cell.throughput or 0.0)
    style = "-" if is_sure else ":"
    axes.scatter(*at, s=170, facecolors="none", edgecolors=colour, lw=1.6, ls=style, zorder=5)
    axes.annotate(
        f"{cell.cell.batch}{'' if is_sure else '?'}",
        at,
        (0, 10),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=ink.SMALL_PT,
        color=ink.INK,
        bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.8},
        zorder=4,
    )


def _name(item: Saturation, run: Run, cells: Sequence[CellSummary]) -> str:
    """The labels that tell the network from the others; its model where there is only one."""
    keys = captions.grouping(run, cells) or ("model",)
    values = [captions.label_text(item.group[key]) for key in keys if key in item.group]
    return ink.shorten(", ".join(values) or run.experiment.title, 36)


def _subtitle(run: Run, cells: Sequence[CellSummary]) -> str:
    return f"{captions.subtitle(run, cells)}; ring: saturated, within 5 % of the most; dotted with ?: unsure"


def _line(axes: Axes, cells: Sequence[CellSummary], colour: str, marker: str) -> None:
    speeds = [cell.throughput or 0.0 for cell in cells]
    batches = [cell.cell.batch for cell in cells]
    axes.plot(batches, speeds, color=colour, lw=1.3, zorder=2)
    for cell, speed in zip(cells, speeds, strict=True):
        time = cell.latency
        if time is not None and time.low is not None and time.high is not None:
            # The longest time is the lowest throughput.
            reach = [[speed - cell.cell.batch / time.high], [cell.cell.batch / time.low - speed]]
            axes.errorbar([cell.cell.batch], [speed], yerr=reach, fmt="none", ecolor=colour, elinewidth=1.3, capsize=3)
        axes.plot(
            cell.cell.batch, speed, marker="X" if cell.flags else marker, ms=ink.MARKER_PT, color=colour, zorder=3
        )


def _scales(axes: Axes, cells: Sequence[CellSummary]) -> None:
    from matplotlib.ticker import NullFormatter

    batches = sorted({cell.cell.batch for cell in cells}) or [1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    speeds = [cell.throughput or 0.0 for cell in cells] or [1.0]
    if max(speeds) / min(speeds) > _LOG_SPAN:
        ink.log_axis(axes, "y", min(speeds), max(speeds), room=1.3)
    else:
        axes.set_ylim(0, 1.15 * max(speeds))
