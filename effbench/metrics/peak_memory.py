"""The most memory that a network needs, in a process of its own: what the process held at most, less what it held
before there was a network.

That is the same as the difference to a second process that builds nothing, without the second's own luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from effbench import devices, runtimes
from effbench.core.run import Reading
from effbench.host import worker_process
from effbench.metrics import base
from effbench.runtimes import Unsupported
from effbench.runtimes.model_file import ModelFileRuntime
from effbench.timing import build_call
from effbench.user_code import file_hashes, global_state

BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

CALLS = 3
"""What a first call sets up is there in the second; the third is to be sure."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """`peak_memory_bytes` above `baseline_bytes`, `weights_bytes` (parameters alone, in the cell's dtype), `source`.

    `code_bytes` are pages of programs and libraries that came with it and are in the peak, `reserved_bytes` what a
    GPU's allocator took from the driver at most, above what it had before there was a network; each None where nobody
    tells. One input is held whatever the rounds rotate through: a network in use has one. On a CPU the peak holds all
    that preparing took, such as a float32 network on its way to bfloat16, but no export. The allocator's policy is the
    system's whatever the run's is: "retain" keeps what is freed, and what the next call needs may not fit into its
    pieces.
    """
    found = base.one_process(job, worker_process.without_allocator_settings(variables), silence_s)
    if found.missing is not None or job["device"] != "cpu":
        return found
    return replace(found, values={**found.values, "allocator": "system"})


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end. Raises as `preparation.prepare`, and Unsupported where nobody counts what a runtime allocates."""
    # No clock is read here, so that no GPU has to be brought to its clocks.
    cold = {"warm_up_s": 0.0} if devices.kind_of(job["device"]) == "cuda" else {}
    spec, device = job["cell"], devices.get(job["device"], **job["device_options"], **cold)
    device.setup()
    if device.kind != "fake":
        runtime = runtimes.get(spec["runtime"])
        if isinstance(runtime, ModelFileRuntime) and device.kind == "cuda":
            raise Unsupported(f"{runtime.name} allocates past torch, which alone counts a process's memory on a GPU")
        if runtime.missing() is None:
            runtime.facts()  # imports it: what a runtime takes before it has a network is no network's
    # What setting up has left with the allocator is no network's, and must not serve it unseen either.
    device.release()
    before = device.memory(afresh=True)
    with build_call.gradients(job["mode"], device):
        held = global_state.guard_for(device)
        call = build_call.prepare(spec, job["seed"], device, emit, held, lean=True)
        file_hashes.digests_of_job({**job, "cells": [spec]})
        with held.calling(spec["id"]):
            for _ in range(CALLS):
                call()
            device.synchronize()
    after = device.memory()
    code = None if after.code_bytes is None else after.code_bytes - (before.code_bytes or 0)
    params = spec["cost"].get("params")
    values = {
        "peak_memory_bytes": after.peak_bytes - before.peak_bytes,
        "baseline_bytes": before.peak_bytes,
        "weights_bytes": None if params is None else params * BYTES[spec["dtype"]],
        "code_bytes": code,
        "reserved_bytes": None if after.reserved_bytes is None else after.reserved_bytes - (before.reserved_bytes or 0),
        "source": after.source,
    }
    emit("reading", values=values)
