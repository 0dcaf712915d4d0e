"""Run secondary metrics, each in processes of its own, so that they do not disturb timed blocks.

Each metric is one module with two functions: ``take(job, variables, silence_s)`` runs in the parent, ``answer(job,
emit)`` in the worker processes that `take` starts (`one_process` starts one).
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from effbench import devices
from effbench.core import plugins
from effbench.core.errors import UnknownName
from effbench.core.plugins import BrokenPlugin
from effbench.core.run import METRICS, Metric
from effbench.devices import Call, Device
from effbench.host.worker_process import Worker, WorkerFailed
from effbench.timing import block_loop, build_call
from effbench.user_code import failure_reasons, file_hashes, global_state
from effbench.user_code.global_state import SettingsGuard
from effbench.zoo.load_model import NETWORK_FAILURES

_MODULES = {"percentiles": "latency_percentiles"}
"""Metrics whose module has a longer name."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Measure the metric that the job's `task` names, for its one `cell`. The result has the reason if that fails.

    `variables` are the worker's environment (`worker_process.worker_environment`).
    """
    module = _module(job["task"])
    if job["task"] in METRICS:
        metric: Metric = module.take(job, variables, silence_s)
        return metric
    return _of_plugin(module, job, variables, silence_s)


def take_all(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Metric]]:
    """Measure the metric that the job's `task` names for each of these cells, and yield (id, result) in order.

    `tell` is called with each cell before it is measured. A metric that can measure several cells in one process has a
    ``take_all`` of its own.
    """
    several = getattr(_module(job["task"]), "take_all", None) if job["task"] in METRICS else None
    if several is not None:
        found: Mapping[str, Metric] = several(job, cells, variables, silence_s, tell=tell)
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
        emit("skip", reason=failure_reasons.reason_for(error))


@contextlib.contextmanager
def prepared_cell(job: Mapping[str, Any], emit: Callable[..., None]) -> Iterator[tuple[Device, Call, SettingsGuard]]:
    """Set up the job's device and build the call of its cell. Yields both, and the tracker of process-wide settings.

    Raises as `build_call.prepare` does. At the end it raises Switched if the calls have changed process-wide settings.
    Emit the result after this context has ended, so that it is not reported then.
    """
    device = devices.get(job["device"], **job["device_options"])
    device.setup()
    with build_call.gradients(job["mode"], device):
        held = global_state.guard_for(device)
        call = build_call.prepare(job["cell"], job["seed"], device, emit, held)
        file_hashes.digests_of_job({**job, "cells": [job["cell"]]})
        yield device, call, held
        held.require(job["cell"]["id"])


def report_slow_calls(emit: Callable[..., None]) -> Callable[[float], None]:
    """Return a callback that reports slow calls to the parent, which would otherwise see no events and time out."""

    def told(seconds: float) -> None:
        if seconds >= block_loop.SLOW_S:
            emit("call", seconds=seconds)

    return told


def one_process(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Start one worker on the job. Returns the values of its `reading` event, or the reason why there was none."""
    what = job["task"]
    with Worker(job, variables, silence_s) as worker:
        try:
            for event in worker.events():
                if event["event"] == "metric":
                    return Metric(what, event["values"])
                if event["event"] in ("skip", "error"):
                    return Metric(what, missing=str(event.get("reason") or event.get("message")))
        except WorkerFailed as failure:
            return Metric(what, missing=str(failure))
    return Metric(what, missing="the process ended early, without an error")


def _module(what: str) -> Any:
    """The module of a metric, or what an installed package has under its name. Raises UnknownName, BrokenPlugin."""
    if what in METRICS:
        return importlib.import_module(f"effbench.metrics.{_MODULES.get(what, what)}")
    if what not in plugins.names(plugins.METRICS):
        raise UnknownName("metric", what, (*METRICS, *plugins.names(plugins.METRICS)))
    found = plugins.load(plugins.METRICS, what)
    if not callable(getattr(found, "answer", None)):
        origin = plugins.providing_package(plugins.METRICS, what)
        raise BrokenPlugin(f"metric '{what}' of the package {origin} has no function answer(job, emit); repair it")
    return found


def _of_plugin(module: Any, job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """The metric of another package: its own `take`, if it has one, must not end the run."""
    own = getattr(module, "take", None)
    if own is None:
        return one_process(job, variables, silence_s)
    try:
        found = own(job, variables, silence_s)
        if not isinstance(found, Metric) or found.what != job["task"]:
            raise TypeError(f"take returned {type(found).__name__}, and not its Metric")
        json.dumps(dict(found.values), allow_nan=False)
    except Exception as error:
        origin = plugins.providing_package(plugins.METRICS, job["task"])
        return Metric(
            job["task"], missing=f"metric '{job['task']}' of the package {origin} {plugins.failure_text(error)}"
        )
    return found
