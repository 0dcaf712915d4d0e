"""Count the instructions that one call of a cell executes, which do not depend on how busy the machine is.

A worker process imports what all cells need, and forks for each cell, so that each is counted in the same state. The
child prepares the cell, warms up and counts one call after the other. Two fresh processes do this; their relative
difference is `repeatability`.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from effbench import devices
from effbench.analysis import stats
from effbench.core.errors import ForeignCode, Reason, error_from_reason
from effbench.core.run import Metric
from effbench.host import temporary_folders
from effbench.host.worker_process import Site, Worker, WorkerEvents
from effbench.metrics import instruction_counters
from effbench.metrics.instruction_counters import KINDS, Counter, Method
from effbench.timing import build_call
from effbench.user_code import code_origins, failure_reasons, file_hashes, global_state
from effbench.zoo.load_model import NETWORK_FAILURES

WHAT = "instructions"
PROCESSES = 2
WARMUPS = 2
CALLS = 3
EMPTY_CALLS = 3
"""Calls of an empty function, to subtract the overhead of counting."""

SLOWDOWN = 20
"""Factor on the silence limit of a worker that counts, since it may run in an emulator."""

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

Rows = Sequence[Mapping[str, int]]
"""Counts of each call, by kind (`instruction_counters.KINDS`)."""


def measure_in_subprocess(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Count the instructions of the job's one `cell`. The result has the reason if they cannot be counted."""
    return measure_cells(job, [job["cell"]], variables, silence_s)[job["cell"]["id"]]


def measure_cells(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    site: Site | None = None,
    on_cell: Callable[[str], None] = lambda cell: None,
) -> dict[str, Metric]:
    """Count all of these cells (`Recording.cell_spec`) in the same two processes. Returns the result of each by id.

    `site` is where their code is, if not in the current tree. `on_cell` is called with each cell before it is counted.
    Values: `instructions_per_call` (median over all calls, without the overhead of counting), the same for every other
    kind that the method reports, `calls` (instructions of each, by process), `empty_call`, `spread` (the largest range
    within a process, relative to its median), `repeatability` (relative difference between the processes), `method`,
    `method_version`, `threads`.
    """
    if devices.kind_of(job["device"]) == "fake":
        return {cell["id"]: Metric(WHAT, _scripted_values(cell["cost"])) for cell in cells}
    if why := why_unavailable(job["device"]):
        return {cell["id"]: Metric(WHAT, missing=why) for cell in cells}
    calls: dict[str, list[Rows]] = defaultdict(list)
    empty: dict[str, list[Rows]] = defaultdict(list)
    refused: dict[str, str] = {}
    about: dict[str, Any] = {"threads": 1}
    for _ in range(PROCESSES):
        left = [cell for cell in cells if cell["id"] not in refused]
        if not left:
            continue
        with temporary_folders.folder() as folder:
            method = instruction_counters.find_method(folder)
            assert isinstance(method, Method), "it was available just now"
            about |= {"method": method.name, "method_version": method.version}
            asked = {**job, "task": WHAT, "cells": left, "counter": dict(method.settings)}
            location = replace(site or Site(), command_prefix=method.command_prefix)
            # A fixed hash seed makes Python's dictionaries the same in every process.
            environment = {**variables, **method.variables, **_ONE_THREAD, "PYTHONHASHSEED": "0"}
            for event in _worker_events(asked, environment, SLOWDOWN * silence_s, location):
                if event["event"] == "error" and event.get("cause"):
                    raise error_from_reason(Reason(event["message"], event["cause"]))
                if event["event"] == "working":
                    on_cell(event["cell"])
                elif event["event"] == "skip" and "cell" in event:
                    refused[event["cell"]] = event["reason"]
                elif event["event"] == "counted":
                    calls[event["cell"]].append(event["calls"])
                    empty[event["cell"]].append(event["empty"])
    return {
        cell["id"]: Metric(WHAT, missing=refused[cell["id"]])
        if cell["id"] in refused
        else Metric(WHAT, {**summarise(calls[cell["id"]], empty[cell["id"]]), **about})
        for cell in cells
    }


def why_unavailable(device: str) -> str | None:
    """Return why instructions cannot be counted on this device, and what to do about it; None if they can."""
    if devices.kind_of(device) == "cuda":
        return f"instructions are counted on a CPU, not on {device}; count them with --device cpu"
    with temporary_folders.folder() as folder:
        found = instruction_counters.find_method(folder)
    return found if isinstance(found, str) else None


