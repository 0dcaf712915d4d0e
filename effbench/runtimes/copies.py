"""Copies for exporters, which may change the network and the inputs that they are given."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def for_export(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Copies of both, made outside of inference mode, where exporters want them.

    A network that nobody can copy (it holds a lock, a file, a handle of C++) is given away itself: it is not used again
    after its export.
    """
    import torch

    with torch.inference_mode(False):
        example: tuple[Any, ...] = tuple(each.detach().clone() for each in inputs)
        return of(network) or network, example


def of(network: nn.Module) -> nn.Module | None:
    """A deep copy of the network; None where nobody can copy it."""
    import torch
    from torch.nn import parameter

    # torch refuses to copy a tensor that was computed from weights, such as an attribute of weight norm.
    memo = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    # Nor does it copy a buffer of a lazy module, though it does copy such a parameter.
    lazy: Any = parameter.UninitializedBuffer
    for buffer in network.buffers():
        if isinstance(buffer, lazy):
            memo[id(buffer)] = lazy(buffer.requires_grad, buffer.device, buffer.dtype)
    try:
        return copy.deepcopy(network, memo)
    except Exception:  # a lock, a file, a handle of C++: a module raises what it likes
        return None
