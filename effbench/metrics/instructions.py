"""How many instructions one call of a cell executes: counted, so that a busy machine changes nothing. Never a time.

A process starts, imports what all cells need, and forks for each of them: whatever ran before, a cell is always counted
in the same state. The child prepares the cell, warms up and counts one call after the other. That is done in two fresh
processes, and how far they differ is the reading's `repeatability`.
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
from effbench.core.errors import ForeignCode, Reason, of_reason
from effbench.core.run import Reading
from effbench.host import temporary_folders
from effbench.host.worker_process import Site, Worker, WorkerFailed
from effbench.metrics import instruction_counters
from effbench.metrics.instruction_counters import KINDS, Counter, Method
from effbench.timing import build_call
from effbench.user_code import code_origins, failure_reasons, file_hashes, global_state
from effbench.zoo.external import NETWORK_FAILURES

WHAT = "instructions"
PROCESSES = 2
WARMUPS = 2
CALLS = 3
EMPTY_CALLS = 3
"""Calls of nothing: what counting itself adds is taken off."""

SLOWDOWN = 20
"""A worker that counts may be silent for so many times longer: it runs in an emulator."""

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

Rows = Sequence[Mapping[str, int]]
"""What each call executed, by kind (`counters.KINDS`)."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """The instructions of the job's one `cell`; the reason where they cannot be counted."""
    return take_all(job, [job["cell"]], variables, silence_s)[job["cell"]["id"]]


def take_all(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    site: Site | None = None,
    tell: Callable[[str], None] = lambda cell: None,
) -> dict[str, Reading]:
    """A reading for each of these cells (`Recording.order`), by id, all of them counted by the same two processes.

    `site` is where their code lies, if not here; `tell` is told which cell is being counted. Values:
    `instructions_per_call` (median over all calls, without what counting adds), the same for every other kind that the
    method tells, `calls` (instructions of each, by process), `empty_call`, `spread` (of one process's calls, as a
    share), `repeatability` (between the processes, as a share), `method`, `method_version`, `threads`.
    """
    if devices.kind_of(job["device"]) == "fake":
        return {cell["id"]: Reading(WHAT, _scripted(cell["cost"])) for cell in cells}
    if why := unavailable(job["device"]):
        return {cell["id"]: Reading(WHAT, missing=why) for cell in cells}
    calls: dict[str, list[Rows]] = defaultdict(list)
    empty: dict[str, list[Rows]] = defaultdict(list)
    refused: dict[str, str] = {}
    about: dict[str, Any] = {"threads": 1}
    for _ in range(PROCESSES):
        left = [cell for cell in cells if cell["id"] not in refused]
        if not left:
            continue
        with temporary_folders.folder() as folder:
            method = instruction_counters.find(folder)
            assert isinstance(method, Method), "it was available just now"
            about |= {"method": method.name, "method_version": method.version}
            asked = {**job, "task": WHAT, "cells": left, "counter": dict(method.settings)}
            under = replace(site or Site(), under=method.under)
            # Python's own tables of names are the same in every process then.
            environment = {**variables, **method.variables, **_ONE_THREAD, "PYTHONHASHSEED": "0"}
            for event in _heard(asked, environment, SLOWDOWN * silence_s, under):
                if event["event"] == "error" and event.get("cause"):
                    raise of_reason(Reason(event["message"], event["cause"]))
                if event["event"] == "working":
                    tell(event["cell"])
                elif event["event"] == "skip" and "cell" in event:
                    refused[event["cell"]] = event["reason"]
                elif event["event"] == "counted":
                    calls[event["cell"]].append(event["calls"])
                    empty[event["cell"]].append(event["empty"])
    return {
        cell["id"]: Reading(WHAT, missing=refused[cell["id"]])
        if cell["id"] in refused
        else Reading(WHAT, {**values_of(calls[cell["id"]], empty[cell["id"]]), **about})
        for cell in cells
    }


