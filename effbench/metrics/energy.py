"""How many joules a call takes: the device's own counters over some seconds of calls, and over a rest before them.

The counters are those of the whole package or GPU, so that whatever else runs there is counted too: the rest says how
much that is. A library was tried for this (zeus 0.16): it brings scikit-learn, pydantic, tyro, httpx and thirteen more
(about 55 MB), starts a process for each counter that polls beside the measurement, and does not hand out the raw
counters. Reading two files, or asking NVML one question, needs none of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from effbench.core.errors import EffbenchError
from effbench.core.run import Reading
from effbench.core.study import Sampling
from effbench.devices import Call, Device, Energy
from effbench.metrics import base
from effbench.timing import block_loop

WINDOW_S = 5.0
"""NVML counts in steps of up to a tenth of a second, RAPL of a millisecond: 2 % of this window at the most."""

REST_S = 5.0
SETTLE_S = 1.0
"""After preparing a cell the device still takes more than at rest."""

LOOK_S = 0.05
"""Time between two looks at the clock."""


def take(job: Mapping[str, Any], variables: Mapping[str, str], silence_s: float) -> Reading:
    """`energy_j_per_call`, `energy_j_per_image`, `power_w` during the calls and `idle_w` at rest before them; `calls`
    in `window_s`, `idle_s`, `domains` (joules of each), `source` ("nvml", "rapl"), and the `counters_uj` as they were
    read: before and after the rest, before and after the calls.
    """
    return base.one_process(job, variables, silence_s)


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end. Raises EffbenchError where there is no counter, or one that stands still."""
    spec = job["cell"]
    with base.ready(job, emit) as (device, call, _):
        device.energy()  # refuses before anybody waits
        sampling = Sampling(**job["sampling"])
        values = measured(device, call, spec["id"], spec["batch"], sampling, base.alive(emit))
    emit("reading", values=values)


def measured(
    device: Device, call: Call, cell: str, batch: int, sampling: Sampling, told: block_loop.Told = lambda seconds: None
) -> dict[str, Any]:
    """The values of a reading. Raises as `answer`. `told` hears of calls of the warm-up."""
    device.rest(SETTLE_S)
    idle_s, idle = _window(device, lambda: device.rest(REST_S))
    warm, _ = block_loop.warm_up(device, call, cell, None, sampling, told)
    once_s = warm.call_s
    chunk = max(1, math.ceil(LOOK_S / max(once_s, 1e-7)))
    calls = 0

    def work() -> None:
        nonlocal calls
        end = device.now_s() + WINDOW_S
        while device.now_s() < end:
            # Not timed: a device may make more calls than it is asked to time.
            device.run_calls(call, chunk)
            calls += chunk

    window_s, busy = _window(device, work)
    domains = spent_j(*busy)
    energy_j = sum(domains.values())
    if energy_j <= 0:
        raise EffbenchError(
            f"the energy counter of {busy[0].source} stood still during {window_s:.1f} s of calls; measure at the plug"
        )
    return {
        "energy_j_per_call": energy_j / calls,
        "energy_j_per_image": energy_j / calls / batch,
        "power_w": energy_j / window_s,
        "idle_w": sum(spent_j(*idle).values()) / idle_s,
        "calls": calls,
        "window_s": window_s,
        "idle_s": idle_s,
        "domains": domains,
        "source": busy[0].source,
        "counters_uj": [dict(look.counters_uj) for look in (*idle, *busy)],
    }


def spent_j(before: Energy, after: Energy) -> dict[str, float]:
    """Joules of each domain between two looks, in which a counter started anew once at the most.

    Raises EffbenchError for one that went backwards and does not say where it starts anew.
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


def _window(device: Device, work: Callable[[], None]) -> tuple[float, tuple[Energy, Energy]]:
    """Seconds that `work` took, and the counters before and after."""
    device.synchronize()
    before, start = device.energy(), device.now_s()
    work()
    device.synchronize()
    seconds = device.now_s() - start
    return seconds, (before, device.energy())
