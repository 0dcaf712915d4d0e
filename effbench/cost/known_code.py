"""Check whether a network consists of known code only: unmodified layers of torch.nn and networks of the zoo.

Their forward passes keep no state outside of their modules, so they can be counted in this process.
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

_KNOWN_MODULES = ("torch.nn.modules.", "effbench.zoo.")
"""Prefixes of the Python modules whose classes are known."""

_KNOWN_PACKAGES = frozenset({"torch", "effbench", "builtins", "typing", "typing_extensions"})
"""Packages whose functions are allowed in a known class and in torch.nn.functional."""

_SCALARS = frozenset({bool, int, float, str, type(None)})
_LEAVES = _SCALARS | {Tensor, nn.Parameter, weakref.ref}
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_UNCHECKED = _SCALARS | {OrderedDict}
_CONTAINERS = frozenset({tuple, list, set, dict})

_checked_content: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Content of each known class, and of torch.nn.functional, when it was last checked."""


def is_known_code(modules: Iterable[nn.Module]) -> bool:
    """Return whether all `modules` of a network are of known classes, with plain attributes and no user code.

    Any of these makes the network unknown: a hook, a mode, a function as an attribute or in place of a known one, a
    parametrization, a tensor subclass.
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
            if kind in _UNCHECKED or (kind is tuple and _SCALARS.issuperset(map(type, value))) or name == "_modules":
                continue
            if not _is_plain(value):
                return False
    places: set[Any] = {part for kind in kinds for part in kind.__mro__ if part is not object}
    return all(map(_is_unmodified, (functional, *places)))


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, string or plain tensor, or a container of these: no code of its own."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return kind in _LEAVES
    items = value.values() if kind is dict else value
    return not items or _LEAVES.issuperset(map(type, items)) or all(map(_is_plain, items))


def _is_unmodified(place: Any) -> bool:
    """Return whether a class or Python module is known and not monkey-patched."""
    content, before = dict(vars(place)), _checked_content.get(place, {})
    # Compared by identity, since a user's object may define any __eq__.
    if content.keys() == before.keys() and all(map(operator.is_, content.values(), before.values())):
        return True
    if isinstance(place, type):
        home = str(place.__module__)
        if not home.startswith(_KNOWN_MODULES) or getattr(sys.modules.get(home), place.__name__, None) is not place:
            return False
    if not all(map(_is_of_known_package, content.values())):
        return False
    _checked_content[place] = content
    return True


def _is_of_known_package(value: Any) -> bool:
    """Return whether an entry of a class or Python module is not a function, or one from a known package."""
    value = getattr(value, "__func__", value)  # of a static method or a class method
    if isinstance(value, FunctionType):
        author = value.__globals__.get("__name__", "")
    elif callable(value) and not isinstance(value, type):
        author = type(value).__module__
    else:
        return True
    return author.partition(".")[0] in _KNOWN_PACKAGES
