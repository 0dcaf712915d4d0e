"""What is read of a cell beside its rounds, each in processes of its own, so that no timed block comes near it.

One module each: ``take(job, variables, silence_s)`` in the parent, ``answer(job, emit)`` in the workers that it starts
(`one_process` starts one).
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
    """The reading that the job's `task` names, of its one `cell`; its reason where it could not be taken.

    `variables` are the worker's environment (`launcher.worker_environment`).
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
    """The reading that the job's `task` names of each of these cells, by id, in order. `tell` is told which is next.

    A module that can take several in one process has a ``take_all`` of its own.
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


def _module(what: str) -> ModuleType:
    return importlib.import_module(f"effbench.metrics.{_MODULES.get(what, what)}")
