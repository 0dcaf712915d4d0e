"""Look up networks by name: list them, read what is published about them, build them. Importing this imports no
torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effbench.core.errors import EffbenchError, InvalidValue, ModelError, UnknownName, first_line
from effbench.zoo import _registry
from effbench.zoo._registry import Entry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Entry", "build", "entry", "exists", "names", "resolve"]

_OWN_NETWORK_HINT = " A network of your own is written package.module:factory or path/file.py:factory."


def names(kind: str = "network") -> tuple[str, ...]:
    """Return the registered names, aliases included.

    Parameters
    ----------
    kind : str
        "network" or "probe".

    Returns
    -------
    tuple of str
        Names that `build` takes. Families also accept widths that are not listed, such as ``mobilenet_v2_x0_3``.
    """
    return tuple(
        name
        for item in _registry.all_entries().values()
        if item.kind == kind and "{" not in item.name
        for name in (*item.aliases, item.name)
    )


def exists(name: str) -> bool:
    """Whether this is the name of a network or of a family of networks."""
    return bool(_registry.find(name) or _registry.family(name))


def entry(name: str) -> Entry:
    """Return what is published about a network.

    Parameters
    ----------
    name : str
        A name, an alias, or the name of a family with one network.

    Returns
    -------
    Entry
        Published parameters, multiply-adds, input shape and sources.

    Raises
    ------
    UnknownName
        If there is no such network. For a family with several networks the message lists them.
    """
    found = _registry.find(name)
    if found is not None:
        return found
    members = _registry.family(name)
    if len(members) == 1:
        return members[0]
    if members:
        raise UnknownName("model", name, [min((item.name, *item.aliases), key=len) for item in members], family=True)
    raise UnknownName("model", name, names() + names("probe"), hint=_OWN_NETWORK_HINT)


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a network of the zoo with random weights.

    Parameters
    ----------
    name : str
        A name of the zoo.
    **arguments
        Arguments of its builder, which override those that the name implies.

    Returns
    -------
    nn.Module
        The network, in train mode.

    Raises
    ------
    UnknownName
        If there is no such network.
    InvalidValue
        If the builder does not take or refuses an argument.
    ModelError
        If building fails.
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
    except Exception as error:  # torch raises many kinds of errors for wrong sizes
        reason = first_line(error)
        raise ModelError(f"{name} cannot be built from {arguments}: {reason}; change these arguments") from error
    return network


def resolve(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network that a user names.

    Parameters
    ----------
    spec : str
        A zoo name, or ``module:factory`` and the other forms of `zoo.load_model`. Literal arguments may follow as
        ``?key=value&key2=value2``.
    arguments : mapping, optional
        Arguments of the builder or factory, which override those in `spec`.

    Returns
    -------
    nn.Module
        The network.

    Raises
    ------
    EffbenchError
        As `build` and `load_model.load` do.
    """
    from effbench.zoo import load_model

    name, written = load_model.split_arguments(spec)
    merged = {**written, **(arguments or {})}
    return load_model.load(name, merged) if ":" in name else build(name, **merged)
