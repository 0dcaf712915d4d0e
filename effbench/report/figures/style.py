"""Shared style of all figures: colours, sizes, header, logarithmic axes, and saving.

Matplotlib is imported inside functions and used only through `Figure`, so that no backend is selected and no global
setting stays changed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from effbench.core.errors import StorageError
from effbench.report.tables.table_model import one_line
from effbench.runs import run_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#6B6B6B", "#1A1A1A"
"""Blue and vermillion are the most distinct pair of Okabe and Ito's palette, also in grey and to colour-blind eyes."""
# Okabe and Ito's palette without its yellow, which is too pale for lines. Markers distinguish series in grey print.
_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

WIDTH_IN = 9.0
"""A README shows a figure about 900 pixels wide, so one point of text is 1.4 pixels."""

TITLE_PT, TEXT_PT, SMALL_PT = 13.0, 9.5, 8.5
MARKER_PT = 6.0
_MARGIN_IN = 0.12


@contextmanager
def plain_style() -> Iterator[None]:
    """Use matplotlib's defaults in the block, whatever the user's configuration is.

    Labels are not parsed as formulas, since names may contain ``$``. A character that the font lacks is drawn as a box,
    without matplotlib's warning, which would print the character to the terminal.
    """
    import matplotlib
    import matplotlib.style

    as_written = matplotlib.rc_context({"text.parse_math": False})
    with matplotlib.style.context("default"), as_written, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def header(title: str, subtitle: str, *, legend: bool) -> tuple[str, str, float]:
    """Wrap title and subtitle to the figure's width. Returns them, and their height in inches with the legend row."""
    room = WIDTH_IN - 3 * _MARGIN_IN
    # The title is bold, and so wider than `wrap_text` measures.
    title, subtitle = wrap_text(title, room / 1.15, TITLE_PT) or " ", wrap_text(subtitle, room, TEXT_PT)
    height = _MARGIN_IN + _height_in(title, TITLE_PT) + _height_in(subtitle, TEXT_PT) + (0.28 if legend else 0.0)
    return title, subtitle, height


def new_figure(body_in: float, title: str, subtitle: str, handles: Sequence[Line2D] = ()) -> Figure:
    """Return an empty figure of the body's height plus a header: title, subtitle, and a row of legend `handles`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title, subtitle, top_in = header(title, subtitle, legend=bool(handles))
    height = body_in + top_in
    rect = (0.005, 0.05 / height, 0.99, 1 - (top_in + 0.05) / height)
    layout = ConstrainedLayoutEngine(rect=rect, w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH_IN, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    left, y = _MARGIN_IN / WIDTH_IN, 1 - _MARGIN_IN / height
    figure.text(left, y, title, va="top", fontsize=TITLE_PT, fontweight="bold", color=INK)
    y -= _height_in(title, TITLE_PT) / height
    figure.text(left, y, subtitle, va="top", fontsize=TEXT_PT, color=GREY)
    y -= _height_in(subtitle, TEXT_PT) / height
    if handles:
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left, y),
            ncols=len(handles),
            frameon=False,
            fontsize=TEXT_PT,
            borderaxespad=0.0,
            borderpad=0.2,
            handletextpad=0.4,
            columnspacing=1.6,
        )
    return figure


def legend_inside(axes: Axes, handles: Sequence[Line2D]) -> None:
    """The legend inside of axes that are not of a figure of ours."""
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=SMALL_PT)


def handle(marker: str, colour: str, label: str, *, hollow: bool = False) -> Line2D:
    """Return a legend entry for points."""
    from matplotlib.lines import Line2D

    face = "white" if hollow else colour
    return Line2D([], [], ls="", marker=marker, color=colour, mfc=face, mew=1.4, ms=MARKER_PT, label=label)


def colours_and_markers(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each of up to about ten names, the most distinct ones first."""
    return dict(zip(names, zip(cycle(_COLOURS), cycle(_MARKERS)), strict=False))


