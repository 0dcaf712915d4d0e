"""Table columns and notes of secondary metrics: latency percentiles, peak memory, energy, instructions, output error.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from effbench.analysis.cell_summary import CellSummary
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.core.run import METRICS, Run
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Value

Field = tuple[Column, Callable[[CellSummary], Value]]
"""A column of a table of cells, and a function that returns its value for a cell."""

PERCENTILES = ("p50", "p90", "p99")


def columns(cells: Sequence[CellSummary]) -> tuple[Field, ...]:
    """Return every column; the table drops those without any value. Raw values are in seconds and bytes.

    A metric of another package has a column for each value that is a number.
    """
    others = {
        (item.what, key): None
        for cell in cells
        for item in cell.metrics
        if item.what not in METRICS
        for key, value in item.values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return (
        *((Column(f"{what} {key}"), _number(what, key)) for what, key in others),
        *((Column(name, "ms", raw_unit="s"), _percentile(name)) for name in PERCENTILES),
        (
            Column("peak memory", "MB", raw_unit="bytes"),
            lambda cell: values.number(cell.read("peak_memory").get("peak_memory_bytes"), 1e6),
        ),
        (
            Column("weights", "MB", raw_unit="bytes"),
            lambda cell: values.number(cell.read("peak_memory").get("weights_bytes"), 1e6),
        ),
        (Column("energy", "mJ/image", raw_unit="J/image"), _number("energy", "energy_j_per_image", 1e3)),
        (Column("at work", "W"), _number("energy", "power_w")),
        (Column("at rest", "W"), _number("energy", "idle_w")),
        (Column("instructions", "M", raw_unit=""), _number("instructions", "instructions_per_call", 1e-6, 4)),
        (Column("error vs float32"), lambda cell: values.relative_error(cell.prepared.get("output_error"))),
    )


def notes(run: Run, cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return the notes that explain these columns, for those that have values."""
    lines = []
    sampled = [cell.read("percentiles") for cell in cells if cell.read("percentiles")]
    if sampled:
        numbers = sorted({int(calls["n"]) for calls in sampled})
        many = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        unbounded = [name for name in PERCENTILES if any(calls[f"{name}_high_s"] is None for calls in sampled)]
        lines.append(
            f"{', '.join(PERCENTILES)}: wall-clock time of {many} single calls in a separate process, with exact "
            "95 % bounds for independent calls."
            + (f" Too few calls for every upper bound of {' and '.join(unbounded)}." if unbounded else "")
        )
    counted = list(dict.fromkeys(str(cell.read("peak_memory")["source"]) for cell in cells if cell.read("peak_memory")))
    if counted:
        # Older runs did not record the allocator policy.
        told = (cell.read("peak_memory").get("allocator") for cell in cells if cell.read("peak_memory"))
        allocator = next(told, None) or run.environment.facts.get("run.allocator")
        policy = f", allocator {allocator}" if cells[0].cell.device == "cpu" and allocator else ""
        lines.append(
            f"Peak memory: of a separate process, above its memory before the network was built "
            f"({' and '.join(counted)}{policy}); weights are the parameters in their dtype."
        )
    metered = list(dict.fromkeys(str(cell.read("energy")["source"]) for cell in cells if cell.read("energy")))
    if metered:
        lines.append(
            f"Energy: of the whole device ({' and '.join(metered)}) over seconds of calls, including other work on "
            "it; at rest is its power just before."
        )
    numbered = [cell.read("instructions") for cell in cells if cell.read("instructions")]
    if numbered:
        methods = " and ".join(dict.fromkeys(str(count.get("method_version", "a script")) for count in numbered))
        apart = units.digits(100 * max(float(count["repeatability"]) for count in numbered), 2)
        lines.append(
            f"Instructions: in millions a call, on one thread, counted by {methods}; two processes differed by "
            f"{apart} % at most. They do not include cache misses or waiting."
        )
    if any("output_error" in cell.prepared for cell in cells):
        lines.append(
            "Error vs float32: the largest difference from eager float32 on the same input, over its largest value."
        )
    return tuple(lines)


def missing(cell: CellSummary) -> list[str]:
    """Return why requested metrics could not be measured."""
    return [f"no {item.what.replace('_', ' ')}: {item.missing}" for item in cell.metrics if item.missing is not None]


def document(cell: CellSummary) -> dict[str, Any]:
    """Return each metric by name: its values without the raw calls, or ``{"missing": reason}``.

    With a metric of another package, whose name may be any, all of them are also under "metrics".
    """
    found = {
        item.what: {name: value for name, value in item.values.items() if name != "calls_ns"}
        if item.missing is None
        else {"missing": item.missing}
        for item in cell.metrics
    }
    own = {name: each for name, each in found.items() if name in METRICS}
    return {**own, "metrics": found} if len(own) < len(found) else own


def _percentile(name: str) -> Callable[[CellSummary], Value]:
    def read(cell: CellSummary) -> Value:
        calls = cell.read("percentiles")
        if not calls:
            return NOTHING
        point, low, high = (calls[f"{name}{part}_s"] for part in ("", "_low", "_high"))
        ends = (units.MISSING if bound is None else units.digits(1e3 * bound) for bound in (low, high))
        text = f"{units.digits(1e3 * point)} [{', '.join(ends)}]"
        return Value(text, Estimate(point, low, high, n=int(calls["n"])))

    return read


def _number(what: str, key: str, scale: float = 1.0, significant: int = 3) -> Callable[[CellSummary], Value]:
    def read(cell: CellSummary) -> Value:
        found = cell.read(what).get(key)
        return NOTHING if found is None else Value(units.digits(scale * found, significant), found)

    return read
