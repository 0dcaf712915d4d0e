"""Tables of a model's costs: totals, operator by operator, beside what other counters find. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effbench.core import units
from effbench.core.cost import LEVELS
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty
from effbench.report.text import shape_text

_LEVEL_MEANING = {
    "layer": "convolutions and matrix products only",
    "eager": "every operator on its own",
    "pointwise": "element-wise chains fused",
    "epilogue": "norm, activation, residual folded in",
}
_SUMMED = ("madds", "activations", "memory_access")
"""Quantities of operators that are shown, and that add up over a network."""


def cost_rows(document: Mapping[str, Any]) -> Table:
    """Build the table of totals of a ``profile`` document: one row per quantity, raw values in elements and bytes."""
    columns = (Column("quantity", align="left"), Column("value"), Column("bytes"), Column("meaning", align="left"))
    quantities = (
        ("params", "learnable parameters"),
        ("madds", 'multiply-adds: the papers\' "FLOPs"'),
        ("activations", "output elements of convolutions and matrix products"),
        ("elementwise", "operations of everything else"),
    )
    rows = [
        (values.text(name), values.count(document[name]), NOTHING, values.text(meaning)) for name, meaning in quantities
    ]
    for level in LEVELS:
        traffic = document["memory_access_levels"][level]
        name = f"memory access, {level}"
        rows.append(
            (
                values.text(name),
                values.count(traffic["elements"]),
                Value(units.size(traffic["bytes"]), traffic["bytes"]),
                values.text(_LEVEL_MEANING[level]),
            )
        )
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
    """Build one row per operator of a ``profile --layers`` document, and a row of totals."""
    shown = ("name", "op", "kind", "output_shapes", *_SUMMED)
    rows = [{key: layer[key] for key in shown if key in layer} for layer in document["layers"]]
    return operator_rows(rows, title=f"{document['model']}, operator by operator")


def operator_rows(operators: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Build one row per operator, with columns in order of appearance, and a row of totals."""
    keys = tuple(dict.fromkeys(key for operator in operators for key in operator))
    columns = tuple(_operator_column(key) for key in keys)
    rows = tuple(tuple(_operator_value(operator[key]) for key in keys) for operator in operators)
    totals = [values.count(sum(row[key] for row in operators)) if key in _SUMMED else Value("", None) for key in keys]
    return drop_empty(Table(title, columns, rows, (), (Value("total", "total"), *totals[1:]) if rows else None))


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
        (
            values.text(row["counter"]),
            *(_millions(row[key]) for key in ("madds", "ours", "difference")),
            values.text(row["reason"]),
        )
        for row in checks
    )
    return Table("Other counters", columns, rows)


def _operator_column(key: str) -> Column:
    unit = "elements" if key == "memory_access" else ""
    return Column(key.replace("_", " "), unit, "right" if key in _SUMMED else "left")


def _operator_value(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        return values.text(shape_text(value))
    return values.count(value) if isinstance(value, int) else Value(str(value), str(value))


def _millions(value: float | None) -> Value:
    return NOTHING if value is None else Value(f"{value / 1e6:.3f}", value)
