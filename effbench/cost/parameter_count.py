"""Count learnable parameters, also the packed ones of quantised modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from effbench.cost.nested_values import packed_tensors
from effbench.cost.trace_modes import parameters


def parameters_of(modules: Sequence[nn.Module]) -> int:
    """Count learnable parameters, without buffers, and the packed weights and biases of quantised modules."""
    script = torch.ScriptObject
    quantised = [module for module in modules if script in map(type, _attributes(module))]
    packed = {id(value): value for module in quantised for value in _attributes(module) if value.__class__ is script}
    return sum([item.numel() for item in parameters(modules)]) + sum(map(_packed_parameters, packed.values()))


def _packed_parameters(value: Any) -> int:
    """Count weights and biases in a script object. A recurrent cell packs each bias, and has it unpacked too."""
    sizes = [(tensor.dim(), tensor.numel()) for tensor in packed_tensors(value)]
    biases = sum(size for dim, size in sizes if dim < 2)
    return sum(size for dim, size in sizes if dim > 1) + (biases if hasattr(value, "unpack") else biases // 2)


def _attributes(module: nn.Module) -> Iterable[Any]:
    if not isinstance(module, torch.jit.ScriptModule):
        return vars(module).values()
    # TorchScript exposes attributes by name only; torch's quantised layers use these names.
    names = ("_packed_params", "_packed_weight", "param")
    return [module._c.getattr(name) for name in names if module._c.hasattr(name)]
