"""Tables without a run: a model's costs, other counters, the doctor's results, measured peaks. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from effbench.core import units
from effbench.core.cost import LEVELS
from effbench.core.peaks import Peaks
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty
from effbench.report.text import shape_text

_LEVEL_MEANING = {
    "layer": "convolutions and matrix products only",
    "eager": "every operator on its own",
    "pointwise": "element-wise chains fused",
    "epilogue": "norm, activation, residual folded in",
}


def cost_rows(document: Mapping[str, Any]) -> Table:
    """Build the table of totals of a ``profile`` document: one row per quantity, raw values in elements and bytes."""
    columns = (Column("quantity", align="left"), Column("value"), Column("bytes"), Column("meaning", align="left"))
    quantities = (
        ("params", "learnable parameters"),
        ("madds", 'multiply-adds: the papers\' "FLOPs"'),
        ("activations", "output elements of convolutions and matrix products"),
        ("elementwise", "operations of everything else"),
    )
    rows = [(_text(name), _count(document[name]), NOTHING, _text(meaning)) for name, meaning in quantities]
    for level in LEVELS:
        traffic = document["memory_access_levels"][level]
        name = f"memory access, {level}"
        rows.append((_text(name), _count(traffic["elements"]), _size(traffic["bytes"]), _text(_LEVEL_MEANING[level])))
    shapes = " and ".join(document.get("inputs", ())) or shape_text(document["input_shape"])
    notes = [
        f"Input {shapes}, batch {document['batch']}, {document['dtype']}; memory access is elements read plus written."
    ]
    if document["traced_on"] != "meta":
        notes.append(f"Counted on real tensors ({document['traced_on']}): the network does not run on shapes alone.")
    if document["status"] != "complete":
        missing = ", ".join(f"{name} ×{number}" for name, number in document["uncounted"].items())
        notes.append(f"Partial: no formula for {missing}; their multiply-adds are missing from the totals.")
    return drop_empty(Table(str(document["model"]), columns, tuple(rows), tuple(notes)))


def layer_rows(document: Mapping[str, Any]) -> Table:
    """Build one row per operator of a ``profile --layers`` document."""
    from effbench.report.tables.cells import profile_rows

    shown = ("name", "op", "kind", "output_shapes", "madds", "activations", "memory_access")
    rows = [{key: layer[key] for key in shown if key in layer} for layer in document["layers"]]
    return profile_rows(rows, title=f"{document['model']}, operator by operator")


def crosscheck_rows(checks: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table of other counters, with the reason of each difference from ours."""
    columns = (
        Column("counter", align="left"),
        Column("madds", "M", raw_unit=""),
        Column("ours", "M", raw_unit=""),
        Column("difference", "M", raw_unit=""),
        Column("reason", align="left"),
    )
    rows = tuple(
        (_text(row["counter"]), *(_millions(row[key]) for key in ("madds", "ours", "difference")), _text(row["reason"]))
        for row in checks
    )
    return Table("Other counters", columns, rows)


def doctor_rows(findings: Sequence[Mapping[str, str]]) -> Table:
    """Build one row per topic: what was found, why it matters, what to do."""
    columns = tuple(Column(name, align="left") for name in ("topic", "status", "found", "why it matters", "what to do"))
    rows = tuple(
        tuple(_text(finding[key]) for key in ("topic", "status", "value", "why", "todo")) for finding in findings
    )
    warned = sum(finding["status"] == "warn" for finding in findings)
    note = f"{warned} of {len(findings)} will make timings noisy." if warned else "Nothing to do."
    return Table("This machine", columns, rows, (note,))


def peak_rows(peaks: Peaks) -> Table:
    """Build two rows, arithmetic and memory: the best of the samples, their median, and their number."""
    columns = (
        Column("peak", align="left"), Column("best"), Column("median"), Column("samples"), Column("of", align="left"),
    )  # fmt: skip
    measured = (
        ("arithmetic, Gflop/s", peaks.flops_samples, "matrix product and 3×3 convolution, 2 flops a multiply-add"),
        ("memory, GB/s", peaks.bytes_samples, "copy and update of a large buffer, bytes read plus written"),
    )
    rows = tuple(
        (_text(name), _giga(max(samples)), _giga(median(samples)), Value(str(len(samples)), len(samples)), _text(what))
        for name, samples, what in measured
    )
    threads = f", {peaks.threads} thread{'' if peaks.threads == 1 else 's'}" if peaks.threads else ""
    notes = (
        "The best is what later runs on this machine take for the peak: disturbances only ever lower one.",
        f"Memory takes the time below {units.digits(peaks.ridge)} flops per byte, arithmetic above.",
    )
    return Table(f"Peaks in {peaks.dtype}{threads}", columns, rows, notes)


def _giga(value: float) -> Value:
    return Value(units.digits(value / 1e9), value)


def _text(text: str) -> Value:
    return Value(text, text) if text else NOTHING


def _count(value: int) -> Value:
    return Value(units.count(value), value)


def _size(value: int) -> Value:
    return Value(units.size(value), value)


def _millions(value: float | None) -> Value:
    return NOTHING if value is None else Value(f"{value / 1e6:.3f}", value)
