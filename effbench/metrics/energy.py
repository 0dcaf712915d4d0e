"""Measure energy per call in joules, with the device's own counters (RAPL, NVML) over some seconds of calls.

The counters cover the whole CPU package or GPU, including whatever else runs there. The power at rest before the calls
shows how much that is. A library for this (zeus 0.16) was tried and rejected: it depends on scikit-learn, pydantic,
tyro, httpx and thirteen more packages (about 55 MB), starts a polling process per counter during the measurement, and
does not give access to the raw counters. Reading two files, or one NVML call, is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from effbench.core.errors import EffbenchError
from effbench.core.run import Metric
from effbench.core.study import Sampling
from effbench.devices import Call, Device, Energy
from effbench.metrics import base
from effbench.timing import block_loop

WINDOW_S = 5.0
"""Length of the measuring window. NVML updates its counter up to every 0.1 s, RAPL every millisecond: at most 2 %."""

REST_S = 5.0
SETTLE_S = 1.0
"""Wait before the rest window: right after preparing a cell, the device still draws more power than at rest."""

CLOCK_CHECK_S = 0.05
"""Time between two checks of the clock."""


def measure_in_subprocess(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Metric:
    """Measure energy in a worker process. Values of the result:

    `energy_j_per_call`, `energy_j_per_image`; `power_w` during the calls and `idle_w` at rest before them; the number
    of `calls` in `window_s`; `idle_s`; `domains` (joules of each); `source` ("nvml" or "rapl"); `counters_uj`, the raw
    counters before and after the rest, and before and after the calls.
    """
    return base.run_worker(job, variables, silence_s)


def measure(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Measure in the worker process. Raises EffbenchError without a counter, or if the counter does not move."""
    spec = job["cell"]
    with base.prepared_cell(job, emit) as (device, call, _):
        device.energy()  # raises before the first wait if there is no counter
        sampling = Sampling(**job["sampling"])
        values = measure_energy(device, call, spec["id"], spec["batch"], sampling, base.report_slow_calls(emit))
    emit("metric", values=values)


def measure_energy(
    device: Device,
    call: Call,
    cell: str,
    batch: int,
    sampling: Sampling,
    on_call: block_loop.OnCall = lambda seconds: None,
) -> dict[str, Any]:
    """Return the values of the metric. Raises as `measure` does. `on_call` gets the seconds of warm-up calls."""
    device.sleep(SETTLE_S)
    idle_s, idle = _run_and_read_counters(device, lambda: device.sleep(REST_S))
    warm, _ = block_loop.warm_up(device, call, cell, None, sampling, on_call)
    once_s = warm.call_s
    chunk = max(1, math.ceil(CLOCK_CHECK_S / max(once_s, 1e-7)))
    calls = 0

    def work() -> None:
        nonlocal calls
        end = device.now_s() + WINDOW_S
        while device.now_s() < end:
            # Not time_block: a device may make additional calls there, which would not be counted.
            device.run_calls(call, chunk)
            calls += chunk

    window_s, busy = _run_and_read_counters(device, work)
    domains = consumed_j(*busy)
    energy_j = sum(domains.values())
    if energy_j <= 0:
        raise EffbenchError(
            f"the energy counter of {busy[0].source} stood still during {window_s:.1f} s of calls; measure at the plug"
        )
    return {
        "energy_j_per_call": energy_j / calls,
        "energy_j_per_image": energy_j / calls / batch,
        "power_w": energy_j / window_s,
        "idle_w": sum(consumed_j(*idle).values()) / idle_s,
        "calls": calls,
        "window_s": window_s,
        "idle_s": idle_s,
        "domains": domains,
        "source": busy[0].source,
        "counters_uj": [dict(look.counters_uj) for look in (*idle, *busy)],
    }


def consumed_j(before: Energy, after: Energy) -> dict[str, float]:
    """Return the joules of each domain between two readings of the counters, which may wrap around once.

    Raises EffbenchError for a counter that went backwards and has no known range.
    """
    found = {}
    for domain, first in before.counters_uj.items():
        spent = after.counters_uj[domain] - first
        if spent < 0:
            if domain not in before.wraps_uj:
                raise EffbenchError(f"the energy counter of {domain} went backwards; measure again")
            spent += before.wraps_uj[domain]
        found[domain] = spent * 1e-6
    return found


def _run_and_read_counters(device: Device, work: Callable[[], None]) -> tuple[float, tuple[Energy, Energy]]:
    """Run `work`. Returns its seconds, and the counters before and after."""
    device.synchronize()
    before, start = device.energy(), device.now_s()
    work()
    device.synchronize()
    seconds = device.now_s() - start
    return seconds, (before, device.energy())
