"""Time one harness on one body in a separate process, together with the bare loop. Prints JSON.

Usage: harness.py HARNESS BODY SECONDS; SECONDS 0 means the harness's defaults.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import bodies


def effbench(call: bodies.Call, seconds: float) -> dict[str, float]:
    """Time blocks as a launch does. `block_us` is the overhead per block outside of its clocks."""
    from effbench.core.study import Sampling
    from effbench.devices.cpu import Cpu
    from effbench.timing import block_loop

    device, sampling = Cpu(1), Sampling()
    device.time_block(call, 1000)
    calls = block_loop.calls_per_block(device.time_block(call, 1000).wall_ns * 1e-9 / 1000, sampling)
    per_call, outside = [], []
    until = time.perf_counter() + (seconds or 1.0)
    while time.perf_counter() < until:
        start = time.perf_counter_ns()
        timing = device.time_block(call, calls)
        outside.append(time.perf_counter_ns() - start - timing.wall_ns)
        per_call.append(timing.wall_ns / calls)
    return {"harness_ns": statistics.median(per_call), "block_us": statistics.median(outside) / 1e3}


def torch_timer(call: bodies.Call, seconds: float) -> dict[str, float]:
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call})
    found = timer.blocked_autorange(min_run_time=seconds) if seconds else timer.blocked_autorange()
    return {"harness_ns": found.median * 1e9}


def bare(call: bodies.Call, seconds: float) -> dict[str, float]:
    return {"harness_ns": bodies.bare_ns(call, seconds or 1.0)}


def main(harness: str, body: str, seconds: str) -> None:
    call = bodies.get(body)
    first = bodies.bare_ns(call)
    found = {"effbench": effbench, "torch Timer": torch_timer, "bare loop": bare}[harness](call, float(seconds))
    print(json.dumps({**found, "bare_ns": (first + bodies.bare_ns(call)) / 2}))


if __name__ == "__main__":
    main(*sys.argv[1:])
