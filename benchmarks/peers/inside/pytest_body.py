"""Time one body with pytest-benchmark in a real pytest process, together with the bare loop. Set by environment
variables.
"""

from __future__ import annotations

import os
from typing import Any

import bodies


def test_body(benchmark: Any) -> None:
    call = bodies.get(os.environ["PEERS_BODY"])
    first = bodies.bare_ns(call)
    if os.environ["PEERS_MODE"] == "pedantic":
        benchmark.pedantic(call, rounds=200, iterations=1000, warmup_rounds=5)
    else:
        benchmark(call)
    benchmark.extra_info["bare_ns"] = (first + bodies.bare_ns(call)) / 2
