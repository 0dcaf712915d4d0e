"""Export to CSV: one row per cell with the columns of `Results.to_frame`, so that pandas reads that frame back."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.core.run import Run
from effbench.export.measured import MeasuredCell
from effbench.report import cell_row


def render(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """The text. Raw values at full precision, empty where a value is missing."""
    return cell_row.csv_text([{**cell_row.columns(cell.summary), "id": cell.id} for cell in cells])
