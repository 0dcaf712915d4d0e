"""Traverse nested values: list their tensors, build a cache key of their shapes, or move them to meta."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

_MAX_OBJECTS = 100_000

is_meta: Callable[[Tensor], bool] = torch._C.TensorBase.is_meta.__get__  # type: ignore[attr-defined]
"""Return whether a tensor is on meta, even while the tracer makes tensors report the network's device."""

_NOT_TRAVERSED: tuple[Any, ...] = (
    *(str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, types.FunctionType),
    *(types.BuiltinFunctionType, types.MethodType, types.GeneratorType, Iterator, nn.Module, torch.ScriptObject),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, torch.Size),
    *(torch.UntypedStorage, torch.TypedStorage),
)
"""Types that contain no tensors of a call, or must not be traversed."""


def flatten(value: Any) -> list[Tensor]:
    """List every tensor in nested tuples, lists, sets, mappings and plain objects, in order.

    Objects are traversed by their attributes and slots: dataclasses, attrs classes, named tuples, and dictionaries with
    attributes. A tensor that occurs twice is listed twice; an object that contains itself is traversed once. Modules,
    functions and generators are not traversed.
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
        elif not isinstance(item, _NOT_TRAVERSED) and id(item) not in entered:
            entered[id(item)] = item  # kept alive, so that no later object gets its id
            waiting.extend(reversed(_items(item)))
    return found


def _items(value: Any) -> list[Any]:
    """Return the items of a container, and its attributes that are not among the items."""
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, (list, tuple, Set)) or type(value).__name__ == "deque":
        items = list(value)
    else:
        return list(_attributes(value))
    ids = {id(item) for item in items}
    return items + [item for item in _attributes(value) if id(item) not in ids]


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
"""Return the storage of a strided tensor, unaffected by the patches of `reported_device`."""


def packed_tensors(value: Any) -> list[Tensor]:
    """List the tensors in the script object in which a quantised layer packs its weights."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in packed_tensors(item)]
    if not isinstance(value, torch.ScriptObject):
        return []
    for read in ("unpack", "__getstate__"):
        try:
            return packed_tensors(getattr(value, read)())
        except Exception:  # a packed format that torch cannot unpack
            continue
    return []


TYPES_WITHOUT_TENSORS = frozenset({int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Types of operator arguments that contain no tensor."""

_WHOLE_NUMBERS = {int}
_STRIDED = torch.strided


def shape_key(value: Any, tensors: list[Tensor]) -> Any:
    """Return a key of everything that an operator's result shape depends on. Appends the tensors found, in order."""
    kind = value.__class__
    if kind is Tensor or isinstance(value, Tensor):
        tensors.append(value)
        if value.layout is _STRIDED:
            return value.shape, value.stride(), value.dtype
        return value.shape, value.layout, value.dtype, object()  # unique, as the shape does not tell what is stored
    if kind is tuple or isinstance(value, (list, tuple)):
        if {*map(type, value)} == _WHOLE_NUMBERS:
            return tuple(value)
        # 1, 1.0 and True are equal, but have different type promotion.
        return tuple(
            [
                (item.__class__, item) if item.__class__ in TYPES_WITHOUT_TENSORS else shape_key(item, tensors)
                for item in value
            ]
        )
    if isinstance(value, torch.ScriptObject):
        tensors.extend(packed_tensors(value))
        return object()
    return value if value is None else (kind, value)


def is_hashable(key: Any) -> bool:
    """Return whether the key is hashable."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


def to_meta(value: Any) -> Any:
    """Return the same value with its tensors moved to meta."""
    if isinstance(value, Tensor):
        return value if is_meta(value) else value.to("meta")
    if isinstance(value, (list, tuple)):
        return rebuild_sequence(value, [to_meta(item) for item in value])
    return {key: to_meta(item) for key, item in value.items()} if type(value) is dict else value


def rebuild_sequence(like: Any, items: Iterable[Any]) -> Any:
    """Build a list or tuple of the type of `like`, which may be a named tuple."""
    kind = type(like)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)
