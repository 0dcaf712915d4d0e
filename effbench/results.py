"""The results of a run, as the Python API returns them and a notebook shows them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from effbench.analysis import summary, time_shares
from effbench.analysis import verdicts as analysis_verdicts
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.time_shares import Split
from effbench.core.errors import InvalidValue, StorageError
from effbench.core.estimate import Verdict
from effbench.core.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from effbench.analysis.rank_agreement import Agreement
    from effbench.report.tables.table_model import Table


@dataclass(frozen=True)
class Results:
    """A run with its estimates, verdicts, tables and figures. Each is computed on first access.

    Parameters
    ----------
    run
        The run with its raw blocks.
    """

    run: Run

    @cached_property
    def cells(self) -> tuple[CellSummary, ...]:
        """The estimates of each cell, in study order."""
        return summary.summarise(self.run)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict per claim and group (such as a scale); empty for a comparison of models."""
        return analysis_verdicts.judge(self.run, self.cells)

    @cached_property
    def breakdown(self) -> tuple[Split, ...]:
        """Time of each model by kind of operator; empty for a study without a breakdown."""
        return time_shares.split(self.run)

    @cached_property
    def named_tables(self) -> dict[str, Table]:
        """The tables of `tables`, by the names of their files without the ending."""
        from effbench import report

        return report.run_tables(self.run, self.cells, self.verdicts, self._agreements)

    @cached_property
    def _agreements(self) -> tuple[Agreement, ...]:
        from effbench import report

        return report.agreements(self.run, self.cells)

    @property
    def directory(self) -> Path | None:
        """Folder of the run, with its raw blocks; None for a run that was not stored."""
        return None if self.run.path is None else Path(self.run.path).parent

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-ready values.

        Returns
        -------
        dict
            With the keys of ``--json``.
        """
        from effbench.report import json_document

        return json_document.run_document(self.run, self.cells, self.verdicts, self._agreements)

    def to_frame(self) -> pandas.DataFrame:
        """The cells as a table.

        Returns
        -------
        pandas.DataFrame
            One row per cell, in the columns of `report.cell_row.CellRow` and the study's labels. A label that has the
            name of a column of numbers, such as G1's ratio, gets the suffix ``_label``.
        """
        import pandas

        from effbench.report import cell_row

        return pandas.DataFrame([cell_row.columns(cell) for cell in self.cells])

    def blocks_frame(self) -> pandas.DataFrame:
        """The raw blocks as a table.

        Returns
        -------
        pandas.DataFrame
            One row per block: launch, round, position, cell, calls and every clock in nanoseconds.
        """
        import pandas

        return pandas.DataFrame(
            {"launch": block.launch, "round": block.round, "position": block.position, "cell": block.cell}
            | dataclasses.asdict(block.timing)
            for result in self.run.results
            for block in result.blocks
        )

    @overload
    def plot(self, ax: None = None) -> Figure: ...
    @overload
    def plot(self, ax: Axes) -> Axes: ...
    def plot(self, ax: Axes | None = None) -> Figure | Axes:
        """Draw the run's main figure: ratios against the factor of a study, or models against their costs.

        Parameters
        ----------
        ax
            Matplotlib axes to draw into. Default: a new figure. For a comparison of models, whose figure has three
            panels, only the panel of latencies is drawn.

        Returns
        -------
        matplotlib.figure.Figure or matplotlib.axes.Axes
            The new figure, or `ax`.

        Raises
        ------
        InvalidValue
            If the run has no cells, if `ax` is no matplotlib Axes, or if the study has several groups: its figure has
            one panel for each.
        """
        from effbench import report

        if not self.cells:
            raise InvalidValue("this run holds no cells, so there is nothing to draw")
        if ax is None:
            return report.run_figures(self.run, self.cells, self.verdicts)["figure"]
        from matplotlib.axes import Axes

        if not isinstance(ax, Axes):
            raise InvalidValue(f"ax must be one matplotlib Axes, such as plt.gca(), and is of type {type(ax).__name__}")
        report.draw_in(ax, self.run, self.cells, self.verdicts)
        return ax

    def tables(self) -> list[Table]:
        """The tables that the command line prints: first the cells, then verdicts and the other tables of the run.

        Returns
        -------
        list of Table
            In the order in which they are printed.
        """
        return list(self.named_tables.values())

    def write(self, directory: str | Path | None = None) -> dict[str, Path]:
        """Write tables and figures.

        Parameters
        ----------
        directory
            Folder to write to; by default that of the run.

        Returns
        -------
        dict of str to Path
            The files by name.

        Raises
        ------
        StorageError
            If the folder cannot be written, or if the run was not stored and no folder is given.
        """
        from effbench import report

        target = self.directory if directory is None else Path(directory)
        if target is None:
            raise StorageError("this run was never stored; name a directory to write to")
        return report.write_all(self.run, self.cells, self.verdicts, target, self.named_tables)

    def __str__(self) -> str:
        from effbench.report.tables.table_model import render_markdown

        return "\n\n".join(render_markdown(item) for item in self.tables())

    def __repr__(self) -> str:
        # A notebook stores this beside the tables: the raw blocks would fill it.
        return f"<Results of {self.run.experiment.name}: {len(self.run.results)} cells>"

    def _repr_markdown_(self) -> str:
        return str(self)
