"""The table of models side by side, with the paper's figures, and that of the networks it leaves out. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.paper import FullModel, full_models
from effbench.report import text as report_text
from effbench.report.tables import cell_columns, metric_columns, values
from effbench.report.tables.metric_columns import Field
from effbench.report.tables.table_model import NOTHING, Column, Table, Value


def compare_rows(run: Run, cells: Sequence[CellSummary]) -> Table:
    """Build the table of a comparison with one row per model: costs, speed, memory, and the paper's Table 8."""
    groups = report_text.grouping(run, cells)
    models = Counter((report_text.model_name(cell), *_group_of(cell, groups)) for cell in cells)
    once = max(models.values(), default=1) == 1

    def name(cell: CellSummary) -> Value:
        return values.text(report_text.model_name(cell) if once else cell.cell.id)

    def printed(read: Callable[[FullModel], float]) -> Callable[[CellSummary], Value]:
        return lambda cell: NOTHING if cell.full_model is None else values.number(read(cell.full_model))

    def shape(cell: CellSummary) -> Value:
        return values.text(report_text.shape_text(cell.cell.case.input_shape))

    fields: list[Field] = [cell_columns.label(key) for key in groups] if once else []
    fields.append((Column("model", align="left"), name))
    if len({cell.cell.case.input_shape for cell in cells}) > 1:
        fields.append((Column("input", align="left"), shape))
    fields += [
        *cell_columns.COSTS,
        (Column("paper's madds", "M"), printed(lambda row: row.complexity)),
        (Column("paper's top-1 error", "%"), printed(lambda row: row.top1_error)),
        cell_columns.LATENCY,
        *cell_columns.throughput(cells),
        *cell_columns.ROOFLINE,
        *metric_columns.columns(cells),
        *cell_columns.RATIOS,
        *_paper_speed(cells),
        cell_columns.BOUND,
        cell_columns.FLAGS,
    ]
    return cell_columns.table_of(run, cells, fields)


def absent_rows(run: Run) -> Table:
    """Build the table of networks in the paper's table that the study cannot measure: their figures, and the reason."""
    columns = (
        Column("network of the paper", align="left"),
        Column("madds", "M"),
        Column("top-1 error", "%"),
        Column("GPU", "batches/s"),
        Column("ARM", "images/s"),
        Column("why it is not measured", align="left"),
    )
    printed = {row.row: row for row in full_models()}
    rows = []
    for name, reason in run.experiment.absent.items():
        row = printed.get(name)
        numbers = (None,) * 4 if row is None else (row.complexity, row.top1_error, row.gpu_speed, row.arm_speed)
        rows.append((values.text(name), *map(values.number, numbers), values.text(reason)))
    return Table("In the paper and not measured here", columns, tuple(rows))


def _group_of(cell: CellSummary, keys: Sequence[str]) -> tuple[Label | None, ...]:
    return tuple(cell.cell.case.labels.get(key) for key in keys)


def _paper_speed(cells: Sequence[CellSummary]) -> list[Field]:
    def of(unit: str) -> Callable[[CellSummary], Value]:
        return lambda cell: values.number(cell.paper_speed if cell.paper_unit == unit else None)

    return [(Column("paper", unit), of(unit)) for unit in dict.fromkeys(c.paper_unit for c in cells if c.paper_unit)]
