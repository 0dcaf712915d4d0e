"""Measure every cell of the suite with a peer that starts no process of its own. Prints JSON.

Usage: loops.py TOOL SECONDS; SECONDS are per cell, 0 means the tool's defaults.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import cells

Call = Callable[[], object]


def torch_timer(call: Call, seconds: float) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call})
    return (timer.blocked_autorange(min_run_time=seconds) if seconds else timer.blocked_autorange()).median


def timm_loop(call: Call, seconds: float) -> float:
    """Return the mean wall time of 40 calls after 10 warm-up calls, as in timm's benchmark script, or of as many as
    fit.
    """
    for _ in range(10):
        call()
    steps, start = 0, time.perf_counter()
    while steps < 40 or time.perf_counter() - start < seconds:
        call()
        steps += 1
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    measure = {"torch Timer": torch_timer, "timm-style loop": timm_loop}[sys.argv[1]]
    print(json.dumps({name: measure(call, float(sys.argv[2])) for name, call in cells.calls().items()}))
