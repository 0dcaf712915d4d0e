"""Measure the peak memory of a network: the peak of a fresh process minus its peak before the network was built.

A second process that builds no network would give the same baseline, but with a variation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from effbench import devices, runtimes
from effbench.core.run import Metric
from effbench.host import worker_process
from effbench.metrics import base
from effbench.runtimes import Unsupported
from effbench.runtimes.model_file import ModelFileRuntime
from effbench.timing import build_call
from effbench.user_code import file_hashes, global_state

BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

CALLS = 3
"""The first call sets up buffers that the second reuses; the third is a safety margin."""


def measure_in_subprocess(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Measure the peak memory in a worker process. Values of the result:

    - `peak_memory_bytes` above `baseline_bytes`; `weights_bytes` (parameters alone, in the cell's dtype); `source`.
    - `code_bytes`: pages of programs and libraries that were loaded with the network and are part of the peak.
    - `reserved_bytes`: the most that a GPU's allocator took from the driver, above what it had before the network.
      Like `code_bytes` it is None where it is unknown.

    There is one input, as in deployment, however many inputs the timed rounds rotate through. On a CPU the peak
    includes preparation, such as a float32 network that is cast to bfloat16, but no export. The allocator policy is
    always "system": under "retain", freed memory is kept, and its fragments may not fit the next call's requests.
    """
    found = base.run_worker(job, worker_process.without_allocator_settings(variables), silence_s)
    if found.missing is not None or job["device"] != "cpu":
        return found
    return replace(found, values={**found.values, "allocator": "system"})


def measure(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Measure in the worker process.

    Raises as `build_call.prepare` does, and Unsupported where the runtime's allocations cannot be counted.
    """
    # No time is measured, so a GPU needs no warm-up to its full clock.
    cold = {"warm_up_s": 0.0} if devices.kind_of(job["device"]) == "cuda" else {}
    spec, device = job["cell"], devices.get(job["device"], **job["device_options"], **cold)
    device.setup()
    if device.kind != "fake":
        runtime = runtimes.get(spec["runtime"])
        if isinstance(runtime, ModelFileRuntime) and device.kind == "cuda":
            raise Unsupported(f"{runtime.name} allocates past torch, which alone counts a process's memory on a GPU")
        if runtime.why_unavailable() is None:
            runtime.facts()  # imports the runtime, whose memory is part of the baseline
    # Free memory that set-up left with the allocator: the network could reuse it without raising the peak.
    device.empty_cache()
    before = device.memory(reset_peak=True)
    with build_call.inference_mode_for(job["mode"], device):
        guard = global_state.guard_for(device)
        call = build_call.prepare(spec, job["seed"], device, emit, guard, minimal_memory=True)
        file_hashes.digests_of_job({**job, "cells": [spec]})
        with guard.calling(spec["id"]):
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
    emit("metric", values=values)
