"""The table of a run-time breakdown: one row per model with the share of each part, and the paper's row. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.time_shares import Split, part_of
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.report import text
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty

_NAMED, _LEAST_SHARE = 3, 0.005
"""Most operators of Other that are named under the table, and the least share of the latency for that."""


def breakdown_rows(run: Run, cells: Sequence[CellSummary], parts: Sequence[Split]) -> Table:
    """Build the table: measured shares of each model's latency with intervals, and the paper's in the row below.

    Raw values are shares of 1. In a measured row, the parts and the unattributed share sum to 1.
    """
    names = tuple(next((item.shares for item in parts if item.shares), ()))
    columns = (
        Column("model", align="left"),
        Column("source", align="left"),
        Column("latency", "ms", raw_unit="s"),
        *(Column(name, "%", raw_unit="") for name in names),
        Column("unattributed", "%", raw_unit=""),
        Column("profiler", raw_unit=""),
        Column("remarks", align="left"),
    )
    rows = []
    for cell, item in zip(cells, parts, strict=True):
        model = text.model_name(cell)
        rows.append(
            (
                values.text(model),
                values.text("here"),
                _milliseconds(item.latency_s),
                *(_share(item.shares.get(name)) for name in names),
                _share(item.unattributed),
                values.ratio(item.overhead),
                _remarks(cell, item),
            )
        )
        if item.paper is not None:
            printed = [item.paper.get(name) for name in names]
            shares = [NOTHING if share is None else Value(f"{100 * share:.3g}", share) for share in printed]
            rows.append((values.text(model), values.text("paper"), NOTHING, *shares, NOTHING, NOTHING, NOTHING))
    return drop_empty(Table("Where the time goes", columns, tuple(rows), _notes(run, cells, parts)))


def other_operators(item: Split) -> str:
    """List the largest operators of Other with their shares: ``max_pool2d 13 %, linear 1.2 %``; "" without any."""
    other = [
        (operator, share)
        for operator, share in item.operators
        if part_of(operator.called, operator.kind) == "Other" and share >= _LEAST_SHARE
    ]
    return ", ".join(f"{_bare(operator.called)} {units.rounded(100 * share)} %" for operator, share in other[:_NAMED])


def _notes(run: Run, cells: Sequence[CellSummary], parts: Sequence[Split]) -> tuple[str, ...]:
    if not any(item.shares for item in parts):
        return ()
    clock = "kernel time over device time" if run.clock == "device" else "time inside operators over wall time"
    apart = "set apart from" if run.experiment.breakdown == "depthwise" else "among"
    lines = [
        f"Shares of the latency: {clock}, by torch.profiler, means over {text.launches_text(cells)}; ± are 95 % "
        "intervals (Student's t) within this run. The latency is that of calls without the profiler, which alternate "
        "with profiled calls.",
        "Unattributed is the latency minus the parts: Python, dispatch, waiting. The last column is the time of a call "
        "under the profiler over that without it. Part of this overhead falls inside the operators, so the parts are "
        "too large by up to the overhead. Where they exceed the latency, unattributed is below zero.",
        f"Conv: every convolution, depthwise ones {apart} the others. Elemwise: ReLU, add, multiply, batch norm. Data: "
        "copies, concatenation, views. Shuffle: the copy that interleaves channels. Other: the rest.",
    ]
    named = [
        f"{text.model_name(cell)}: {words}"
        for cell, item in zip(cells, parts, strict=True)
        if (words := other_operators(item))
    ]
    if named:
        lines.append(f"Largest in Other: {'; '.join(named)}.")
    platform = next((text.platform_text(item.platform) for item in parts if item.paper), None)
    if platform is not None:
        lines.append(
            f"Paper: Figure 2 of ShuffleNet V2 (arXiv 1807.11164), measured on a {platform} by a framework that fuses "
            "tensors. It states neither the batch nor where depthwise convolutions are counted."
        )
    return tuple(lines)


def _remarks(cell: CellSummary, item: Split) -> Value:
    """Return why there are no shares, or why they are doubtful."""
    words = f"not broken down: {item.missing}" if item.missing is not None else "; ".join(cell.flags)
    return values.text(words)


def _milliseconds(seconds: Estimate | None) -> Value:
    return NOTHING if seconds is None else Value(units.digits(1e3 * seconds.point), seconds)


def _share(share: Estimate | None) -> Value:
    if share is None:
        return NOTHING
    # Student's interval is symmetric.
    within = "" if share.high is None else f" ± {100 * (share.high - share.point):.1f}"
    return Value(f"{100 * share.point:.1f}{within}", share)


def _bare(name: str) -> str:
    return name.removeprefix("aten::")
