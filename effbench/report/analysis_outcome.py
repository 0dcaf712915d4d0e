"""The result of an analysis over several runs: its tables, its figures, and a JSON document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench import report
from effbench.report.tables.table_model import Table, render_csv, render_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Outcome:
    """The result of an analysis: tables and figures.

    Attributes
    ----------
    document
        The results as JSON-ready values.
    named_tables
        Tables by the stem of their files; the main one is ``"table"``.
    draw
        Draws the figures, by the stem of their files; the main one is ``"figure"``. Called when figures are requested,
        since drawing takes longer than the rest.
    """

    document: Mapping[str, Any]
    named_tables: Mapping[str, Table]
    draw: Callable[[], Mapping[str, Figure]]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON-ready values.

        Returns
        -------
        dict
            With the keys of ``--json``.
        """
        return dict(self.document)

    def tables(self) -> list[Table]:
        """The tables that the command line prints.

        Returns
        -------
        list of Table
            In order.
        """
        return list(self.named_tables.values())

    def plot(self) -> Figure:
        """Draw the main figure.

        Returns
        -------
        matplotlib.figure.Figure
            A new figure.
        """
        return self.draw()["figure"]

    def write(self, directory: str | Path) -> dict[str, Path]:
        """Write every table as Markdown and CSV, and every figure as PNG and SVG.

        Parameters
        ----------
        directory
            Folder to write to.

        Returns
        -------
        dict of str to Path
            The files by name.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        from effbench.report.figures import failures, style

        folder = Path(directory)
        written = {}
        for stem, rows in self.named_tables.items():
            for ending, text in (("md", render_markdown(rows)), ("csv", render_csv(rows))):
                written[f"{stem}.{ending}"] = report.write_text(folder / f"{stem}.{ending}", text)

        def draw() -> dict[str, Path]:
            saved: dict[str, Path] = {}
            for stem, figure in self.draw().items():
                saved[f"{stem}.png"], saved[f"{stem}.svg"] = style.save(figure, folder, stem)
            return saved

        return written | failures.draw_or_warn(draw)

    def __str__(self) -> str:
        return "\n\n".join(render_markdown(item) for item in self.tables())

    def _repr_markdown_(self) -> str:
        return str(self)
