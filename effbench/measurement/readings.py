"""What is read of a cell beside its rounds, each in processes of its own, so that no timed block comes near it.

One module each: ``take(job, variables, silence_s)`` in the parent, ``answer(job, emit)`` in the workers that it starts
(`one_process` starts one).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from effbench.core import Reading
from effbench.measurement.launcher import Worker, WorkerFailed


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """The reading that the job's `task` names, of its one `cell`; its reason where it could not be taken.

    `variables` are the worker's environment (`launcher.worker_environment`).
    """
    reading: Reading = _module(job["task"]).take(job, variables, silence_s)
    return reading


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end, in a worker."""
    _module(job["task"]).answer(job, emit)


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
    return importlib.import_module(f"effbench.measurement.{what}")
