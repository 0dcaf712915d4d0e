"""Time blocks of two layers and of an empty call whenever asked: python -m benchmarks.fleet.blocks

Reads lines with a number of seconds, and answers each with one line of JSON: the blocks that it timed meanwhile, as
[cell, wall ns a call, CPU ns a call, whether it was flagged].
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from effbench.core.study import Sampling
from effbench.devices.cpu import Cpu
from effbench.timing.block_loop import warm_up

LAYERS = ("conv 3x3", "conv 1x1")
NULL = "null"


def _nothing() -> None:
    return None


def main() -> None:
    import torch

    device = Cpu(threads=1)
    device.setup()
    torch.manual_seed(0)
    image = torch.randn(1, 64, 28, 28)
    layers = [torch.nn.Conv2d(64, 64, 3, padding=1).eval(), torch.nn.Conv2d(64, 128, 1).eval()]
    calls: dict[str, Any] = {NULL: _nothing}
    for name, layer in zip(LAYERS, layers, strict=True):
        calls[name] = lambda layer=layer: layer(image)
    generator = random.Random(0)
    with torch.inference_mode():
        sizes = {name: warm_up(device, call, name, None, Sampling())[1] for name, call in calls.items()}
        print(json.dumps(sizes), flush=True)
        for line in sys.stdin:
            blocks = []
            until = time.monotonic() + float(line)
            while time.monotonic() < until:
                for name in generator.sample(list(calls), len(calls)):
                    device.run_calls(calls[name], 1)  # as in a run: what ran before has filled the caches
                    timing = device.time_block(calls[name], sizes[name])
                    wall, cpu = (round(spent / timing.calls, 2) for spent in (timing.wall_ns, timing.cpu_ns or 0))
                    blocks.append([name, wall, cpu, int(bool(timing.flags))])
            print(json.dumps(blocks), flush=True)


if __name__ == "__main__":
    main()
