"""Define the functions that harnesses are timed on: an empty function, and the addition of two small tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Call = Callable[[], object]


def get(name: str) -> Call:
    """Return the body "empty", or "add": a torch.add of about a microsecond into an existing tensor."""
    if name == "empty":

        def empty() -> None:
            return None

        return empty
    import torch

    torch.set_num_threads(1)
    left, right, out = torch.ones(8), torch.ones(8), torch.empty(8)

    def add() -> None:
        torch.add(left, right, out=out)

    return add


def bare_ns(call: Call, seconds: float = 0.15) -> float:
    """Return the nanoseconds per call in a plain loop between two clock reads: the median over short loops."""
    calls = max(1000, int(5e6 / _loop(call, 1000)))
    spent: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(spent) < 5:
        spent.append(_loop(call, calls))
    return statistics.median(spent)


def _loop(call: Call, calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls
