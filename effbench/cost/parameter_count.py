"""Count learnable parameters, also those that quantised modules hold packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from effbench.cost.trace_modes import parameters
from effbench.cost.walk import packed


def parameters_of(modules: Sequence[nn.Module]) -> int:
    """Learnable parameters, buffers excluded, and the weights and biases that quantised modules hold packed."""
    script = torch.ScriptObject
    holding = [module for module in modules if script in map(type, _attributes(module))]
    held = {id(value): value for module in holding for value in _attributes(module) if value.__class__ is script}
    return sum([item.numel() for item in parameters(modules)]) + sum(map(_held, held.values()))


def _held(value: Any) -> int:
    """Weights and biases in a script object. A recurrent cell holds each bias twice: packed, and beside its weights."""
    sizes = [(tensor.dim(), tensor.numel()) for tensor in packed(value)]
    biases = sum(size for dim, size in sizes if dim < 2)
    return sum(size for dim, size in sizes if dim > 1) + (biases if hasattr(value, "unpack") else biases // 2)


def _attributes(module: nn.Module) -> Iterable[Any]:
    if not isinstance(module, torch.jit.ScriptModule):
        return vars(module).values()
    # TorchScript exposes attributes by name only; torch's quantised layers use these names.
    names = ("_packed_params", "_packed_weight", "param")
    return [module._c.getattr(name) for name in names if module._c.hasattr(name)]
