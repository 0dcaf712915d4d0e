"""A table as data, and its rendering for terminals, Markdown and CSV. No torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from effbench.core.estimate import Estimate
from effbench.core.study import Label
from effbench.core.units import MISSING
from effbench.host import streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Raw = Label | Estimate | None
"""A value at full precision. An estimate takes three columns of a CSV; None is missing."""

_WORD_STYLES = {
    "holds": "green",
    "fails": "red",
    "unsure": "yellow",
    "faster": "green",
    "slower": "red",
    "same": "dim",
    "missing": "yellow",
    "PASS": "green",
    "REGRESSION": "bold red",
    "INCONCLUSIVE": "yellow",
    "ENVIRONMENT": "yellow",
    "NEW": "dim",
}


_PROSE_WIDTH = 28
"""In a terminal, text is wrapped beyond this many columns."""


@dataclass(frozen=True)
class Column:
    """The heading of a column, with its unit.

    Attributes
    ----------
    heading
        The heading without a unit.
    unit
        Unit of the values that are shown; ``""`` without one.
    align
        ``"left"`` for text, ``"right"`` for numbers.
    raw_unit
        Unit of the raw values; None where it is `unit`.
    """

    heading: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    raw_unit: str | None = None

    @property
    def title(self) -> str:
        """The heading with the unit of the values that are shown."""
        return _with_unit(self.heading, self.unit)

    @property
    def raw_title(self) -> str:
        """The heading with the unit of the raw values."""
        return _with_unit(self.heading, self.unit if self.raw_unit is None else self.raw_unit)


@dataclass(frozen=True)
class Value:
    """One field of a table.

    Attributes
    ----------
    text
        The text to show.
    raw
        The value at full precision, in `Column.raw_unit`; None where it is missing.
    """

    text: str
    raw: Raw


NOTHING = Value(MISSING, None)


@dataclass(frozen=True)
class Table:
    """A table as data.

    Attributes
    ----------
    title
        Its title.
    columns
        Headings, from left to right.
    rows
        Rows of values, each as long as `columns`.
    notes
        Paragraphs below the table.
    totals
        The last row; None without one.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    totals: tuple[Value, ...] | None = None

    @property
    def all_rows(self) -> tuple[tuple[Value, ...], ...]:
        """The rows, and `totals` last if there are any."""
        return self.rows if self.totals is None else (*self.rows, self.totals)


def drop_empty(table: Table) -> Table:
    """Return the table without columns that have no value in any row."""
    kept = [index for index in range(len(table.columns)) if any(row[index].raw is not None for row in table.rows)]
    return Table(
        table.title,
        tuple(table.columns[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in table.rows),
        table.notes,
        None if table.totals is None else tuple(table.totals[index] for index in kept),
    )


def render_terminal(table: Table, console: Console) -> None:
    """Print the table on a rich console. Markup and escape codes in labels are not interpreted.

    A table wider than the console is printed in pieces, each with the leading label columns, so that no number is cut.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    console.print(_inert(table.title, "bold"))
    for piece, fits in _pieces(table, console.width):
        grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=table.totals is not None)
        for index in piece:
            column = table.columns[index]
            footer = "" if table.totals is None else table.totals[index].text
            # Numbers and names are not wrapped, prose is. If a piece does not fit at all, nothing is cut.
            whole = fits and (column.align == "right" or all(" " not in row[index].text for row in table.rows))
            grid.add_column(
                _inert(_terminal_title(column)),
                justify=column.align,
                footer=_inert(footer),
                no_wrap=whole,
                overflow="fold",
            )
        for row in table.rows:
            values = (row[index] for index in piece)
            grid.add_row(*(_inert(one_line(value.text), _WORD_STYLES.get(value.text, "")) for value in values))
        console.print(grid)
    for note in table.notes:
        console.print(_inert(note, "dim"))


def render_markdown(table: Table) -> str:
    """Render as GitHub Markdown: the title as a heading, the table, one paragraph per note. Ends in a newline."""
    titles = [column.title for column in table.columns]
    rules = ["---:" if column.align == "right" else ":---" for column in table.columns]
    lines = [
        f"### {escape_markdown(table.title)}",
        "",
        _pipes(map(escape_markdown, titles)),
        _pipes(rules),
    ]
    lines += [_pipes(escape_markdown(value.text) for value in row) for row in table.rows]
    if table.totals is not None:
        lines.append(_pipes(f"**{escape_markdown(value.text)}**" if value.text else "" for value in table.totals))
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """Render as CSV: raw values at full precision, units in the headings, empty fields for missing values.

    A column of estimates becomes three: the point, then the ends of its interval. Totals are the last row. Notes are
    left out, so that any CSV reader can read the file.
    """
    spread = [
        any(isinstance(row[index].raw, Estimate) for row in table.all_rows) for index in range(len(table.columns))
    ]
    heading: list[str] = []
    for column, wide in zip(table.columns, spread, strict=True):
        title = one_line(column.raw_title)
        heading += [title, f"{title} low", f"{title} high"] if wide else [title]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    for row in table.all_rows:
        writer.writerow([item for value, wide in zip(row, spread, strict=True) for item in _fields(value.raw, wide)])
    return text.getvalue()


def _terminal_title(column: Column) -> str:
    """Break headings of numbers into one word per line, since numbers are narrower than their headings."""
    heading = column.heading.replace(" ", "\n") if column.align == "right" else column.heading
    return f"{heading}\n({column.unit})" if column.unit else heading


def _pieces(table: Table, width: int) -> list[tuple[list[int], bool]]:
    """Pack columns, by index, into pieces of the width. Returns each piece and whether it fits.

    Every piece starts with the label columns of the table.
    """
    widths = []
    for index, column in enumerate(table.columns):
        lines = [*_terminal_title(column).splitlines(), *(row[index].text for row in table.all_rows)]
        longest = max(map(len, lines))
        word = max((len(part) for line in lines for part in line.split()), default=0)
        # Two for the gap. Prose may be wrapped, numbers with their intervals may not.
        widths.append(2 + (longest if column.align == "right" else max(word, min(longest, _PROSE_WIDTH))))
    numbers = [index for index, column in enumerate(table.columns) if column.align == "right"]
    keys = list(range(numbers[0] if numbers else len(widths)))
    pieces = [list(keys)]
    for index in range(len(keys), len(widths)):
        if len(pieces[-1]) > len(keys) and sum(widths[at] for at in (*pieces[-1], index)) > width:
            pieces.append(list(keys))
        pieces[-1].append(index)
    return [(piece, sum(widths[at] for at in piece) <= width) for piece in pieces]


def _with_unit(heading: str, unit: str) -> str:
    return f"{heading} ({unit})" if unit else heading


def _fields(raw: Raw, wide: bool) -> Sequence[object]:
    if isinstance(raw, Estimate):
        return (raw.point, raw.low, raw.high)
    if isinstance(raw, str):
        raw = one_line(raw)
    return (raw, None, None) if wide else (raw,)


def one_line(text: str) -> str:
    """Remove line breaks and control characters, which a terminal would interpret."""
    return "".join(mark if mark.isprintable() else " " for mark in streams.readable(text))


def _inert(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text("\n".join(map(one_line, text.split("\n"))), style=style)


def escape_markdown(text: str) -> str:
    """Escape a text for Markdown: shown literally, on one line, safe inside a table."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|*`])", r"\\\1", text).replace("](", "]\\(")
    # Underscores between letters do not start emphasis and are frequent in model names, so they stay.
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", text)


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"
