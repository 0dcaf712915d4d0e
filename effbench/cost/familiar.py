"""Whether a network is made of known code alone: layers of torch.nn and networks of the zoo, as they were written.

Their forward passes keep nothing outside of their modules, so they need no process of their own to be counted in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

_HOMES = ("torch.nn.modules.", "effbench.zoo.")
"""Python modules whose classes are known, by how their names begin."""

_METHODS = ("__call__", "forward")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PLAIN = frozenset({bool, int, float, str, type(None), tuple, list, set, dict, OrderedDict})
"""Types of attributes that have no code of their own."""

_TENSORS = frozenset({Tensor, nn.Parameter, nn.Buffer, type(None)})


def keeps_nothing(modules: Iterable[nn.Module]) -> bool:
    """Whether all `modules` of a network are of known classes, with plain attributes and nothing of a user's.

    A hook, a function as an attribute, a parametrization, a tensor of a subclass: each makes the network unknown.
    """
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return False
    kinds: set[type] = set()
    for module in modules:
        kinds.add(type(module))
        attributes = module.__dict__
        if not _PLAIN.issuperset(map(type, attributes.values())) or any(map(attributes.get, _HOOKS)):
            return False
        for name in ("_parameters", "_buffers"):
            if not _TENSORS.issuperset(map(type, attributes[name].values())):
                return False
    return all(map(_is_as_written, kinds))


def _is_as_written(kind: type) -> bool:
    """Whether a class is one of the known, and nobody has put a method of his own into it."""
    if not kind.__module__.startswith(_HOMES):
        return False
    written = [getattr(getattr(kind, name), "__globals__", {}).get("__name__", "") for name in _METHODS]
    return all(home.startswith(_HOMES) for home in written)
