"""Draw the four panels of the paper's Figure 1: accuracy and speed against multiply-adds, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from effbench.analysis import rank_agreement
from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.report import text
from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MIN_NETWORKS = 4
"""Fewest networks with a published error for a figure."""

_PANEL_IN = 3.1
_Read = Callable[[CellSummary], float | None]


def can_draw(cells: Sequence[CellSummary]) -> bool:
    """Return whether enough measured cells are in the paper's Table 8, all under one runtime, as lines join widths."""
    return len(_known(cells)) >= MIN_NETWORKS and len({cell.cell.runtime for cell in cells}) == 1


def panels_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    """Draw four panels over the networks of the paper's Table 8. Each family has a colour and a marker; a line joins
    its widths.

    Accuracy is the paper's. Speed is measured in two panels and the paper's in the last, on the paper's GPU for CUDA
    and on its phone otherwise.
    """
    with style.plain_style():
        return _panels_figure(run, _known(cells))


def _panels_figure(run: Run, cells: Sequence[CellSummary]) -> Figure:
    families: dict[str, list[CellSummary]] = {}
    for cell in sorted(cells, key=lambda cell: _madds(cell) or 0.0):
        families.setdefault(rank_agreement.family(cell.cell.case.model), []).append(cell)
    # The largest families get the most distinct colours.
    order = sorted(families, key=lambda family: (-len(families[family]), family))
    looks = style.colours_and_markers(order)
    figure = style.new_figure(2 * _PANEL_IN + 0.7, "Accuracy, speed and multiply-adds", text.subtitle(run, cells))
    theirs = f"speed on a {text.platforms(cells)} ({cells[0].paper_unit})"
    unit = cells[0].throughput_unit
    panels: tuple[tuple[_Read, str, _Read, str], ...] = (
        (_madds, "madds (M)", _accuracy, "top-1 accuracy in the paper (%)"),
        (_speed, f"speed here ({unit})", _accuracy, "top-1 accuracy in the paper (%)"),
        (_madds, "madds (M)", _speed, f"speed here ({unit})"),
        (_complexity, "madds in the paper (M)", _paper_speed, theirs),
    )
    for place, (x, x_label, y, y_label) in enumerate(panels):
        axes = figure.add_subplot(2, 2, place + 1)
        _panel(axes, families, looks, x, y)
        axes.set_xlabel(x_label, fontsize=style.TEXT_PT)
        axes.set_ylabel(y_label, fontsize=style.TEXT_PT)
    handles = [_handle(family, *looks[family]) for family in order]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=style.TEXT_PT)
    return figure


def _panel(
    axes: Axes,
    families: dict[str, list[CellSummary]],
    looks: dict[str, tuple[str, str]],
    x: _Read,
    y: _Read,
) -> None:
    style.style_axes(axes)
    axes.grid(color="#E4E4E4", lw=0.7)
    seen: list[tuple[float, float]] = []
    for family, members in families.items():
        colour, marker = looks[family]
        points = [(a, b) for cell in members if (a := x(cell)) is not None and (b := y(cell)) is not None]
        seen += points
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, ms=style.MARKER_PT, lw=1.1
        ) if points else None
    if not seen:
        return
    for which, values, read in (("x", [a for a, _ in seen], x), ("y", [b for _, b in seen], y)):
        if read is not _accuracy:
            style.log_axis(axes, "x" if which == "x" else "y", min(values), max(values), room=1.2)


def _known(cells: Sequence[CellSummary]) -> list[CellSummary]:
    return [cell for cell in cells if cell.full_model is not None and cell.cost is not None and cell.throughput]


def _madds(cell: CellSummary) -> float | None:
    return None if cell.cost is None else cell.cost.madds / 1e6


def _complexity(cell: CellSummary) -> float | None:
    return None if cell.full_model is None else cell.full_model.complexity


def _accuracy(cell: CellSummary) -> float | None:
    return None if cell.full_model is None else 100 - cell.full_model.top1_error


def _speed(cell: CellSummary) -> float | None:
    return cell.throughput


def _paper_speed(cell: CellSummary) -> float | None:
    return cell.paper_speed


def _handle(family: str, colour: str, marker: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, ms=style.MARKER_PT, lw=1.1, label=family)
