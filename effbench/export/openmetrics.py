"""Export to OpenMetrics 1.0 text: one gauge per quantity, one sample per cell, ready to be scraped.

Gauges only, so that the text is also valid in the older Prometheus format, which the node exporter's textfile collector
reads. Raw blocks are left out, since each would be a series of its own. Source: the OpenMetrics 1.0 specification.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from effbench.core.cost import Cost
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.export.measured import MeasuredCell
from effbench.report.tables.table_model import one_line


@dataclass(frozen=True)
class _Family:
    """One quantity. Its name ends in `unit`, as the format requires; "" for a count."""

    name: str
    unit: str
    help: str
    read: Callable[[MeasuredCell], float | None]


def render(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return the text, which ends in ``# EOF``. Times are in seconds, memory access in elements and bytes."""
    study = {"study": run.experiment.name}
    facts = run.environment.facts
    about = {
        **study,
        "clock": run.clock,
        "version": facts.get("effbench.version"),
        "torch": facts.get("torch.version"),
        "fingerprint": facts.get("host.fingerprint"),
    }
    lines = _family("effbench_run_info", "", "What was run, by which versions, on which machine", [(about, 1)])
    when = _timestamp(run.created)
    if when is not None:
        samples = [(study, when)]
        lines += _family("effbench_run_timestamp_seconds", "seconds", "When the run began, Unix time", samples)
    for family in _FAMILIES:
        found = [(cell, family.read(cell)) for cell in cells]
        rows = [({**study, **_labels(cell)}, value) for cell, value in found if value is not None]
        if rows:
            lines += _family(family.name, family.unit, family.help, rows)
    return "\n".join([*lines, "# EOF\n"])


def _family(name: str, unit: str, text: str, samples: Iterable[tuple[Mapping[str, object], float]]) -> list[str]:
    head = [f"# TYPE {name} gauge"]
    if unit:
        head.append(f"# UNIT {name} {unit}")
    head.append(f"# HELP {name} {text}.")
    rows = []
    for labels, value in samples:
        told = ",".join(f'{key}="{_escape(item)}"' for key, item in labels.items() if item is not None)
        rows.append(f"{name}{{{told}}} {value!r}")
    return [*head, *rows]


def _labels(cell: MeasuredCell) -> dict[str, object]:
    """Return the labels that identify a cell; labels of the study are prefixed: ``label_…``."""
    where = cell.summary.cell
    axes = {f"label_{re.sub('[^a-zA-Z0-9_]', '_', name)}": value for name, value in where.case.labels.items()}
    return {
        "cell": cell.id,
        **cell.place,
        **axes,
    }


def _escape(value: object) -> str:
    return one_line(str(value)).replace("\\", r"\\").replace('"', r"\"")


def _timestamp(created: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError):
        return None


def _of_latency(part: str) -> Callable[[MeasuredCell], float | None]:
    return lambda cell: _part(cell.latency, part)


def _of_busy(part: str) -> Callable[[MeasuredCell], float | None]:
    return lambda cell: _part(cell.summary.busy, part)


def _of_ratio(part: str) -> Callable[[MeasuredCell], float | None]:
    return lambda cell: _part(cell.summary.ratio, part)


def _part(estimate: Estimate | None, part: str) -> float | None:
    value: float | None = None if estimate is None else getattr(estimate, part)
    return value


def _of_cost(read: Callable[[Cost], int]) -> Callable[[MeasuredCell], int | None]:
    return lambda cell: None if cell.summary.cost is None else read(cell.summary.cost)


_FAMILIES = (
    _Family("effbench_latency_seconds", "seconds", "Wall time of one call of the whole batch", _of_latency("point")),
    _Family("effbench_latency_low_seconds", "seconds", "Low end of the latency's 95 % interval", _of_latency("low")),
    _Family("effbench_latency_high_seconds", "seconds", "High end of the latency's 95 % interval", _of_latency("high")),
    _Family("effbench_busy_seconds", "seconds", "Time of one call on the run's own clock", _of_busy("point")),
    _Family("effbench_time_ratio", "ratio", "Time over that of the study's reference cell", _of_ratio("point")),
    _Family("effbench_time_low_ratio", "ratio", "Low end of the ratio's 95 % interval", _of_ratio("low")),
    _Family("effbench_time_high_ratio", "ratio", "High end of the ratio's 95 % interval", _of_ratio("high")),
    _Family(
        "effbench_throughput_images_per_second",
        "images_per_second",
        "Images per second",
        lambda cell: cell.summary.throughput,
    ),
    _Family("effbench_params", "", "Learnable parameters", _of_cost(lambda cost: cost.params)),
    _Family("effbench_madds", "", "Multiply-adds of one call", _of_cost(lambda cost: cost.madds)),
    _Family(
        "effbench_memory_access_elements",
        "elements",
        "Memory access cost of one call",
        _of_cost(lambda cost: cost.memory_access),
    ),
    _Family(
        "effbench_memory_access_bytes",
        "bytes",
        "Memory access cost of one call",
        _of_cost(lambda cost: cost.memory_access_bytes),
    ),
    _Family("effbench_launches", "", "Fresh processes that were measured", lambda cell: len(cell.launches)),
    _Family(
        "effbench_flags",
        "",
        "Number of flags that keep the cell from confirming a claim",
        lambda cell: len(cell.summary.flags),
    ),
)
