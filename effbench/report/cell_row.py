"""The row of one cell: the columns that `Results.to_frame`, CSV and ``--json`` share, with their meanings and units."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import DEFAULT_LEVEL
from effbench.core.estimate import Estimate
from effbench.report.tables.table_model import one_line

Text = str | None
Number = float | None
Count = int | None


def _meaning(meaning: str) -> Meta:
    return Meta(description=meaning)


@dataclass(frozen=True)
class CellRow:
    """One cell of a run in plain values. Times are in seconds per call of the whole batch; what is missing is None.

    Ratios and times have the ends of their 95 % interval in ``…_low`` and ``…_high``.
    """

    id: Annotated[str, _meaning("The cell's name, unique in the run")]
    model: Annotated[str, _meaning("What was built: a name of `effbench list models`, or path/file.py:factory")]
    device: Annotated[str, _meaning("The device by name")]
    runtime: Annotated[str, _meaning("What executed the network")]
    threads: Annotated[int, _meaning("Threads of the CPU; 0 where they have no meaning")]
    batch: Annotated[int, _meaning("Images per call")]
    dtype: Annotated[str, _meaning("The dtype of weights and activations")]
    memory_format: Annotated[str, _meaning("contiguous or channels_last")]
    mode: Annotated[str, _meaning("infer (forward pass) or train (forward, backward, optimiser's step)")]
    params: Annotated[Count, _meaning("Learnable parameters")] = None
    madds: Annotated[Count, _meaning("Multiply-adds of one call")] = None
    activations: Annotated[Count, _meaning("Output elements of convolutions and matrix products")] = None
    elementwise: Annotated[Count, _meaning("Operations of all other operators")] = None
    memory_access: Annotated[Count, _meaning("Memory access cost of one call, in elements")] = None
    memory_access_bytes: Annotated[Count, _meaning("Memory access cost of one call, in bytes")] = None
    latency_s: Annotated[Number, _meaning("Wall time of a call, in seconds")] = None
    latency_low_s: Annotated[Number, _meaning("Low end of the latency's interval")] = None
    latency_high_s: Annotated[Number, _meaning("High end of the latency's interval")] = None
    busy_s: Annotated[Number, _meaning("Time of a call on the run's own clock, in seconds")] = None
    busy_low_s: Annotated[Number, _meaning("Low end of that time's interval")] = None
    busy_high_s: Annotated[Number, _meaning("High end of that time's interval")] = None
    throughput: Annotated[Number, _meaning("Images per second, or what throughput_unit says")] = None
    throughput_unit: Annotated[Text, _meaning("The unit of throughput")] = None
    ratio: Annotated[Number, _meaning("Time over that of the reference cell, per image, on the run's clock")] = None
    ratio_low: Annotated[Number, _meaning("Low end of the ratio's interval")] = None
    ratio_high: Annotated[Number, _meaning("High end of the ratio's interval")] = None
    ratio_wall: Annotated[Number, _meaning("The ratio of wall times, where CPU time misses work of either")] = None
    ratio_wall_low: Annotated[Number, _meaning("Low end of its interval")] = None
    ratio_wall_high: Annotated[Number, _meaning("High end of its interval")] = None
    reference: Annotated[Text, _meaning("The id of the reference cell")] = None
    speedup_over_eager: Annotated[Number, _meaning("Time of the same case under eager over this one's")] = None
    speedup_over_eager_low: Annotated[Number, _meaning("Low end of the speed-up's interval")] = None
    speedup_over_eager_high: Annotated[Number, _meaning("High end of the speed-up's interval")] = None
    speedup_over_eager_wall: Annotated[
        Number, _meaning("The speed-up by wall time, where CPU time misses work of either")
    ] = None
    speedup_over_eager_wall_low: Annotated[Number, _meaning("Low end of its interval")] = None
    speedup_over_eager_wall_high: Annotated[Number, _meaning("High end of its interval")] = None
    p50_s: Annotated[Number, _meaning("Median wall time of single calls, in seconds")] = None
    p50_low_s: Annotated[Number, _meaning("Low end of its interval")] = None
    p50_high_s: Annotated[Number, _meaning("High end of its interval")] = None
    p90_s: Annotated[Number, _meaning("90th percentile of single calls, in seconds")] = None
    p90_low_s: Annotated[Number, _meaning("Low end of its interval")] = None
    p90_high_s: Annotated[Number, _meaning("High end of its interval")] = None
    p99_s: Annotated[Number, _meaning("99th percentile of single calls, in seconds")] = None
    p99_low_s: Annotated[Number, _meaning("Low end of its interval")] = None
    p99_high_s: Annotated[Number, _meaning("High end of its interval")] = None
    peak_memory_bytes: Annotated[Number, _meaning("Most memory that the network took in a process, in bytes")] = None
    weights_bytes: Annotated[Number, _meaning("The parameters in their dtype, in bytes")] = None
    energy_j_per_image: Annotated[Number, _meaning("Energy of the whole device, in joules per image")] = None
    power_w: Annotated[Number, _meaning("Power of the whole device while it worked, in watts")] = None
    idle_w: Annotated[Number, _meaning("Power of the whole device just before, in watts")] = None
    instructions_per_call: Annotated[Number, _meaning("Instructions of one call, on one thread")] = None
    output_error: Annotated[Number, _meaning("Largest difference from eager float32 over its largest value")] = None
    roofline_s: Annotated[Number, _meaning("Least time that the device's peaks allow, at the level eager")] = None
    time_over_roofline: Annotated[Number, _meaning("Measured time over roofline_s")] = None
    cpu_share: Annotated[Number, _meaning("CPU time over wall time")] = None
    bound: Annotated[Text, _meaning("What the cell waits for: host or device")] = None
    paper_speed: Annotated[Number, _meaning("The paper's figure, in paper_unit")] = None
    paper_unit: Annotated[Text, _meaning("The unit of paper_speed")] = None
    paper_ratio: Annotated[Number, _meaning("The paper's ratio to its reference")] = None
    paper_madds_million: Annotated[Number, _meaning("The paper's multiply-adds, in millions")] = None
    paper_top1_error: Annotated[Number, _meaning("The paper's ImageNet top-1 error, in percent")] = None
    launches: Annotated[int, _meaning("Fresh processes that were measured")] = 0
    blocks: Annotated[int, _meaning("Timed blocks of calls")] = 0
    set_aside: Annotated[int, _meaning("Blocks that outside causes disturbed")] = 0
    flags: Annotated[str, _meaning("Why the cell confirms nothing, separated by commas")] = ""
    notes: Annotated[str, _meaning("What else is worth a line, separated by semicolons")] = ""
    skipped: Annotated[Text, _meaning("Why the cell was not measured")] = None


def cell_row(cell: CellSummary) -> CellRow:
    """The row of this cell."""
    place, cost, paper = cell.cell, cell.cost, cell.full_model
    read = {name: value for item in cell.metrics for name, value in item.values.items() if name in _READ}
    counts = ("params", "madds", "activations", "elementwise", "memory_access", "memory_access_bytes")
    values: dict[str, Any] = {
        **({} if cost is None else {name: getattr(cost, name) for name in counts}),
        **_interval("latency", cell.latency, "_s"),
        **_interval("busy", cell.busy, "_s"),
        **_interval("ratio", cell.ratio),
        **_interval("ratio_wall", cell.ratio_wall),
        **_interval("speedup_over_eager", cell.speedup),
        **_interval("speedup_over_eager_wall", cell.speedup_wall),
        **read,
    }
    return CellRow(
        id=place.id,
        model=place.case.model,
        device=place.device,
        runtime=place.runtime,
        threads=place.threads,
        batch=place.batch,
        dtype=place.case.dtype,
        memory_format=place.memory_format,
        mode=place.mode,
        throughput=cell.throughput,
        throughput_unit=cell.throughput_unit,
        reference=cell.reference,
        output_error=cell.prepared.get("output_error"),
        roofline_s=(cell.bounds_s or {}).get(DEFAULT_LEVEL),
        time_over_roofline=cell.over_bound(),
        cpu_share=None if cell.cpu is None else cell.cpu.share,
        bound=cell.bound,
        paper_speed=cell.paper_speed,
        paper_unit=cell.paper_unit,
        paper_ratio=cell.paper_ratio,
        paper_madds_million=None if paper is None else paper.complexity,
        paper_top1_error=None if paper is None else paper.top1_error,
        launches=cell.launches,
        blocks=cell.blocks,
        set_aside=cell.set_aside,
        flags=", ".join(cell.flags),
        notes="; ".join(cell.notes),
        skipped=cell.skipped,
        **values,
    )


def columns(cell: CellSummary) -> dict[str, Any]:
    """The row with the study's labels as columns of their own, behind `id`.

    A study label named like a descriptive column (model, device, runtime, …) replaces that column. A label named like
    any other column, such as G1's ratio, is renamed to ``NAME_label``.
    """
    row = asdict(cell_row(cell))
    labels = {
        name if name in _PLACE or name not in row else f"{name}_label": value
        for name, value in cell.cell.case.labels.items()
    }
    return {"id": row.pop("id"), **labels, **{name: value for name, value in row.items() if name not in labels}}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Raw values at full precision, empty where a value is missing; every field on one line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writerow({key: one_line(key) for key in writer.fieldnames})
    writer.writerows(
        {key: one_line(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()


_PLACE = ("model", "device", "runtime", "threads", "dtype", "memory_format", "mode")
_READ = (
    *(f"p{share}{end}_s" for share in (50, 90, 99) for end in ("", "_low", "_high")),
    *("peak_memory_bytes", "weights_bytes", "energy_j_per_image", "power_w", "idle_w", "instructions_per_call"),
)
"""Values of the metrics beside the rounds."""


def _interval(name: str, estimate: Estimate | None, unit: str = "") -> dict[str, float | None]:
    """The three columns of an estimate."""
    if estimate is None:
        return {}
    return {f"{name}{unit}": estimate.point, f"{name}_low{unit}": estimate.low, f"{name}_high{unit}": estimate.high}
