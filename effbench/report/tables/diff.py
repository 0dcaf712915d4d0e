"""The table of two stored runs compared cell by cell. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from effbench.core.estimate import Comparison
from effbench.report import text as report_text
from effbench.report.tables import values
from effbench.report.tables.table_model import Column, Table, drop_empty


def diff_rows(comparisons: Sequence[Comparison], remark: str = "") -> Table:
    """Build the table that compares two runs cell by cell. The note also counts cells that could not be compared.

    `remark` is a further note.
    """
    columns = (
        Column("cell", align="left"),
        Column("verdict", align="left"),
        Column("candidate ÷ baseline", raw_unit=""),
        Column("by the wall clock"),
        Column("reason", align="left"),
    )
    names, everywhere = report_text.split_ids([item.cell for item in comparisons])
    rows = tuple(
        (
            values.text(name),
            values.text(item.verdict),
            values.ratio(item.change),
            values.ratio(item.wall),
            values.text(item.reason),
        )
        for name, item in zip(names, comparisons, strict=True)
    )
    counts: Counter[str] = Counter(item.verdict for item in comparisons)
    words = ("slower", "faster", "same", "unsure", "missing")
    note = ", ".join(f"{counts[word]} {word}" for word in words if counts[word]) or "Nothing to compare"
    notes = [f"{note}. Above 1 the candidate is slower.", *([f"In every row: {everywhere}."] if everywhere else [])]
    notes += [remark] if remark else []
    return drop_empty(Table("Candidate against baseline", columns, rows, tuple(notes)))
