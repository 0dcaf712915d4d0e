"""What the tests of runtimes of model files share: two inputs of different kinds, the worker's way in, the error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effbench import runtimes
from effbench.runtimes import Prepared, Setting


def fed(seed: int) -> tuple[Tensor, ...]:
    """A batch of two 3x16x16 images and of two numbers below 5."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.randint(5, (2,), generator=generator)


def prepared_by(name: str, network: nn.Module, inputs: list[tuple[Tensor, ...]], setting: Setting) -> Prepared:
    """As the worker does it."""
    runtime = runtimes.get(name)
    runtime.require(setting)
    with torch.inference_mode():
        return runtime.prepare(network, inputs, setting)


def error(expected: Any, found: Any) -> float:
    """The largest difference over the largest value, over all outputs."""
    pairs = list(zip(expected.values(), found, strict=True))
    return max(float(np.abs(want.numpy() - got).max() / want.abs().max()) for want, got in pairs)
