"""Find how many extra additions slow one network of nets.py by a given share, and measure the slowdown. Prints JSON.

Usage: calibrate.py NET SHARE. Uses CPU time of this thread, with the plain and the slowed network in alternating
blocks.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import nets
import torch


def block_s(network: nets.Net, x: torch.Tensor, calls: int) -> float:
    network(x)
    start = time.thread_time()
    for _ in range(calls):
        network(x)
    return (time.thread_time() - start) / calls


def share_of(plain: nets.Net, slowed: nets.Net, x: torch.Tensor, rounds: int = 60) -> float:
    """Return the median over rounds of the slowed network's time over the plain one's, minus 1."""
    calls = max(1, round(0.005 / block_s(plain, x, 5)))
    found = []
    for number in range(rounds):
        times = {}
        for network in (plain, slowed) if number % 2 else (slowed, plain):
            times[network.extra] = block_s(network, x, calls)
        found.append(times[slowed.extra] / times[plain.extra] - 1)
    return statistics.median(found)


def main(name: str, share: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    wanted, x = float(share), torch.randn(1, nets.NETS[name][0], 28, 28)
    plain, slowed = nets.build(name), nets.build(name)
    with torch.inference_mode():
        share_of(plain, nets.Net(*nets.NETS[name], extra=1), x, 10)
        slowed.extra = 200
        slowed.extra = max(1, round(200 * wanted / share_of(plain, slowed, x)))
        print(json.dumps({"extra": slowed.extra, "injected": share_of(plain, slowed, x, 120)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
