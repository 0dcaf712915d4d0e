"""Replace attributes of classes and modules for the length of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any


@contextmanager
def replaced_attributes(attributes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set these attributes, each as (owner, name, value), and restore them after the block.

    An attribute that a class had inherited is inherited again. A method of another object may replace a method: it is
    passed the instance as a further argument.
    """
    with ExitStack() as stack:
        for owner, name, value in attributes:
            own = vars(owner).get(name)
            if own is not None:
                stack.callback(setattr, owner, name, own)
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, _as_function(value) if isinstance(value, MethodType) else value)
        yield


def _as_function(method: MethodType) -> Callable[..., Any]:
    """Wrap a method that is bound already in a function, since only functions are passed the instance."""
    return lambda *args, **kwargs: method(*args, **kwargs)