def expected_s(device: str, cells: int) -> float:
    """Estimate the CPU seconds that counting this many cells takes on this device; 0 if negligible."""
    if devices.kind_of(device) == "fake":
        return 0.0
    with temporary_folders.folder() as folder:
        found = instruction_counters.find_method(folder)
    start, each = instruction_counters.CPU_S.get(found.name, (0, 0)) if isinstance(found, Method) else (0, 0)
    return float(PROCESSES * (start + each * cells))


def summarise(calls: Sequence[Rows], empty: Sequence[Rows]) -> dict[str, Any]:
    """Return the values of one cell from the counts of each process. Kinds that were not reported are left out."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        if all(kind in row for process in calls for row in process):
            added = _median(row[kind] for process in empty for row in process)
            found[f"{kind}_per_call"] = max(_median(row[kind] for process in calls for row in process) - added, 0)
    each = [[row["instructions"] for row in process] for process in calls]
    medians = [_median(process) for process in each]
    return {
        **found,
        "calls": each,
        "empty_call": _median(row["instructions"] for process in empty for row in process),
        "spread": max((max(process) - min(process)) / median for process, median in zip(each, medians, strict=True)),
        "repeatability": (max(medians) - min(medians)) / max(medians),
    }


def _scripted_values(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the scripted device: one instruction for each multiply-add and for each byte moved."""
    rows = [{"instructions": int(cost["madds"] + cost["memory_access_bytes"])}] * CALLS
    empty = [{"instructions": 0}] * EMPTY_CALLS
    return summarise([rows] * PROCESSES, [empty] * PROCESSES) | {"method": "scripted"}


def _median(values: Iterable[int]) -> int:
    return round(stats.median(list(values)))


def _worker_events(
    job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float, site: Site
) -> Iterable[Mapping[str, Any]]:
    """Yield the events of one process, and then a `skip` event for each cell without a result."""
    silent = [cell["id"] for cell in job["cells"]]
    message = ""
    with Worker(job, variables, silence_s, site) as worker:
        events = WorkerEvents(worker)
        for event in events:
            if event["event"] in ("counted", "skip") and event.get("cell") in silent:
                silent.remove(event["cell"])
            elif event["event"] in ("error", "skip"):
                message = event.get("message") or event["reason"]
            yield event
    reason = events.failure or message or events.ending
    for cell in silent:
        yield {"event": "skip", "cell": cell, "reason": reason}


# --- in the worker ----------------------------------------------------------------------------------


def measure(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Count in the worker process: fork a child for each cell, which emits the result."""
    device = devices.get(job["device"], **{**job["device_options"], "threads": 1})
    device.setup()
    instruction_counters.start_method(job["counter"])
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        child = os.fork()
        if not child:
            try:
                _count_cell(job, {**spec, "threads": 1}, device, emit)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            emit("skip", cell=spec["id"], reason=f"the process that counts it ended with status {status}")


def _count_cell(
    job: Mapping[str, Any], spec: Mapping[str, Any], device: devices.Device, emit: Callable[..., None]
) -> None:
    try:
        with build_call.inference_mode_for(spec["mode"], device):
            # minimal_memory: reuse what an earlier launch exported, since exporting takes minutes in an emulator.
            guard = global_state.guard_for(device)
            call = build_call.prepare(spec, job["seed"], device, emit, guard, minimal_memory=True)
            code_origins.refuse_foreign(job)
            file_hashes.digests_of_job({**job, "cells": [spec]})
            with guard.calling(spec["id"]):
                for _ in range(WARMUPS):
                    call()
            counter = instruction_counters.open_counter(job["counter"])
            gc.collect()
            gc.freeze()
            gc.disable()
            guard.remember_settings()
            calls = _count_calls(counter, call, CALLS)
            guard.require_unchanged(spec["id"])
            emit("counted", cell=spec["id"], calls=calls, empty=_count_calls(counter, lambda: None, EMPTY_CALLS))
    except ForeignCode as error:
        emit("error", message=str(error), cause=error.cause)
    except NETWORK_FAILURES as error:
        emit("skip", cell=spec["id"], reason=failure_reasons.reason_for(error))


def _count_calls(counter: Counter, call: Callable[[], object], times: int) -> list[Mapping[str, int]]:
    return [counter.count(call) for _ in range(times)]
