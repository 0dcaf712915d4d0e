"""The table of a guideline study: one row per cell, with its costs, times and ratios. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.report.tables import cell_columns, metric_columns
from effbench.report.tables.table_model import Table


def study_rows(run: Run, cells: Sequence[CellSummary]) -> Table:
    """Build the table of a guideline study with one row per cell. Columns without any value are left out.

    Raw values are in base units: elements, seconds, ratios as plain numbers.
    """
    fields = [
        *map(cell_columns.label, (*report_text.grouping(run, cells), run.experiment.factor)),
        *cell_columns.COSTS,
        cell_columns.LATENCY,
        *cell_columns.throughput(cells),
        *cell_columns.ROOFLINE,
        *cell_columns.RATIOS,
        *metric_columns.columns(cells),
        cell_columns.BOUND,
        cell_columns.FLAGS,
    ]
    return cell_columns.table_of(run, cells, fields)