def unavailable(device: str) -> str | None:
    """Why nothing can be counted on this device of this machine, and what to do; None where it can."""
    if devices.kind_of(device) == "cuda":
        return f"instructions are counted on a CPU, not on {device}; count them with --device cpu"
    with temporary_folders.folder() as folder:
        found = instruction_counters.find(folder)
    return found if isinstance(found, str) else None


def expected_s(device: str, cells: int) -> float:
    """About how many seconds of CPU counting so many cells takes on this device; 0 where it is no time to speak of."""
    if devices.kind_of(device) == "fake":
        return 0.0
    with temporary_folders.folder() as folder:
        found = instruction_counters.find(folder)
    start, each = instruction_counters.CPU_S.get(found.name, (0, 0)) if isinstance(found, Method) else (0, 0)
    return float(PROCESSES * (start + each * cells))


def values_of(calls: Sequence[Rows], empty: Sequence[Rows]) -> dict[str, Any]:
    """The values of one cell from what was counted, process by process. A kind that was not told is left out."""
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


def _scripted(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Of a device that only pretends: an instruction for each multiply-add and for each byte moved."""
    rows = [{"instructions": int(cost["madds"] + cost["memory_access_bytes"])}] * CALLS
    empty = [{"instructions": 0}] * EMPTY_CALLS
    return values_of([rows] * PROCESSES, [empty] * PROCESSES) | {"method": "scripted"}


def _median(values: Iterable[int]) -> int:
    return round(stats.median(list(values)))


def _heard(
    job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float, site: Site
) -> Iterable[Mapping[str, Any]]:
    """The events of one process, and one that skips each cell of which it has not said what came out."""
    silent = [cell["id"] for cell in job["cells"]]
    reason = "the process ended early, without an error"
    with Worker(job, variables, silence_s, site) as worker:
        try:
            for event in worker.events():
                if event["event"] in ("counted", "skip") and event.get("cell") in silent:
                    silent.remove(event["cell"])
                elif event["event"] in ("error", "skip"):
                    reason = event.get("message") or event["reason"]
                yield event
        except WorkerFailed as failure:
            reason = str(failure)
    for cell in silent:
        yield {"event": "skip", "cell": cell, "reason": reason}


# --- in the worker ----------------------------------------------------------------------------------


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end of `take_all`: one child a cell, one event each."""
    device = devices.get(job["device"], **{**job["device_options"], "threads": 1})
    device.setup()
    instruction_counters.ready(job["counter"])
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        child = os.fork()
        if not child:
            try:
                _count(job, {**spec, "threads": 1}, device, emit)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            emit("skip", cell=spec["id"], reason=f"the process that counts it ended with status {status}")


def _count(job: Mapping[str, Any], spec: Mapping[str, Any], device: devices.Device, emit: Callable[..., None]) -> None:
    try:
        with build_call.gradients(spec["mode"], device):
            # Lean: what an earlier launch exported is not exported again, which takes minutes in an emulator.
            held = global_state.guard_for(device)
            call = build_call.prepare(spec, job["seed"], device, emit, held, lean=True)
            code_origins.refuse_foreign(job)
            file_hashes.digests_of_job({**job, "cells": [spec]})
            with held.calling(spec["id"]):
                for _ in range(WARMUPS):
                    call()
            counter = instruction_counters.opened(job["counter"])
            gc.collect()
            gc.freeze()
            gc.disable()
            held.renew()
            calls = _counted(counter, call, CALLS)
            held.require(spec["id"])
            emit("counted", cell=spec["id"], calls=calls, empty=_counted(counter, lambda: None, EMPTY_CALLS))
    except ForeignCode as error:
        emit("error", message=str(error), cause=error.cause)
    except NETWORK_FAILURES as error:
        emit("skip", cell=spec["id"], reason=failure_reasons.reason_for(error))


def _counted(counter: Counter, call: Callable[[], object], times: int) -> list[Mapping[str, int]]:
    return [counter.count(call) for _ in range(times)]
