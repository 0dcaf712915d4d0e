"""Latency percentiles of single calls (p50, p90, p99).

They are wall-clock times, since tail latency is mostly waiting, of single calls, since a block averages its calls.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from effbench.analysis import stats
from effbench.core.run import Metric
from effbench.core.study import Sampling
from effbench.devices import Call, Device
from effbench.metrics import base
from effbench.timing import block_loop

SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}

MIN_CALLS, MAX_CALLS = 500, 5000
"""The 99th percentile has an upper confidence bound from 368 calls on."""

ENOUGH_S, MOST_S = 3.0, 20.0
"""Seconds after which timing stops once `MIN_CALLS` are done, and after which it stops in any case."""

_BETWEEN_NS = 100_000_000
"""Time between two checks of the elapsed time."""


def measure_in_subprocess(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Time single calls in a worker process. Values of the result:

    `p50_s`, `p90_s`, `p99_s` with their exact 95 % bounds (``p99_low_s``, ``p99_high_s``; None where there were too few
    calls), `n`, `max_s`, `steady`, and every call in order as `calls_ns`. The bounds assume that the calls of this one
    process are independent.
    """
    metric = base.run_worker(job, variables, silence_s)
    if metric.missing is not None:
        return metric
    return Metric(metric.what, {**summarise_calls(metric.values["calls_ns"]), **metric.values})


def measure(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Time calls in the worker process; emits `steady` and `calls_ns`."""
    with base.prepared_cell(job, emit) as (device, call, guard):
        cell, sampling = job["cell"], Sampling(**job["sampling"])
        with guard.calling(cell["id"]):
            warm, _ = block_loop.warm_up(
                device, call, cell["id"], cell["calls"], sampling, base.report_slow_calls(emit)
            )
        # A garbage collection during a call would add to the tail, and is not the network's time.
        gc.collect()
        gc.freeze()
        gc.disable()
        guard.remember_settings()
        values = {"steady": warm.steady, "calls_ns": single_calls(device, call)}
    emit("metric", values=values)


def single_calls(device: Device, call: Call) -> list[int]:
    """Return the nanoseconds of each call, for as many calls as the time allows."""
    spent: list[int] = []
    start = device.now_s()
    while len(spent) < MAX_CALLS:
        elapsed = device.now_s() - start
        if elapsed > MOST_S or (elapsed > ENOUGH_S and len(spent) >= MIN_CALLS):
            break
        # Start with one call, then take as many at once as fit between two checks of the elapsed time.
        longest = max(spent, default=_BETWEEN_NS)
        spent += device.time_calls(call, max(1, min(MIN_CALLS, _BETWEEN_NS // max(longest, 1))))
    return spent


def summarise_calls(calls_ns: list[int]) -> dict[str, float | int | None]:
    """Return the percentiles of these calls with their bounds, in seconds."""
    values: dict[str, float | int | None] = {"n": len(calls_ns), "max_s": max(calls_ns) * 1e-9}
    for name, share in SHARES.items():
        found = stats.quantile_interval(calls_ns, share)
        for part, bound in (("", found.point), ("_low", found.low), ("_high", found.high)):
            values[f"{name}{part}_s"] = None if bound is None else bound * 1e-9
    return values
