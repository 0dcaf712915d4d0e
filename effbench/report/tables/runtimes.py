"""The table of prepared models: graph pieces, operators, fallbacks and preparation time under each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty

_SHOWN = 4
"""Most kinds of fallback operators that are named; of the rest only the number is given."""


def prepared_rows(run: Run, cells: Sequence[CellSummary]) -> Table:
    """Build one row per cell whose runtime gave facts: pieces, operators, fallbacks, error, preparation.

    Raw values are in seconds and bytes.
    """
    groups = (*report_text.grouping(run, cells), run.experiment.factor)
    columns = (
        *(Column(label, align="left") for label in groups),
        Column("runtime", align="left"),
        Column("pieces"),
        Column("operators"),
        Column("outside of its kernels", align="left"),
        Column("error vs float32"),
        Column("prepared in", "s"),
        Column("model file", "MB", raw_unit="bytes"),
    )
    rows = tuple(
        (
            *(values.label(cell.cell.case.labels.get(label)) for label in groups),
            values.text(cell.cell.runtime),
            values.whole(cell.prepared.get("pieces")),
            values.whole(cell.prepared.get("operators")),
            _outside(cell.prepared.get("outside")),
            values.relative_error(cell.prepared.get("output_error")),
            values.number(cell.prepared.get("prepare_s")),
            values.number(cell.prepared.get("artefact_bytes"), 1e6),
        )
        for cell in cells
        if cell.prepared
    )
    if "runtime" in groups:
        place = len(groups)
        columns, rows = _without(columns, place), tuple(_without(row, place) for row in rows)
    notes = (
        "Pieces: graphs that a runtime runs for one forward pass. Operators: those in all pieces. Outside of its "
        "kernels: operators that fell back to other kernels.",
        "The error is the largest difference from eager float32 on the same input, over the largest value.",
    )
    return drop_empty(Table("Prepared models by runtime", columns, rows, notes))


def _without(items: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return (*items[:place], *items[place + 1 :])


def _outside(found: Mapping[str, int] | None) -> Value:
    if found is None:
        return NOTHING
    ordered = sorted(found.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} ×{count}" for name, count in ordered[:_SHOWN])
    rest = sum(count for _, count in ordered[_SHOWN:])
    text = f"{text} and {rest} more" if rest else text or "none"
    return values.text(text)
