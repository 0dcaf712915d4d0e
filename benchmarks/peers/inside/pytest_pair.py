"""Time a network of nets.py, and the same with extra additions, with pytest-benchmark in a real pytest process."""

from __future__ import annotations

import os
from typing import Any

import pair
import pytest

CALLS = dict(zip(("plain", "slowed"), pair.calls(os.environ["PEERS_NET"], int(os.environ["PEERS_EXTRA"])), strict=True))


@pytest.mark.parametrize("network", CALLS)
def test_network(benchmark: Any, network: str) -> None:
    benchmark.extra_info["network"] = network
    benchmark(CALLS[network])
