"""Networks by name: list them, look up what is published about them, build them. Importing this imports no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effbench.core.errors import EffbenchError, InvalidValue, ModelError, UnknownName
from effbench.zoo import _registry
from effbench.zoo._registry import Entry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Entry", "build", "entry", "exists", "names", "resolve"]

_OWN = " A network of your own is written package.module:factory or path/file.py:factory."


def names(kind: str = "network") -> tuple[str, ...]:
    """Registered names, aliases included; `kind` is "network" or "probe".

    Other widths of a family parse without being listed.
    """
    return tuple(
        name
        for item in _registry.catalogue().values()
        if item.kind == kind and "{" not in item.name
        for name in (*item.aliases, item.name)
    )


def exists(name: str) -> bool:
    """Does this name a network, or a family of them?"""
    return bool(_registry.find(name) or _registry.family(name))


def entry(name: str) -> Entry:
    """What is published about this network; an alias gives the entry it stands for.

    The name of a family gives its network where it has only one. Raises UnknownName, which lists the networks of a
    family that has several.
    """
    found = _registry.find(name)
    if found is not None:
        return found
    members = _registry.family(name)
    if len(members) == 1:
        return members[0]
    if members:
        raise UnknownName("model", name, [min((item.name, *item.aliases), key=len) for item in members], family=True)
    raise UnknownName("model", name, names() + names("probe"), hint=_OWN)


def build(name: str, **arguments: Any) -> nn.Module:
    """A network of the zoo with random weights. `arguments` go to its builder, on top of those its name stands for.

    Raises UnknownName; InvalidValue for an argument that the builder does not take or refuses; ModelError when it
    fails.
    """
    found = entry(name)
    builder = getattr(importlib.import_module(f"effbench.zoo.{found.family}"), found.builder)
    arguments = {**found.arguments, **arguments}
    signature = inspect.signature(builder)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InvalidValue(f"{name}: {error}; it takes {', '.join(signature.parameters)}") from None
    try:
        network: nn.Module = builder(**arguments)
    except EffbenchError:
        raise
    except Exception as error:  # torch refuses wrong sizes with exceptions of many kinds
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{name} cannot be built from {arguments}: {reason}; change these arguments") from error
    return network


def resolve(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The network that a user's word names: a zoo name, or ``module:factory`` and the like (see `zoo.external`).

    Literal arguments may follow as ``?key=value&key2=value2``; those of `arguments` win. Raises as `build` and
    `external.load` do.
    """
    from effbench.zoo import external

    name, written = external.split_arguments(spec)
    merged = {**written, **(arguments or {})}
    return external.load(name, merged) if ":" in name else build(name, **merged)
