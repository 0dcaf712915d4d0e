"""Copy networks and inputs for exporters, which may modify what they are given."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def copy_for_export(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return copies of both, made outside of inference mode as exporters need.

    A network that cannot be copied (it holds a lock, a file, a C++ handle) is returned itself. It is not used again
    after its export.
    """
    import torch

    with torch.inference_mode(False):
        example: tuple[Any, ...] = tuple(each.detach().clone() for each in inputs)
        return deep_copy(network) or network, example


def deep_copy(network: nn.Module) -> nn.Module | None:
    """Return a deep copy of the network; None if it cannot be copied."""
    import torch
    from torch.nn import parameter

    # torch cannot deep-copy a tensor that was computed from weights, such as an attribute of weight norm.
    memo = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    # Nor can it copy a buffer of a lazy module, although it copies such a parameter.
    lazy: Any = parameter.UninitializedBuffer
    for buffer in network.buffers():
        if isinstance(buffer, lazy):
            memo[id(buffer)] = lazy(buffer.requires_grad, buffer.device, buffer.dtype)
    try:
        return copy.deepcopy(network, memo)
    except Exception:  # a lock, a file, a C++ handle: modules raise any error
        return None
