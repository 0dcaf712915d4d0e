"""Export to a pyperf suite, for ``pyperf stats`` and ``compare_to``: one pyperf run per launch, one value per block.

Values are wall seconds per call, loops are calls per block, and warm-up values are the launch's warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effbench.core.run import Run
from effbench.export.measured import MeasuredCell, as_json, seconds
from effbench.report.tables.table_model import one_line

LAYOUT = "1.0"
"""Version of the file format, which pyperf has written since its version 1.0."""

_FACTS = {
    "cpu_model_name": "cpu.model",
    "cpu_count": "cpu.logical",
    "python_version": "python.version",
    "python_implementation": "python.implementation",
    "torch_version": "torch.version",
    "effbench_version": "effbench.version",
    "effbench_fingerprint": "host.fingerprint",
}
"""pyperf's names of environment facts, for those that it has."""


def render(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return the JSON text. Times are in seconds."""
    facts = run.environment.facts
    shared = {
        "unit": "second",
        "timer": "time.perf_counter_ns",
        "platform": "-".join(
            str(facts[name]) for name in ("host.os", "host.kernel", "host.machine") if facts.get(name)
        ),
        **{name: facts.get(fact) for name, fact in _FACTS.items()},
        "effbench_study": run.experiment.name,
        "effbench_created": run.created,
    }
    suite = {
        "version": LAYOUT,
        "metadata": _metadata(shared),
        "benchmarks": [_benchmark(run, cell) for cell in cells],
    }
    return as_json(suite)


def _benchmark(run: Run, cell: MeasuredCell) -> dict[str, Any]:
    where, cost = cell.summary.cell, cell.summary.cost
    told = {
        "name": cell.name,
        **cell.place,
        "params": None if cost is None else cost.params,
        "madds": None if cost is None else cost.madds,
        "memory_access_elements": None if cost is None else cost.memory_access,
        "effbench_flags": ", ".join(cell.summary.flags),
    }
    launches = {launch.number: launch for launch in run.launches}
    runs = []
    for number, blocks in cell.launches.items():
        warmup = launches[number].warmups.get(where.id)
        one: dict[str, Any] = {"metadata": {"loops": blocks[0].timing.calls, "effbench_launch": number}}
        if warmup is not None and warmup.calls > 0 and warmup.seconds >= 0:
            one["warmups"] = [[warmup.calls, warmup.seconds / warmup.calls]]
        runs.append(one | {"values": seconds(blocks)})
    return {"metadata": _metadata(told), "runs": runs}


def _metadata(values: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Keep the values that pyperf accepts: numbers, and text of one line that is not empty."""
    texts = {
        key: value if isinstance(value, (int, float)) else one_line(str(value)).strip()
        for key, value in values.items()
        if value is not None
    }
    return {key: value for key, value in texts.items() if value != ""}
