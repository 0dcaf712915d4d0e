"""What is read of a cell beside its rounds, each in processes of its own, so that no timed block comes near it.

One module each: ``take(job, variables, silence_s)`` in the parent, ``answer(job, emit)`` in the workers that it starts
(`one_process` starts one).
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
from effbench.core.run import READINGS, Reading
from effbench.devices import Call, Device
from effbench.host.worker_process import Worker, WorkerFailed
from effbench.timing import block_loop, build_call
from effbench.user_code import failure_reasons, file_hashes, global_state
from effbench.user_code.global_state import Held
from effbench.zoo.external import NETWORK_FAILURES

_MODULES = {"percentiles": "latency_percentiles"}
"""Metrics whose module has a longer name."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """The reading that the job's `task` names, of its one `cell`; its reason where it could not be taken.

    `variables` are the worker's environment (`launcher.worker_environment`).
    """
    module = _module(job["task"])
    if job["task"] in READINGS:
        reading: Reading = module.take(job, variables, silence_s)
        return reading
    return _of_plugin(module, job, variables, silence_s)


def take_all(
    job: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    silence_s: float,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Reading]]:
    """The reading that the job's `task` names of each of these cells, by id, in order. `tell` is told which is next.

    A module that can take several in one process has a ``take_all`` of its own.
    """
    several = getattr(_module(job["task"]), "take_all", None) if job["task"] in READINGS else None
    if several is not None:
        found: Mapping[str, Reading] = several(job, cells, variables, silence_s, tell=tell)
        yield from found.items()
        return
    for cell in cells:
        tell(cell["id"])
        yield cell["id"], take({**job, "cell": cell}, variables, silence_s)


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end, in a worker. What keeps the network from running is said as a "skip"."""
    try:
        _module(job["task"]).answer(job, emit)
    except NETWORK_FAILURES as error:
        emit("skip", reason=failure_reasons.told(error))


@contextlib.contextmanager
def ready(job: Mapping[str, Any], emit: Callable[..., None]) -> Iterator[tuple[Device, Call, Held]]:
    """The job's device, set up, a call of its cell, and what watches it. Raises as `preparation.prepare`.

    At the end it raises Switched where the calls have changed what they were made with: what is read is told after it.
    """
    device = devices.get(job["device"], **job["device_options"])
    device.setup()
    with build_call.gradients(job["mode"], device):
        held = global_state.held(device)
        call = build_call.prepare(job["cell"], job["seed"], device, emit, held)
        file_hashes.of_job({**job, "cells": [job["cell"]]})
        yield device, call, held
        held.require(job["cell"]["id"])


def alive(emit: Callable[..., None]) -> Callable[[float], None]:
    """Tell the parent of slow calls, which it would take for silence."""

    def told(seconds: float) -> None:
        if seconds >= block_loop.SLOW_S:
            emit("call", seconds=seconds)

    return told


def one_process(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """Start one worker on the job and take the values of its "reading" event, or the reason why there was none."""
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


def _module(what: str) -> Any:
    """The module of a metric, or what an installed package has under its name. Raises UnknownName, BrokenPlugin."""
    if what in READINGS:
        return importlib.import_module(f"effbench.metrics.{_MODULES.get(what, what)}")
    if what not in plugins.names(plugins.METRICS):
        raise UnknownName("metric", what, (*READINGS, *plugins.names(plugins.METRICS)))
    found = plugins.load(plugins.METRICS, what)
    if not callable(getattr(found, "answer", None)):
        origin = plugins.origin(plugins.METRICS, what)
        raise BrokenPlugin(f"metric '{what}' of the package {origin} has no function answer(job, emit); repair it")
    return found


def _of_plugin(module: Any, job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """The metric of another package: its own `take`, if it has one, must not end the run."""
    own = getattr(module, "take", None)
    if own is None:
        return one_process(job, variables, silence_s)
    try:
        found = own(job, variables, silence_s)
        if not isinstance(found, Reading) or found.what != job["task"]:
            raise TypeError(f"take returned {type(found).__name__}, and not its Reading")
        json.dumps(dict(found.values), allow_nan=False)
    except Exception as error:
        origin = plugins.origin(plugins.METRICS, job["task"])
        return Reading(job["task"], missing=f"metric '{job['task']}' of the package {origin} {plugins.failing(error)}")
    return found
