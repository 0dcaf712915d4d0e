"""Columns that the table of a study and the table of a comparison share: costs, times, ratios, flags. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effbench.analysis.cell_summary import CellSummary
from effbench.core import units
from effbench.core.cost import DEFAULT_LEVEL
from effbench.core.run import Run
from effbench.report import decisions
from effbench.report import text as report_text
from effbench.report.tables import metric_columns, values
from effbench.report.tables.metric_columns import Field
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty


def table_of(run: Run, cells: Sequence[CellSummary], fields: Sequence[Field]) -> Table:
    """Build the table with one row per cell. Columns without any value are left out."""
    columns = tuple(column for column, _ in fields)
    rows = tuple(tuple(read(cell) for _, read in fields) for cell in cells)
    notes = (*decisions.sentences(run, cells), *report_text.notes(run, cells), *metric_columns.notes(run, cells))
    return drop_empty(Table(run.experiment.title, columns, rows, notes))


def label(name: str) -> Field:
    return Column(name, align="left"), lambda cell: values.label(cell.cell.case.labels.get(name))


def throughput(cells: Sequence[CellSummary]) -> list[Field]:
    """Return a column for each unit of throughput that a cell has."""

    def of(unit: str) -> Callable[[CellSummary], Value]:
        return lambda cell: values.number(cell.throughput if cell.throughput_unit == unit else None)

    return [(Column("throughput", unit), of(unit)) for unit in dict.fromkeys(cell.throughput_unit for cell in cells)]


def _count(name: str) -> Callable[[CellSummary], Value]:
    return lambda cell: values.number(None if cell.cost is None else getattr(cell.cost, name), 1e6)


def _latency(cell: CellSummary) -> Value:
    time = cell.latency
    if time is None:
        return NOTHING
    text = units.digits(1e3 * time.point)
    return Value(text if time.half_width is None else f"{text} {units.plus_minus(time)}", time)


def _ratio(cell: CellSummary) -> Value:
    return Value("reference", cell.ratio) if report_text.is_reference(cell) else values.ratio(cell.ratio)


def _flags(cell: CellSummary) -> Value:
    words = [*cell.flags, *cell.notes, *metric_columns.missing(cell)]
    if cell.cost is not None and cell.cost.status == "partial":
        words.append("counts partial: " + ", ".join(f"{name} ×{n}" for name, n in cell.cost.uncounted.items()))
    if cell.skipped is not None:
        words.append(f"skipped: {cell.skipped}")
    return values.text("; ".join(words))


COSTS: tuple[Field, ...] = (
    (Column("params", "M", raw_unit=""), _count("params")),
    (Column("madds", "M", raw_unit=""), _count("madds")),
    (Column("memory access", "M elements", raw_unit="elements"), _count("memory_access")),
)
LATENCY: Field = (Column("latency", "ms", raw_unit="s"), _latency)
ROOFLINE: tuple[Field, ...] = (
    (
        Column(f"roofline, {DEFAULT_LEVEL}", "ms", raw_unit="s"),
        lambda cell: values.number(None if cell.bounds_s is None else cell.bounds_s[DEFAULT_LEVEL], 1e-3),
    ),
    (Column("time ÷ roofline"), lambda cell: values.ratio(cell.over_bound())),
)
RATIOS: tuple[Field, ...] = (
    (Column("time ratio"), _ratio),
    (Column("by the wall clock"), lambda cell: values.ratio(cell.ratio_wall)),
    (Column("paper's ratio"), lambda cell: values.ratio(cell.paper_ratio)),
    (Column("speed-up over eager"), lambda cell: values.ratio(cell.speedup)),
    (Column("speed-up by the wall clock"), lambda cell: values.ratio(cell.speedup_wall)),
)
BOUND: Field = (Column("bound", align="left"), lambda cell: values.text(cell.bound))
FLAGS: Field = (Column("flags", align="left"), _flags)
