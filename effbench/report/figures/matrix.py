"""Draw the verdict matrix: claims as rows, devices and runtimes as columns, and a verdict with its ratio per field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effbench.analysis.cell_summary import CellSummary
from effbench.core import units
from effbench.core.estimate import Verdict
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.report import text as report_text
from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FILLS = {"holds": ("#BFDDF0", style.INK), "fails": ("#F5C9AE", style.INK), "unsure": ("#EDEDED", "#555555")}
"""Tints of the palette's blue and vermillion, and grey. They differ in grey print too, and the verdict is also text."""
_ROW_IN = 0.62
_LABEL_IN = 2.15
_REASON_PT = 7.0


@dataclass(frozen=True)
class RunColumns:
    """A run with its summaries and verdicts, which becomes one block of columns."""

    run: Run
    cells: Sequence[CellSummary]
    verdicts: Sequence[Verdict]


def can_draw(run: Run, verdicts: Sequence[Verdict]) -> bool:
    """Return whether the run has verdicts under several runtimes."""
    return len({verdict.group.get("runtime") for verdict in verdicts}) > 1


def matrix_figure(seen: Sequence[RunColumns]) -> Figure:
    """Draw the verdicts of one study by device and runtime; a run without the label `runtime` is one column.

    A field has the verdict, the headline ratio and its interval. The last column is the paper's ratio.
    """
    with style.plain_style():
        rows, _ = _fields(seen)
        several = len(seen) > 1
        first = seen[0]
        subtitle = "" if several else report_text.subtitle(first.run, first.cells)
        figure = style.new_figure(len(rows) * _ROW_IN + _top_in(seen) + 0.1, first.run.experiment.title, subtitle)
        _draw(figure.add_subplot(), seen)
        return figure


def matrix_in(axes: Axes, seen: Sequence[RunColumns]) -> None:
    """Draw `matrix_figure` into existing axes."""
    with style.plain_style():
        _draw(axes, seen)


def _top_in(seen: Sequence[RunColumns]) -> float:
    return 0.52 if len(seen) > 1 else 0.3


_Fields = dict[tuple[str, str], dict[tuple[int, str], Verdict]]
"""Verdicts by row (claim, group) and column (run, runtime)."""


def _fields(seen: Sequence[RunColumns]) -> tuple[_Fields, list[tuple[int, str]]]:
    """The verdicts in their places, and the columns in order."""
    columns: list[tuple[int, str]] = []
    rows: _Fields = {}
    for number, item in enumerate(seen):
        told = [{key: value for key, value in each.group.items() if key != "runtime"} for each in item.verdicts]
        # The claim's text names the guideline already.
        varying = [key for key in report_text.varying_labels(told) if key != "guideline"]
        for verdict, group in zip(item.verdicts, told, strict=True):
            place = (number, str(verdict.group.get("runtime", item.run.environment.runtime)))
            if place not in columns:
                columns.append(place)
            row = (verdict.claim, report_text.group_text({key: group[key] for key in varying if key in group}))
            rows.setdefault(row, {})[place] = verdict
    return rows, columns


def _draw(axes: Axes, seen: Sequence[RunColumns]) -> None:
    rows, columns = _fields(seen)
    has_paper = any(item.headline.paper_ratio for row in rows.values() for item in row.values())
    first, several = seen[0], len(seen) > 1
    axes.set_axis_off()
    room = style.WIDTH_IN - 0.25
    wide = (room - _LABEL_IN) / (len(columns) + has_paper)
    axes.set_xlim(0, room)
    axes.set_ylim(len(rows) * _ROW_IN, -_top_in(seen))
    # Bold is wider than what `width_in` measures.
    fits = all(1.15 * style.width_in(runtime, style.TEXT_PT) < wide - 0.08 for _, runtime in columns)
    heading = style.TEXT_PT if fits else style.SMALL_PT
    for index, (number, runtime) in enumerate(columns):
        middle = _LABEL_IN + (index + 0.5) * wide
        _write(axes, middle, -0.1, runtime, points=heading, bold=True)
        if several and (index == 0 or columns[index - 1][0] != number):
            spanned = sum(1 for each, _ in columns if each == number)
            device = report_text.hardware(seen[number].run, seen[number].cells)
            words = style.wrap_text(device, spanned * wide, style.SMALL_PT)
            _write(axes, _LABEL_IN + (index + spanned / 2) * wide, -0.36, words, points=style.SMALL_PT)
    if has_paper:
        platform = report_text.platforms(first.cells) or "paper"
        printed_on = "paper,\n" + style.wrap_text(platform, wide, style.SMALL_PT)
        _write(axes, _LABEL_IN + (len(columns) + 0.5) * wide, -0.1, printed_on, points=style.SMALL_PT)
    for line, ((claim, reading), found) in enumerate(rows.items()):
        middle = (line + 0.5) * _ROW_IN
        text = style.wrap_text(claim, _LABEL_IN - 0.15, style.TEXT_PT) + (f"\n{reading}" if reading else "")
        axes.text(0, middle, text, va="center", ha="left", fontsize=style.TEXT_PT, color=style.INK)
        for index, place in enumerate(columns):
            _field(axes, _LABEL_IN + index * wide, line * _ROW_IN, wide, found.get(place))
        printed = next((item.headline.paper_ratio for item in found.values() if item.headline.paper_ratio), None)
        if has_paper:
            _write(axes, _LABEL_IN + (len(columns) + 0.5) * wide, middle, units.ratio(printed), centred=True)


def _field(axes: Axes, left: float, top: float, wide: float, verdict: Verdict | None) -> None:
    from matplotlib.patches import Rectangle

    word: Label = "not measured" if verdict is None else verdict.verdict
    fill, colour = _FILLS.get(str(word), ("#FFFFFF", style.GREY))
    axes.add_patch(Rectangle((left + 0.02, top + 0.02), wide - 0.04, _ROW_IN - 0.04, facecolor=fill, edgecolor="none"))
    middle, ratio = left + wide / 2, None if verdict is None else verdict.headline.ratio
    if ratio is None:
        _write(axes, middle, top + _ROW_IN / 2, str(word), centred=True, colour=colour)
        return
    _write(axes, middle, top + 0.15, str(word), centred=True, points=style.SMALL_PT, colour=colour)
    _write(axes, middle, top + 0.32, units.ratio(ratio.point), centred=True, bold=True, colour=colour)
    if ratio.low is not None and ratio.high is not None:
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
        _write(axes, middle, top + 0.48, interval, centred=True, points=_REASON_PT, colour=colour)


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    points: float = style.TEXT_PT,
    bold: bool = False,
    centred: bool = False,
    colour: str = style.INK,
) -> None:
    weight = "bold" if bold else "normal"
    up = "center" if centred else "bottom"
    axes.text(x, y, text, ha="center", va=up, fontsize=points, fontweight=weight, color=colour)
