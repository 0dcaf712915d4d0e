"""Export to CSV: one row per cell with the columns of `Results.to_frame`, so that pandas reads that frame back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from effbench.core.run import Run
from effbench.export.measured import Measured
from effbench.report import json_document
from effbench.report.tables.table_model import one_line


def render(run: Run, cells: Sequence[Measured]) -> str:
    """Return the CSV text: raw values at full precision, empty fields for missing values."""
    rows = [{**json_document.cell_row(cell.summary), "id": cell.id} for cell in cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writerow({key: one_line(key) for key in writer.fieldnames})
    writer.writerows(
        {key: one_line(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()
