"""The table of a batch sweep: the saturating batch of each network, or why it is unsure. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.saturation import WITHIN, Saturation
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty


def saturation_rows(run: Run, cells: Sequence[CellSummary], found: Sequence[Saturation]) -> Table:
    """Build one row per network: verdict, saturating batch and its throughput, fastest batch and its, the reason."""
    keys = report_text.grouping(run, cells) or tuple(key for key in ("model",) if found and key in found[0].group)
    columns = (
        *(Column(key, align="left") for key in keys),
        Column("saturation", align="left"),
        Column("at batch"),
        Column("throughput there", "images/s"),
        Column("fastest batch"),
        Column("its throughput", "images/s"),
        Column("reason", align="left"),
    )
    rows = tuple(
        (
            *(values.label(item.group.get(key)) for key in keys),
            values.text(item.verdict),
            values.whole(item.batch),
            _throughput(run, cells, item, item.batch),
            values.whole(item.best),
            _throughput(run, cells, item, item.best),
            values.text(item.reason),
        )
        for item in found
    )
    note = (
        f"Saturated: the smallest batch whose throughput, with its whole interval, is within {100 * WITHIN:g} % of "
        "the highest. Rising: only the largest batch measured is, and a larger one might be faster still. Unsure: the "
        "given batch is the likeliest."
    )
    judged = f"Judged by {report_text.clock(run)}; images/s are of wall-clock time."
    notes = (note, judged) if run.clock == "cpu" else (note,)
    return drop_empty(Table("Saturation", columns, rows, notes))


def _throughput(run: Run, cells: Sequence[CellSummary], item: Saturation, batch: int | None) -> Value:
    for cell in cells:
        time = cell.latency
        if time and cell.cell.batch == batch and run.experiment.group_of(cell.cell.case) == item.group:
            low, high = (None if bound is None else cell.cell.batch / bound for bound in (time.high, time.low))
            rate = Estimate(cell.cell.batch / time.point, low, high, time.confidence, time.n)
            text = units.digits(rate.point)
            if low is not None and high is not None:
                text += f" [{units.digits(low)}, {units.digits(high)}]"
            return Value(text, rate)
    return NOTHING