def style_axes(axes: Axes) -> None:
    """Style the axes: no box, ticks outside, grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_PT, color=GREY)
    axes.set_axisbelow(True)


def log_axis(
    axes: Axes, which: Literal["x", "y"], low: float, high: float, *, least: float = 5.0, room: float = 1.12
) -> None:
    """Make a logarithmic axis over at least a factor of `least`, with ticks at 1, 2 and 5 as plain numbers.

    A factor of 5 ensures that at least two ticks are visible. `room` is the least factor left free at each end.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    pad = max((least * low / high) ** 0.5, room)
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low / pad, high * pad)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def width_in(text: str, points: float) -> float:
    """Return the width of the text's longest line in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points)
    # Fonts reject lone surrogates, which JSON strings may contain.
    lines = map(one_line, text.split("\n"))
    return max(float(text_to_path.get_text_width_height_descent(line, font, False)[0]) for line in lines) / 72


def wrap_text(text: str, room_in: float, points: float) -> str:
    """Break the text into lines that fit the room, at spaces and after ``-``, ``_``, ``+``, ``/``, ``,``.

    A piece that is too long for the room stays whole, so the caller must measure the result.
    """
    lines: list[str] = []
    for piece in re.findall(r"[^\s\-_+/,]*[\-_+/,]?\s*", text):
        if lines and width_in((lines[-1] + piece).rstrip(), points) <= room_in:
            lines[-1] += piece
        elif piece:
            lines.append(piece)
    return "\n".join(line.rstrip() for line in lines)


def fit_text(text: str, room_in: float, points: float) -> str:
    """Break the text like `wrap_text`, and a piece that is too long for the room after a dot or anywhere."""
    pieces = []
    for piece in wrap_text(text, 0.0, points).split("\n"):
        while width_in(piece, points) > room_in and len(piece) > 1:
            most = next((n for n in range(len(piece) - 1, 1, -1) if width_in(piece[:n], points) <= room_in), 1)
            dot = piece.rfind(".", 1, most) + 1
            pieces.append(piece[: dot or most])
            piece = piece[dot or most :]
        pieces.append(piece)
    lines = [""]
    left = text
    for piece in pieces:
        # Between two pieces there is what the text has there: a space or nothing.
        gap = left[: left.index(piece)]
        left = left[len(gap) + len(piece) :]
        joined = lines[-1] + gap + piece
        if lines[-1] and width_in(joined, points) > room_in:
            lines.append(piece)
        else:
            lines[-1] = joined.lstrip()
    return "\n".join(lines)


def shorten(text: str, most: int) -> str:
    """Shorten the text to at most this many characters. More of the end is kept, since names differ there."""
    if len(text) <= most:
        return text
    tail = 2 * (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def save(figure: Figure, directory: Path, stem: str) -> tuple[Path, Path]:
    """Write ``stem.png`` (150 dpi) and ``stem.svg`` (text as text). The same figure gives the same bytes.


    Raises StorageError where the folder cannot be written.
    """
    png, svg = Path(directory) / f"{stem}.png", Path(directory) / f"{stem}.svg"
    drawing = svg_text(figure)
    run_file.refuse_link(png)
    run_file.refuse_link(svg)
    try:
        with plain_style():
            figure.savefig(png, dpi=150, metadata={"Software": None})
        svg.write_text(drawing, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"cannot write the figure {error.filename or png} ({error.strerror or error}): "
            "free space there or choose another folder"
        ) from error
    return png, svg


def svg_text(figure: Figure) -> str:
    """Return the figure as SVG with text as text. The same figure gives the same characters."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # Control characters make an SVG invalid.
        if not text.get_text().replace("\n", "").isprintable():
            text.set_text("\n".join(map(one_line, text.get_text().split("\n"))))
    drawing = io.StringIO()
    with plain_style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "effbench"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    return _number_ids(drawing.getvalue())


def _number_ids(svg: str) -> str:
    """Replace the hashed ids in the SVG by numbers.

    Matplotlib hashes positions at full precision, but the layout solver's last digits vary from run to run.
    """
    names: dict[str, str] = {}
    return re.sub(
        r'(?<=id=")[hmp][0-9a-f]{10}(?=")|(?<=#)[hmp][0-9a-f]{10}\b',
        lambda found: names.setdefault(found[0], f"{found[0][0]}{len(names) + 1}"),
        svg,
    )


def _height_in(text: str, points: float) -> float:
    return (text.count("\n") + 1) * points * 1.35 / 72 if text else 0.0
