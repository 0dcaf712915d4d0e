"""Tables of the doctor: what makes timings on this machine noisy, and its measured peaks. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from effbench.core import units
from effbench.core.peaks import Peaks
from effbench.report.tables import values
from effbench.report.tables.table_model import Column, Table


def doctor_rows(findings: Sequence[Mapping[str, str]]) -> Table:
    """Build one row per topic: what was found, why it matters, what to do."""
    columns = tuple(Column(name, align="left") for name in ("topic", "status", "found", "why it matters", "what to do"))
    rows = tuple(
        tuple(values.text(finding[key]) for key in ("topic", "status", "value", "why", "todo")) for finding in findings
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
        (
            values.text(name),
            values.number(max(samples), 1e9),
            values.number(median(samples), 1e9),
            values.whole(len(samples)),
            values.text(what),
        )
        for name, samples, what in measured
    )
    threads = f", {peaks.threads} thread{'' if peaks.threads == 1 else 's'}" if peaks.threads else ""
    notes = (
        "The best is what later runs on this machine take for the peak: disturbances only ever lower one.",
        f"Memory takes the time below {units.digits(peaks.ridge)} flops per byte, arithmetic above.",
    )
    return Table(f"Peaks in {peaks.dtype}{threads}", columns, rows, notes)
