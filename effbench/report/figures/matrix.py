"""Draw the verdict matrix: claims as rows, machines and runtimes as columns, and a verdict with its ratio per field.

Columns that do not fit beside each other are wrapped into bands, one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
_ROOM_IN = style.WIDTH_IN - 0.25
_ROW_IN = 0.62
_LABEL_IN = 2.15
_COLUMN_IN = 0.8
"""Least width of a column: an interval, or "onnxruntime", fits."""
_BAND_GAP_IN = 0.3
_REASON_PT = 7.0


@dataclass(frozen=True)
class RunColumns:
    """A run with its summaries and verdicts, which becomes one block of columns.

    Among several runs, the block is headed by `name` and, in smaller letters, by `setting`; without a setting, by the
    hardware.
    """

    run: Run
    cells: Sequence[CellSummary]
    verdicts: Sequence[Verdict]
    name: str = ""
    setting: str = ""


def can_draw(run: Run, verdicts: Sequence[Verdict]) -> bool:
    """Return whether the run has verdicts under several runtimes."""
    return len({verdict.group.get("runtime") for verdict in verdicts}) > 1


def matrix_figure(seen: Sequence[RunColumns]) -> Figure:
    """Draw the verdicts of one study by run and runtime; a run without the label `runtime` is one column.

    A field has the verdict, the headline ratio and its interval. The last columns are the paper's ratios, one for each
    of its platforms that the runs are compared with.
    """
    with style.plain_style():
        matrix = _Matrix(seen)
        first = seen[0]
        subtitle = "" if len(seen) > 1 else report_text.subtitle(first.run, first.cells)
        figure = style.new_figure(matrix.height_in + 0.1, first.run.experiment.title, subtitle)
        matrix.draw(figure.add_subplot())
        return figure


def matrix_in(axes: Axes, seen: Sequence[RunColumns]) -> None:
    """Draw `matrix_figure` into existing axes."""
    with style.plain_style():
        _Matrix(seen).draw(axes)


_Place = tuple[int, str]
"""A column: the number of the run and the runtime."""
_Fields = dict[tuple[str, str], dict[_Place, Verdict]]
"""Verdicts by row (claim, group) and column."""
_Heading = Sequence[tuple[str, float, bool]]
"""Paragraphs of a heading, from the top: broken text, points, bold."""


class _Matrix:
    """The verdicts of several runs in their places, in inches from the upper left corner of the first band's body."""

    def __init__(self, seen: Sequence[RunColumns]) -> None:
        self._seen = seen
        self._rows, self._columns = _fields(seen)
        self._papers = [_paper(item) for item in seen]
        self._bands = self._balanced_bands()
        self._wide = (_ROOM_IN - _LABEL_IN) / max(map(self._taken, self._bands), default=1)
        self._labels = [_row_label(*row) for row in self._rows]
        self._heights = [max(_ROW_IN, _height_in([(label, style.TEXT_PT, False)]) + 0.12) for label in self._labels]

    @cached_property
    def height_in(self) -> float:
        tops = sum(map(self._top_in, self._bands))
        return tops + len(self._bands) * sum(self._heights) + (len(self._bands) - 1) * _BAND_GAP_IN

    def draw(self, axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_xlim(0, _ROOM_IN)
        axes.set_ylim(self.height_in, 0)
        top = 0.0
        for band in self._bands:
            top += self._top_in(band)
            self._draw_headings(axes, band, top)
            self._draw_body(axes, band, top)
            top += sum(self._heights) + _BAND_GAP_IN

    # --- bands --------------------------------------------------------------------------------------------

    def _balanced_bands(self) -> list[list[_Place]]:
        """As few bands as there is room for, and of those the narrowest, so that the columns are wide."""
        most = int((_ROOM_IN - _LABEL_IN) / _COLUMN_IN)
        found = self._packed(most)
        for limit in range(most - 1, 1, -1):
            narrower = self._packed(limit)
            if len(narrower) > len(found) or self._pieces(narrower) > self._pieces(found):
                break
            found = narrower
        return found

    def _packed(self, most: int) -> list[list[_Place]]:
        """Fill each band with whole runs up to so many columns. A run of more columns continues in the next band."""
        bands: list[list[_Place]] = [[]]
        for number in range(len(self._seen)):
            block = [place for place in self._columns if place[0] == number]
            if bands[-1] and self._taken(bands[-1] + block) > most:
                bands.append([])
            for place in block:
                if bands[-1] and self._taken([*bands[-1], place]) > most:
                    bands.append([])
                bands[-1].append(place)
        return bands

    def _pieces(self, bands: Sequence[Sequence[_Place]]) -> int:
        """The number of blocks of columns: above that of runs where some are split."""
        return sum(len({number for number, _ in band}) for band in bands)

    def _taken(self, band: Sequence[_Place]) -> int:
        return len(band) + len(self._platforms(band))

    def _platforms(self, band: Sequence[_Place]) -> list[str]:
        """The paper's platforms that runs of the band are compared with."""
        return [name for name in dict.fromkeys(self._papers[number] for number, _ in band) if name]

    # --- headings -----------------------------------------------------------------------------------------

    def _top_in(self, band: Sequence[_Place]) -> float:
        """Height of the band's headings."""
        blocks = self._blocks_in(band)
        return max(blocks + self._runtimes_in(band), *map(_height_in, self._paper_headings(band)), 0.2) + 0.1

    def _blocks_in(self, band: Sequence[_Place]) -> float:
        if len(self._seen) == 1:
            return 0.0
        return max(_height_in(self._heading(number, wide)) for number, _, wide in self._blocks(band)) + 0.1

    def _runtimes_in(self, band: Sequence[_Place]) -> float:
        return max(_height_in([self._runtime_heading(runtime)]) for _, runtime in band)

    def _blocks(self, band: Sequence[_Place]) -> list[tuple[int, float, float]]:
        """The runs of the band, each with its left edge and its width."""
        found = []
        for number in dict.fromkeys(number for number, _ in band):
            held = [index for index, place in enumerate(band) if place[0] == number]
            found.append((number, _LABEL_IN + held[0] * self._wide, len(held) * self._wide))
        return found

    def _heading(self, number: int, wide: float) -> _Heading:
        item, room = self._seen[number], wide - 0.1
        setting = item.setting or report_text.hardware(item.run, item.cells)
        standing = report_text.unfinished(item.run)
        # Bold is wider than what is measured.
        name = style.fit_text(item.name, room / 1.15, style.TEXT_PT)
        small = [
            (style.fit_text(said, room, style.SMALL_PT), style.SMALL_PT, False) for said in (setting, standing) if said
        ]
        return [*([(name, style.TEXT_PT, True)] if name else []), *small]

    def _runtime_heading(self, runtime: str) -> tuple[str, float, bool]:
        # Among several runs the bold line is the run's name. Bold is wider than what is measured.
        bold = len(self._seen) == 1
        room = (self._wide - 0.02) / (1.15 if bold else 1.0)
        fits = all(style.width_in(each, style.TEXT_PT) < room - 0.06 for _, each in self._columns)
        points = style.TEXT_PT if fits else style.SMALL_PT
        return style.fit_text(runtime, room, points), points, bold

    def _paper_headings(self, band: Sequence[_Place]) -> list[_Heading]:
        wrapped = [style.fit_text(name, self._wide - 0.06, style.SMALL_PT) for name in self._platforms(band)]
        return [[("paper" if text == "paper" else f"paper,\n{text}", style.SMALL_PT, False)] for text in wrapped]

    def _draw_headings(self, axes: Axes, band: Sequence[_Place], bottom: float) -> None:
        for index, (_, runtime) in enumerate(band):
            text, points, bold = self._runtime_heading(runtime)
            _write(axes, _LABEL_IN + (index + 0.5) * self._wide, bottom - 0.07, text, points=points, bold=bold)
        for index, heading in enumerate(self._paper_headings(band), start=len(band)):
            _write(axes, _LABEL_IN + (index + 0.5) * self._wide, bottom - 0.07, heading[0][0], points=style.SMALL_PT)
        if len(self._seen) == 1:
            return
        rule = bottom - 0.1 - self._runtimes_in(band)
        for number, left, wide in self._blocks(band):
            top = rule - self._blocks_in(band) + 0.05
            for text, points, bold in self._heading(number, wide):
                top += _height_in([(text, points, bold)])
                _write(axes, left + wide / 2, top, text, points=points, bold=bold)
            axes.plot([left + 0.05, left + wide - 0.05], [rule, rule], color=style.GREY, lw=0.8)

    # --- body ---------------------------------------------------------------------------------------------

    def _draw_body(self, axes: Axes, band: Sequence[_Place], top: float) -> None:
        for found, label, high in zip(self._rows.values(), self._labels, self._heights, strict=True):
            middle = top + high / 2
            axes.text(0, middle, label, va="center", ha="left", fontsize=style.TEXT_PT, color=style.INK)
            for index, place in enumerate(band):
                _field(axes, _LABEL_IN + index * self._wide, top, self._wide, high, found.get(place))
            for index, platform in enumerate(self._platforms(band), start=len(band)):
                ratio = self._paper_ratio(found, platform)
                _write(axes, _LABEL_IN + (index + 0.5) * self._wide, middle, units.ratio(ratio), centred=True)
            top += high

    def _paper_ratio(self, found: Mapping[_Place, Verdict], platform: str) -> float | None:
        ratios = (item.headline.paper_ratio for (number, _), item in found.items() if self._papers[number] == platform)
        return next((ratio for ratio in ratios if ratio), None)


def _fields(seen: Sequence[RunColumns]) -> tuple[_Fields, list[_Place]]:
    """The verdicts in their places, and the columns in order. A run that has not begun has one empty column."""
    columns: list[_Place] = []
    rows: _Fields = {}
    told = [[_without_runtime(each.group) for each in item.verdicts] for item in seen]
    # A label that one run varies names the rows of all. The claim's text names the guideline already.
    varying = {key for groups in told for key in report_text.varying_labels(groups)} - {"guideline"}
    for number, (item, groups) in enumerate(zip(seen, told, strict=True)):
        held: dict[_Place, None] = {}
        for verdict, group in zip(item.verdicts, groups, strict=True):
            named = {key: value for key, value in group.items() if key in varying}
            row = rows.setdefault((verdict.claim, report_text.group_text(named)), {})
            if item.run.launches:
                place = (number, str(verdict.group.get("runtime", item.run.environment.runtime)))
                held[place] = None
                row[place] = verdict
        columns += held or [(number, "")]
    return rows, columns


def _without_runtime(group: Mapping[str, Label]) -> dict[str, Label]:
    return {key: value for key, value in group.items() if key != "runtime"}


def _paper(item: RunColumns) -> str:
    """The platform whose ratios the paper printed for this run; "" where it printed none."""
    printed = any(verdict.headline.paper_ratio for verdict in item.verdicts)
    return (report_text.platforms(item.cells) or "paper") if printed else ""


def _row_label(claim: str, reading: str) -> str:
    parts = [style.fit_text(part, _LABEL_IN - 0.15, style.TEXT_PT) for part in (claim, reading) if part]
    return "\n".join(parts)


def _height_in(paragraphs: _Heading) -> float:
    return sum((1.22 * text.count("\n") + 1.4) * points / 72 for text, points, _ in paragraphs)


def _field(axes: Axes, left: float, top: float, wide: float, high: float, verdict: Verdict | None) -> None:
    from matplotlib.patches import Rectangle

    word: Label = "not measured" if verdict is None else verdict.verdict
    fill, colour = _FILLS.get(str(word), ("#FFFFFF", style.GREY))
    axes.add_patch(Rectangle((left + 0.02, top + 0.02), wide - 0.04, high - 0.04, facecolor=fill, edgecolor="none"))
    top += (high - _ROW_IN) / 2
    middle, ratio = left + wide / 2, None if verdict is None else verdict.headline.ratio
    if ratio is None:
        said = style.fit_text(str(word), wide - 0.06, style.SMALL_PT)
        _write(axes, middle, top + _ROW_IN / 2, said, centred=True, points=style.SMALL_PT, colour=colour)
        return
    has_interval = ratio.low is not None and ratio.high is not None
    top += 0.0 if has_interval else 0.07
    _write(axes, middle, top + 0.15, str(word), centred=True, points=style.SMALL_PT, colour=colour)
    _write(axes, middle, top + 0.32, units.ratio(ratio.point), centred=True, bold=True, colour=colour)
    if has_interval:
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
