"""Walking through nested values: every tensor in them, a key of their shapes, the same values on meta."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

_MAX_OBJECTS = 100_000

is_meta: Callable[[Tensor], bool] = torch._C.TensorBase.is_meta.__get__  # type: ignore[attr-defined]
"""Whether a tensor has no values, also while the tracer has tensors say that they are where the network runs."""

_WHOLE: tuple[Any, ...] = (
    *(str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, types.FunctionType),
    *(types.BuiltinFunctionType, types.MethodType, types.GeneratorType, Iterator, nn.Module, torch.ScriptObject),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, torch.Size),
    *(torch.UntypedStorage, torch.TypedStorage),
)
"""What holds no tensors of a call, or must not be looked into."""


def flatten(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, sets, mappings and plain objects, in order.

    Objects are looked into by their attributes and slots: dataclasses, attrs classes, named tuples, and dictionaries
    with attributes of their own. A tensor that is listed twice is found twice; an object that holds itself is looked
    into once. Modules, functions and generators are left alone.
    """
    if isinstance(value, Tensor):
        return [value]
    if value.__class__ in (tuple, list) and all(item is None or isinstance(item, Tensor) for item in value):
        return [item for item in value if item is not None]
    found: list[Tensor] = []
    entered: dict[int, Any] = {}
    waiting = [value]
    while waiting and len(entered) < _MAX_OBJECTS:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif not isinstance(item, _WHOLE) and id(item) not in entered:
            entered[id(item)] = item  # held, so that no later object takes its number
            waiting.extend(reversed(_inside(item)))
    return found


def _inside(value: Any) -> list[Any]:
    """What a container holds; of a container with attributes, those that it does not hold as well."""
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, (list, tuple, Set)) or type(value).__name__ == "deque":
        items = list(value)
    else:
        return list(_attributes(value))
    held = {id(item) for item in items}
    return items + [item for item in _attributes(value) if id(item) not in held]


def _attributes(value: Any) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{kind.__name__.lstrip('_')}{name}"
            try:
                yield object.__getattribute__(value, name)
            except AttributeError:
                continue


storage_of = torch._C.TensorBase.untyped_storage
"""The memory behind a strided tensor, past what `reported_device` puts in its way."""


def packed(value: Any) -> list[Tensor]:
    """The tensors inside what a quantised layer holds its weights in, a script object that packs them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in packed(item)]
    if not isinstance(value, torch.ScriptObject):
        return []
    for read in ("unpack", "__getstate__"):
        try:
            return packed(getattr(value, read)())
        except Exception:  # packed in a way that torch does not tell
            continue
    return []


PLAIN = frozenset({int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format})
"""The types of an operator's arguments that hold no tensor."""

_WHOLE_NUMBERS = {int}
_STRIDED = torch.strided


def key_of(value: Any, tensors: list[Tensor]) -> Any:
    """What an operator's result shape can depend on; appends the tensors found, in order."""
    kind = value.__class__
    if kind is Tensor or isinstance(value, Tensor):
        tensors.append(value)
        if value.layout is _STRIDED:
            return value.shape, value.stride(), value.dtype
        return value.shape, value.layout, value.dtype, object()  # what it stores is not in its shape
    if kind is tuple or isinstance(value, (list, tuple)):
        if {*map(type, value)} == _WHOLE_NUMBERS:
            return tuple(value)
        # 1, 1.0 and True are equal but promote differently.
        return tuple([(item.__class__, item) if item.__class__ in PLAIN else key_of(item, tensors) for item in value])
    if isinstance(value, torch.ScriptObject):
        tensors.extend(packed(value))
        return object()
    return value if value is None else (kind, value)


def hashable(key: Any) -> bool:
    """Whether the key can be looked up."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


def moved(value: Any) -> Any:
    """The same value with its tensors on meta."""
    if isinstance(value, Tensor):
        return value if is_meta(value) else value.to("meta")
    if isinstance(value, (list, tuple)):
        return rebuilt(value, [moved(item) for item in value])
    return {key: moved(item) for key, item in value.items()} if type(value) is dict else value


def rebuilt(like: Any, items: Iterable[Any]) -> Any:
    """A list or tuple of the type of `like`; a named tuple takes its items one by one."""
    kind = type(like)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)
