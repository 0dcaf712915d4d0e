"""Whether a network is made of known code alone: layers of torch.nn and networks of the zoo, as they were written.

Their forward passes keep nothing outside of their modules, so they need no process of their own to be counted in.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as nn_module

_HOMES = ("torch.nn.modules.", "effbench.zoo.")
"""Python modules whose classes are known, by how their names begin."""

_AUTHORS = frozenset({"torch", "effbench", "builtins", "typing", "typing_extensions"})
"""Packages whose functions may stand in a known class and in torch.nn.functional."""

_SCALARS = frozenset({bool, int, float, str, type(None)})
_LEAVES = _SCALARS | {Tensor, nn.Parameter, weakref.ref}
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_PASSED = _SCALARS | {OrderedDict}
_CONTAINERS = frozenset({tuple, list, set, dict})

_written: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What stood in each known class, and in torch.nn.functional, when it was looked at."""


def keeps_nothing(modules: Iterable[nn.Module]) -> bool:
    """Whether all `modules` of a network are of known classes, with plain attributes and nothing of a user's.

    A hook, a mode, a function as an attribute or in place of a known one, a parametrization, a tensor of a subclass:
    each makes the network unknown.
    """
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return False
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return False
    kinds: set[type] = set()
    for module in modules:
        kinds.add(type(module))
        attributes = module.__dict__
        if any(map(attributes.get, _HOOKS)):
            return False
        for name, value in attributes.items():
            kind = type(value)
            if kind in _PASSED or (kind is tuple and _SCALARS.issuperset(map(type, value))) or name == "_modules":
                continue
            if not _is_plain(value):
                return False
    places: set[Any] = {part for kind in kinds for part in kind.__mro__ if part is not object}
    return all(map(_is_as_written, (functional, *places)))


def _is_plain(value: Any) -> bool:
    """Numbers, names and plain tensors, also in containers: nothing that has code of its own."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return kind in _LEAVES
    items = value.values() if kind is dict else value
    return not items or _LEAVES.issuperset(map(type, items)) or all(map(_is_plain, items))


def _is_as_written(place: Any) -> bool:
    """Whether a class or Python module is known, and nobody has put a function of his own into it."""
    content, before = dict(vars(place)), _written.get(place, {})
    # By identity: what a user hangs on a class may compare as it likes.
    if content.keys() == before.keys() and all(map(operator.is_, content.values(), before.values())):
        return True
    if isinstance(place, type):
        home = str(place.__module__)
        if not home.startswith(_HOMES) or getattr(sys.modules.get(home), place.__name__, None) is not place:
            return False
    if not all(map(_is_theirs, content.values())):
        return False
    _written[place] = content
    return True


def _is_theirs(value: Any) -> bool:
    """Whether an entry of a class or Python module is no function, or one of the known authors'."""
    value = getattr(value, "__func__", value)  # of a static method or a class method
    if isinstance(value, FunctionType):
        author = value.__globals__.get("__name__", "")
    elif callable(value) and not isinstance(value, type):
        author = type(value).__module__
    else:
        return True
    return author.partition(".")[0] in _AUTHORS
