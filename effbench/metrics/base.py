"""Run secondary metrics, each in processes of its own, so that they do not disturb timed blocks.

Each metric is one module with two functions: ``take(job, variables, silence_s)`` runs in the parent, ``answer(job,
emit)`` in the worker processes that `take` starts (`one_process` starts one).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from effbench import devices
from effbench.core.run import Reading
from effbench.devices import Call, Device
from effbench.host.worker_process import Worker, WorkerFailed
from effbench.timing import block_loop, build_call
from effbench.user_code import failure_reasons, file_hashes, global_state
from effbench.user_code.global_state import Held
from effbench.zoo.external import NETWORK_FAILURES

_MODULES = {"percentiles": "latency_percentiles"}
"""Metrics whose module has a longer name."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """Measure the metric that the job's `task` names, for its one `cell`. The result has the reason if that fails.

    `variables` are the worker's environment (`worker_process.worker_environment`).
    """
    reading: Reading = _module(job["task"]).take(job, variables, silence_s)
    return reading


def take_all(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Reading]]:
    """Measure the metric that the job's `task` names for each of these cells, and yield (id, result) in order.

    `tell` is called with each cell before it is measured. A metric that can measure several cells in one process has a
    ``take_all`` of its own.
    """
    several = getattr(_module(job["task"]), "take_all", None)
    if several is not None:
        found: Mapping[str, Reading] = several(job, cells, variables, silence_s, tell=tell)
        yield from found.items()
        return
    for cell in cells:
        tell(cell["id"])
        yield cell["id"], take({**job, "cell": cell}, variables, silence_s)


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Measure in the worker process. If the network fails to run, emit a `skip` event with the reason."""
    try:
        _module(job["task"]).answer(job, emit)
    except NETWORK_FAILURES as error:
        emit("skip", reason=failure_reasons.told(error))


@contextlib.contextmanager
def prepared_cell(job: Mapping[str, Any], emit: Callable[..., None]) -> Iterator[tuple[Device, Call, Held]]:
    """Set up the job's device and build the call of its cell. Yields both, and the tracker of process-wide settings.

    Raises as `build_call.prepare` does. At the end it raises Switched if the calls have changed process-wide settings.
    Emit the result after this context has ended, so that it is not reported then.
    """
    device = devices.get(job["device"], **job["device_options"])
    device.setup()
    with build_call.gradients(job["mode"], device):
        held = global_state.held(device)
        call = build_call.prepare(job["cell"], job["seed"], device, emit, held)
        file_hashes.of_job({**job, "cells": [job["cell"]]})
        yield device, call, held
        held.require(job["cell"]["id"])


def report_slow_calls(emit: Callable[..., None]) -> Callable[[float], None]:
    """Return a callback that reports slow calls to the parent, which would otherwise see no events and time out."""

    def told(seconds: float) -> None:
        if seconds >= block_loop.SLOW_S:
            emit("call", seconds=seconds)

    return told


def one_process(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """Start one worker on the job. Returns the values of its `reading` event, or the reason why there was none."""
    what = job["task"]
    with Worker(job, variables, silence_s) as worker:
        try:
            for event in worker.events():
                if event["event"] == "reading":
                    return Reading(what, event["values"])
                if event["event"] in ("skip", "error"):
                    return Reading(what, missing=str(event.get("reason") or event.get("message")))
        except WorkerFailed as failure:
            return Reading(what, missing=str(failure))
    return Reading(what, missing="the process ended early, without an error")


def _module(what: str) -> ModuleType:
    return importlib.import_module(f"effbench.metrics.{_MODULES.get(what, what)}")
