"""Run secondary metrics, each in processes of its own, so that they do not disturb timed blocks.

Each metric is one module with two functions. ``measure_in_subprocess(job, variables, silence_s)`` runs in the parent
and starts worker processes (`run_worker` starts one); ``measure(job, emit)`` runs in each of them.
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
from effbench.host.worker_process import Worker, WorkerEvents
from effbench.timing import block_loop, build_call
from effbench.user_code import failure_reasons, file_hashes, global_state
from effbench.user_code.global_state import SettingsGuard
from effbench.zoo.load_model import NETWORK_FAILURES


def measure_in_subprocess(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Measure the metric that the job's `task` names, for its one `cell`. The result has the reason if that fails.

    `variables` are the worker's environment (`worker_process.worker_environment`).
    """
    module = _module_of(job["task"])
    if job["task"] in METRICS:
        metric: Metric = module.measure_in_subprocess(job, variables, silence_s)
        return metric
    return _measure_with_plugin(module, job, variables, silence_s)


def measure_cells(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    on_cell: Callable[[str], None],
) -> Iterator[tuple[str, Metric]]:
    """Measure the metric that the job's `task` names for each of these cells, and yield (id, result) in order.

    `on_cell` is called with each cell before it is measured. A metric that can measure several cells in one process has
    its own ``measure_cells``.
    """
    several = getattr(_module_of(job["task"]), "measure_cells", None) if job["task"] in METRICS else None
    if several is not None:
        found: Mapping[str, Metric] = several(job, cells, variables, silence_s, on_cell=on_cell)
        yield from found.items()
        return
    for cell in cells:
        on_cell(cell["id"])
        yield cell["id"], measure_in_subprocess({**job, "cell": cell}, variables, silence_s)


def measure(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Measure in the worker process. If the network fails to run, emit a `skip` event with the reason."""
    try:
        _module_of(job["task"]).measure(job, emit)
    except NETWORK_FAILURES as error:
        emit("skip", reason=failure_reasons.reason_for(error))


@contextlib.contextmanager
def prepared_cell(job: Mapping[str, Any], emit: Callable[..., None]) -> Iterator[tuple[Device, Call, SettingsGuard]]:
    """Set up the job's device and build the call of its cell. Yields both, and the tracker of process-wide settings.

    Raises as `build_call.prepare` does. At the end it raises SettingChanged if the calls have changed process-wide
    settings. Emit the result after this context has ended, so that it is not reported then.
    """
    device = devices.get(job["device"], **job["device_options"])
    device.setup()
    with build_call.inference_mode_for(job["mode"], device):
        guard = global_state.guard_for(device)
        call = build_call.prepare(job["cell"], job["seed"], device, emit, guard)
        file_hashes.digests_of_job({**job, "cells": [job["cell"]]})
        yield device, call, guard
        guard.require_unchanged(job["cell"]["id"])


def report_slow_calls(emit: Callable[..., None]) -> Callable[[float], None]:
    """Return a callback that reports slow calls to the parent, which would otherwise see no events and time out."""

    def report(seconds: float) -> None:
        if seconds >= block_loop.SLOW_S:
            emit("call", seconds=seconds)

    return report


def run_worker(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Start one worker on the job. Returns the values of its `metric` event, or the reason why there was none."""
    what = job["task"]
    with Worker(job, variables, silence_s) as worker:
        events = WorkerEvents(worker)
        for event in events:
            if event["event"] == "metric":
                return Metric(what, event["values"])
            if event["event"] in ("skip", "error"):
                return Metric(what, missing=str(event.get("reason") or event.get("message")))
    return Metric(what, missing=events.ending)


def _module_of(what: str) -> Any:
    """Return the module of a metric, ours or that of an installed package. Raises UnknownName, BrokenPlugin."""
    if what in METRICS:
        return importlib.import_module(f"effbench.metrics.{what}")
    if what not in plugins.names(plugins.METRIC_GROUP):
        raise UnknownName("metric", what, (*METRICS, *plugins.names(plugins.METRIC_GROUP)))
    found = plugins.load(plugins.METRIC_GROUP, what)
    if not callable(getattr(found, "measure", None)):
        origin = plugins.providing_package(plugins.METRIC_GROUP, what)
        raise BrokenPlugin(f"metric '{what}' of the package {origin} has no function measure(job, emit); repair it")
    return found


def _measure_with_plugin(module: Any, job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Measure the metric of another package. An error of its own `measure_in_subprocess` becomes the reason."""
    own = getattr(module, "measure_in_subprocess", None)
    if own is None:
        return run_worker(job, variables, silence_s)
    try:
        found = own(job, variables, silence_s)
        if not isinstance(found, Metric) or found.what != job["task"]:
            raise TypeError(f"measure_in_subprocess returned {type(found).__name__}, and not its Metric")
        json.dumps(dict(found.values), allow_nan=False)
    except Exception as error:
        origin = plugins.providing_package(plugins.METRIC_GROUP, job["task"])
        return Metric(
            job["task"], missing=f"metric '{job['task']}' of the package {origin} {plugins.failure_text(error)}"
        )
    return found
