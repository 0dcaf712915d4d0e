"""Eager PyTorch: the network as written, under inference mode."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from effbench.devices.base import Call
from effbench.runtimes.base import Runtime

if TYPE_CHECKING:
    from torch import Tensor, nn


class Eager(Runtime):
    """Inference mode is entered by the worker once for the whole launch, so a call costs nothing but the network."""

    name = "eager"

    def facts(self) -> dict[str, Any]:
        import torch

        return {"torch": torch.__version__}

    def prepare(self, network: nn.Module, inputs: list[tuple[Tensor, ...]]) -> Call:
        if len(inputs) == 1:
            arguments = inputs[0]
            if len(arguments) == 1:
                (single,) = arguments
                return lambda: network(single)
            return lambda: network(*arguments)
        turn = itertools.cycle(inputs)
        return lambda: network(*next(turn))
