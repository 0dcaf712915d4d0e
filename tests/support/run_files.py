"""Run files written for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from effbench.core.run import Run
from effbench.runs.run_file import RUN_FILE, RunWriter


def write(run: Run, directory: Path, blocks: int | None = None) -> Path:
    """Store a run as the runner does, or only its first `blocks` blocks of each cell."""
    with RunWriter(directory) as writer:
        writer.header(run, "0.0")
        for result in run.results:
            writer.cell(replace(result, blocks=()))
            writer.append("calls", cell=result.cell.id, calls=result.calls)
        for launch in run.launches:
            writer.append("launch", launch=launch.number, slot=launch.slot)
            for warm in launch.warmups.values():
                writer.append(
                    "warmup",
                    launch=launch.number,
                    cell=warm.cell,
                    calls=warm.calls,
                    seconds=warm.seconds,
                    steady=warm.steady,
                )
            writer.append("null", launch=launch.number, ns_per_call=launch.null_call_ns)
            writer.append("end", launch=launch.number, stopped=launch.stopped, seconds=launch.seconds)
        for result in run.results:
            for block in result.blocks[:blocks]:
                writer.block(block)
        if blocks is None:
            writer.append("complete")
    return directory / RUN_FILE
