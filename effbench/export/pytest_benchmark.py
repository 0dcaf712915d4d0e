"""Export to pytest-benchmark's JSON, for ``pytest-benchmark compare`` and other tools that read it.

There is one value per block: wall seconds per call. The statistics are computed as pytest-benchmark does, over the
blocks of all launches together. effbench's estimates, with launches as replicates, are in ``extra_info`` with the
costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effbench.core.run import Run
from effbench.export.measured import MeasuredCell, as_json, seconds
from effbench.host import facts as host_facts
from effbench.report import json_document

LAYOUT = "5.3.1"
"""Version of pytest-benchmark whose file format is written."""


def render(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return the JSON text. Times are in seconds."""
    return as_json(
        {
            "machine_info": _machine(run.environment.facts),
            # The commit of the user's project is unknown; these are pytest-benchmark's values for that.
            "commit_info": {
                "id": "unversioned",
                "time": None,
                "author_time": None,
                "dirty": False,
                "project": run.experiment.name,
                "branch": "(unknown)",
            },
            "benchmarks": [_benchmark(run, cell) for cell in cells],
            "datetime": run.created,
            "version": LAYOUT,
        }
    )


def _machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the machine in pytest-benchmark's keys; `node` is anonymous, since effbench records no host name."""
    return {
        "node": facts.get("host.fingerprint"),
        "processor": facts.get("cpu.model"),
        "machine": facts.get("host.machine"),
        "python_implementation": facts.get("python.implementation"),
        "python_implementation_version": facts.get("python.version"),
        "python_version": facts.get("python.version"),
        "release": facts.get("host.kernel"),
        "system": facts.get("host.os"),
        "cpu": {
            "brand_raw": facts.get("cpu.model"),
            "count": facts.get("cpu.logical"),
            "arch_string_raw": facts.get("host.machine"),
        },
    }


def _benchmark(run: Run, cell: MeasuredCell) -> dict[str, Any]:
    sampling = run.sampling
    return {
        "group": run.experiment.name,
        "name": cell.name,
        "fullname": cell.name,
        "params": dict(cell.summary.cell.case.labels) or None,
        "param": cell.id,
        "extra_info": {"effbench": _effbench_document(run, cell)},
        "options": {
            "disable_gc": True,
            "timer": "perf_counter",
            "min_rounds": sampling.min_rounds,
            "max_time": sampling.budget_s,
            "min_time": sampling.block_s,
            "precision": sampling.precision,
            "warmup": True,
        },
        "stats": _stats(seconds(cell.blocks)) | {"iterations": cell.blocks[0].timing.calls},
    }


def _effbench_document(run: Run, cell: MeasuredCell) -> dict[str, Any]:
    """Return the cell as in ``run --json``, with costs under one key, as effbench's pytest fixture writes them."""
    facts = run.environment.facts
    conditions = {name: facts[name] for name in host_facts.MUST_AGREE if facts.get(name) is not None}
    told, cost = json_document.cell_document(cell.summary), cell.summary.cost
    costs = None if cost is None else {name: told.pop(name) for name in cost.to_dict()}
    return {
        **told,
        "costs": costs,
        "clock": run.clock,
        "environment": {"fingerprint": facts.get("host.fingerprint"), "device": run.environment.device, **conditions},
    }


def _stats(data: list[float]) -> dict[str, Any]:
    from pytest_benchmark.stats import Stats

    found = Stats()  # type: ignore[no-untyped-call]
    for value in data:
        found.update(value)  # type: ignore[no-untyped-call]
    return {**found.as_dict(), "data": data}  # type: ignore[no-untyped-call]
