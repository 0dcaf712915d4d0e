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
    """Tables and figures by the stem of their files, the main ones as ``table`` and ``figure``.

    `document` is JSON-ready. `draw` is called only when figures are requested, since drawing takes longer than the
    rest.
    """

    document: Mapping[str, Any]
    named_tables: Mapping[str, Table]
    draw: Callable[[], Mapping[str, Figure]]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``--json``."""
        return dict(self.document)

    def tables(self) -> list[Table]:
        """Return the tables that the command line prints, in order."""
        return list(self.named_tables.values())

    def plot(self) -> Figure:
        """Draw the main figure."""
        return self.draw()["figure"]

    def write(self, directory: str | Path) -> dict[str, Path]:
        """Write every table as Markdown and CSV and every figure as PNG and SVG. Returns the paths by file name.

        Raises StorageError where the folder cannot be written.
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
