"""Runtimes by name. Importing this imports no torch."""

from __future__ import annotations

from effbench.errors import UnknownName
from effbench.runtimes.base import Runtime, Unsupported

__all__ = ["NAMES", "Runtime", "Unsupported", "get"]

NAMES = ("eager",)


def get(name: str) -> Runtime:
    """The runtime of this name. Raises UnknownName."""
    if name == "eager":
        from effbench.runtimes.eager import Eager

        return Eager()
    raise UnknownName("runtime", name, NAMES)
