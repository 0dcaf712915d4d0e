"""Time two fixed convolutions that no user's code changes, to see how a machine differs between sittings.

One is limited by arithmetic, the other by memory, so their ratio moves where the balance of the two moves. They use
torch alone and fixed shapes: neither a user's network nor the zoo affects them.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from effbench.core.run import Timing
from effbench.devices.base import Call, Device

ROUNDS = 9
"""Most rounds of a launch. Each holds one block of each of the two cells."""

LEAST_ROUNDS = 3

BLOCK_S = 0.0025
"""Least length of a block."""

SHARE = 0.03
"""The rounds end after this share of the time that the launch has taken."""


def time_blocks(device: Device, spent_s: float) -> dict[str, tuple[Timing, ...]]:
    """Time the two cells in turn, after one untimed call of each.

    Parameters
    ----------
    device : Device
        Where to run them.
    spent_s : float
        Seconds that the launch has taken until now.

    Returns
    -------
    dict of str to tuple of Timing
        Blocks of ``"dense"`` and ``"depthwise"``, one per round. Empty where torch is not loaded: a bundle runs
        without it.

    Raises
    ------
    OutOfMemory
        If the device has no memory left.
    """
    if not device.uses_torch or device.kind == "fake" or "torch" not in sys.modules:
        return {}
    import torch

    with torch.no_grad():
        start = device.now_s()
        calls = {"dense": _convolution(device, 64, 1, 1), "depthwise": _convolution(device, 128, 3, 128)}
        sizes = {name: _calls_per_block(device, call) for name, call in calls.items()}
        blocks: dict[str, list[Timing]] = {name: [] for name in calls}
        for number in range(ROUNDS):
            if number >= LEAST_ROUNDS and device.now_s() - start > SHARE * spent_s:
                break
            for name in calls if number % 2 else reversed(calls):
                device.run_calls(calls[name], 1)
                blocks[name].append(device.time_block(calls[name], sizes[name]))
    return {name: tuple(timings) for name, timings in blocks.items()}


def _convolution(device: Device, channels: int, size: int, groups: int) -> Call:
    """Return a call of a size × size convolution of one image of 56 × 56 with as many output as input channels."""
    import torch
    from torch.nn.functional import conv2d

    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Any:
        # Neither a seed nor a default dtype or device that a user's code has set changes the yardstick.
        return device.place(torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu"))

    image, weights = normal(1, channels, 56, 56), normal(channels, channels // groups, size, size)
    return lambda: conv2d(image, weights, padding=size // 2, groups=groups)


def _calls_per_block(device: Device, call: Call) -> int:
    """Return how many calls take `BLOCK_S`, from the second of two calls."""
    device.time_block(call, 1)
    return max(1, math.ceil(BLOCK_S / max(device.time_block(call, 1).wall_ns * 1e-9, 1e-9)))
