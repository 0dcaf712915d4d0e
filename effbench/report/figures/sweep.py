"""Draw a batch sweep: images per second over images per call, one line per network, with the saturating batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.saturation import Saturation
from effbench.core.run import Run
from effbench.report import text
from effbench.report.figures import style as figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_BODY_IN = 4.4
_DODGE = 1.03
"""Each network is shifted by this factor from the previous one, so that their intervals do not overlap."""

_LOG_SPAN = 8.0
"""If throughputs span more than this factor, their axis is logarithmic."""


def sweep_figure(run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]) -> Figure:
    """Draw throughput with its interval over a logarithmic axis of batch sizes, and a ring at the saturating batch.

    A dotted ring marks the likeliest batch of an unsure verdict. A network whose throughput still rises has no ring.
    """
    with figure_style.plain_style():
        looks, handles = _colours_and_markers(run, cells, found)
        figure = figure_style.new_figure(_BODY_IN, run.experiment.title, _subtitle(run, cells), handles)
        _draw(figure.add_subplot(), run, cells, found, looks)
        return figure


def sweep_in(axes: Axes, run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]) -> None:
    """Draw `sweep_figure` into existing axes."""
    with figure_style.plain_style():
        looks, handles = _colours_and_markers(run, cells, found)
        _draw(axes, run, cells, found, looks)
        figure_style.legend_inside(axes, handles)


def _colours_and_markers(
    run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]
) -> tuple[dict[str, tuple[str, str]], list[Line2D]]:
    looks = figure_style.colours_and_markers([_name(item, run, cells) for item in found])
    return looks, [figure_style.handle(marker, colour, name) for name, (colour, marker) in looks.items()]


def _draw(
    axes: Axes,
    run: Run,
    cells: Sequence[CellSummary],
    found: Sequence[Saturation],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    figure_style.style_axes(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.set_xlabel("images per call (batch)", fontsize=figure_style.TEXT_PT)
    axes.set_ylabel("images per second", fontsize=figure_style.TEXT_PT)
    for place, item in enumerate(found):
        name = _name(item, run, cells)
        members = [cell for cell in cells if run.experiment.group_of(cell.cell.case) == item.group and cell.throughput]
        aside = _DODGE ** (place - (len(found) - 1) / 2)
        _line(axes, members, *looks[name], aside)
        marked = next((cell for cell in members if cell.cell.batch == item.batch), None)
        if marked is not None and item.verdict != "rising":
            _ring(axes, marked, looks[name][0], aside, is_sure=item.verdict == "saturated")
    _scales(axes, [cell for cell in cells if cell.throughput])


def _ring(axes: Axes, cell: CellSummary, colour: str, aside: float, *, is_sure: bool) -> None:
    at = (aside * cell.cell.batch, cell.throughput or 0.0)
    style = "-" if is_sure else ":"
    axes.scatter(*at, s=170, facecolors="none", edgecolors=colour, lw=1.6, ls=style, zorder=5)
    axes.annotate(
        f"{cell.cell.batch}{'' if is_sure else '?'}",
        at,
        (0, 10),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=figure_style.SMALL_PT,
        color=figure_style.INK,
        bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.8},
        zorder=4,
    )


def _name(item: Saturation, run: Run, cells: Sequence[CellSummary]) -> str:
    """Return the labels that distinguish the network from the others; its model if there is only one."""
    keys = text.grouping(run, cells) or ("model",)
    values = [text.label_text(item.group[key]) for key in keys if key in item.group]
    return figure_style.shorten(", ".join(values) or run.experiment.title, 36)


def _subtitle(run: Run, cells: Sequence[CellSummary]) -> str:
    crosses = "; crosses: flagged" if any(cell.flags for cell in cells) else ""
    return f"{text.subtitle(run, cells)}; ring: saturated, dotted: unsure{crosses}"


def _line(axes: Axes, cells: Sequence[CellSummary], colour: str, marker: str, aside: float) -> None:
    batches = [aside * cell.cell.batch for cell in cells]
    axes.plot(batches, [cell.throughput or 0.0 for cell in cells], color=colour, lw=1.3, zorder=2)
    for batch, cell in zip(batches, cells, strict=True):
        low, speed, high = _interval(cell)
        reach = [[speed - low], [high - speed]]
        axes.errorbar([batch], [speed], yerr=reach, fmt="none", ecolor=colour, elinewidth=1.3, capsize=3)
        axes.plot(batch, speed, marker="X" if cell.flags else marker, ms=figure_style.MARKER_PT, color=colour, zorder=3)


def _interval(cell: CellSummary) -> tuple[float, float, float]:
    """Return low, point and high in images per second; three times the point where there is no interval."""
    speed, time = cell.throughput or 0.0, cell.latency
    if time is None or time.low is None or time.high is None:
        return speed, speed, speed
    return cell.cell.batch / time.high, speed, cell.cell.batch / time.low


def _scales(axes: Axes, cells: Sequence[CellSummary]) -> None:
    from matplotlib.ticker import NullFormatter

    batches = sorted({cell.cell.batch for cell in cells}) or [1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    speeds = [bound for cell in cells for bound in _interval(cell)] or [1.0]
    if max(speeds) / min(speeds) > _LOG_SPAN:
        figure_style.log_axis(axes, "y", min(speeds), max(speeds), room=1.3)
    else:
        axes.set_ylim(0, 1.15 * max(speeds))
