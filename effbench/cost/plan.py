"""What follows from one operator's argument shapes: its formula's counts, what it reads and writes, what it returns.

A `Plan` is computed at the first call with these shapes and used for every like call of the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effbench.cost.formulas import FREE, PRODUCTS, UNKNOWN, Call, Formula, Shape, formula


@dataclass(frozen=True, slots=True)
class Plan:
    """All that follows from an operator's argument shapes: computed once, used for every like call of the process.

    `reads` are (position among the input tensors, elements, bytes); `writes` likewise, among the outputs or, in place,
    the inputs. `returns` rebuilds the result: shape, stride and dtype of each output, or the position of the input that
    comes back.
    """

    formula: Formula
    free: bool
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    madds: int = 0
    activations: int = 0
    elementwise: int = 0
    reads: tuple[tuple[int, int, int], ...] = ()
    writes: tuple[tuple[int, int, int], ...] = ()
    in_place: bool = False
    returns: tuple[Any, ...] | None = None
    container: type | None = None


class Operator(NamedTuple):
    """What is known of an ATen operator before any call."""

    name: str
    formula: Formula
    free: bool
    composite: bool
    pointwise: bool
    mutated: tuple[tuple[int, str, bool], ...]


def describe(func: Any) -> Operator:
    """What is known of an ATen overload before it is called: its name, its formula, and which arguments it mutates."""
    full = func.name()
    name = full.split(".")[0].removeprefix("aten::")
    pointwise = torch.Tag.pointwise in func.tags
    found = formula(name, pointwise)
    free = name in FREE or full.startswith("prim::")
    mutated = tuple(
        (position, argument.name, argument.kwarg_only)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    composite = found is UNKNOWN and not free and func.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    )  # fmt: skip
    return Operator(name, found, free, composite, pointwise, mutated)


def plan_call(
    operator: Operator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    result: Any,
    outputs: list[Tensor],
) -> Plan:
    """The plan for one real call of the operator: free when it only views, else counted from its shapes."""
    shapes = tuple(Shape(tensor.shape) for tensor in tensors)
    outs = tuple(Shape(tensor.shape) for tensor in outputs)
    storages = {id(tensor.untyped_storage()) for tensor in tensors}
    fresh = [tensor for tensor in outputs if id(tensor.untyped_storage()) not in storages]
    if not fresh and not operator.mutated:
        return Plan(UNKNOWN, True, shapes, outs)
    call = Call(operator.name, _shapes(args), shapes, outs, {name: _shapes(value) for name, value in kwargs.items()})
    targets = []
    if not fresh:
        found = [args[place] if place < len(args) else kwargs.get(name) for place, name, _ in operator.mutated]
        targets = [_position(tensors, tensor) for tensor in flatten(found)]
    unread = {
        _position(tensors, kwargs[name])
        for _, name, keyword in operator.mutated
        if keyword and isinstance(kwargs.get(name), Tensor)
    }
    returns, container = _returns(result, outputs, tensors)
    return count(operator.formula, call, tensors, outputs, targets, unread, returns, container)


def count(
    found: Formula,
    call: Call,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    targets: Sequence[int] = (),
    unread: Iterable[int] = (),
    returns: tuple[Any, ...] | None = None,
    container: type | None = None,
) -> Plan:
    """Apply the formula: elements read from weights and activations, elements written, multiply-adds."""
    skipped = set(unread) | ({0} if found.reads in ("overwritten", "scattered") else set())
    reads = []
    for position, tensor in enumerate(tensors):
        if position in skipped or found.reads == "nothing":
            continue
        elements = 0 if found.reads == "like" else _elements(tensor)
        if found.reads == "gathered" and position == 0:
            elements = min(elements, call.out)
        reads.append((position, elements, elements * tensor.element_size()))
    writes = []
    places = targets or range(1 if found.primary else len(outputs))
    for position in places:
        tensor = tensors[position] if targets else outputs[position]
        elements = _elements(tensors[-1]) if found.reads == "scattered" else _elements(tensor)
        writes.append((position, elements, elements * tensor.element_size()))
    return Plan(
        formula=found,
        free=False,
        inputs=call.inputs,
        outputs=call.outputs or tuple(call.inputs[position] for position in targets),
        madds=found.madds(call) if found.madds else 0,
        activations=call.out if found.kind in PRODUCTS else 0,
        elementwise=found.elementwise(call) if found.elementwise else 0,
        reads=tuple(reads),
        writes=tuple(writes),
        in_place=bool(targets),
        returns=returns,
        container=container,
    )


def known_result(operator: Operator, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> Any:
    """The result on meta of two frequent operators whose shape rules torch runs slowly, in Python; otherwise None."""
    x = tensors[0]
    if operator.pointwise and operator.mutated and x is args[0]:
        return x if all(other.shape == x.shape and other.dtype == x.dtype for other in tensors) else None
    if operator.name == "native_batch_norm" and len(args) > 5 and args[5] is False and x.is_contiguous():
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    return None


def _returns(result: Any, outputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Any, Any]:
    """How to rebuild a result without running the operator; None where that is not safe."""
    items = [result] if isinstance(result, Tensor) else result
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Tensor) for item in items):
        return None, None
    rebuilt: list[Any] = []
    storages = {id(tensor.untyped_storage()) for tensor in tensors}
    for item in items:
        same = next((place for place, tensor in enumerate(tensors) if tensor is item), None)
        if same is not None:
            rebuilt.append(same)
        elif id(item.untyped_storage()) in storages:
            return None, None
        else:
            rebuilt.append((item.shape, item.stride(), item.dtype))
    return tuple(rebuilt), None if isinstance(result, Tensor) else type(result)


def _elements(tensor: Tensor) -> int:
    """Different elements seen through a tensor: one along an expanded dimension, at most the storage in windows."""
    if not tensor.numel():
        return 0
    unique = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return min(unique, max(1, tensor.untyped_storage().nbytes() // tensor.element_size()))


# --- walking through arguments ----------------------------------------------------------------------


def key_of(value: Any, tensors: list[Tensor]) -> Any:
    """What an operator's result shape can depend on; appends the tensors found, in order."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    if value.__class__ is tuple or isinstance(value, (list, tuple)):
        return tuple([key_of(item, tensors) for item in value])
    # 1, 1.0 and True are equal but promote differently.
    return value if value is None else (value.__class__, value)


def hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(value.shape)
    return tuple(_shapes(item) for item in value) if isinstance(value, (list, tuple)) else value


def moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    return type(value)(moved(item) for item in value) if isinstance(value, (list, tuple)) else value


def flatten(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, dictionaries and plain objects such as dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in flatten(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flatten(item)]
    return flatten(vars(value)) if hasattr(value, "__dataclass_fields__") else []


def _position(tensors: Sequence[Tensor], tensor: Tensor) -> int:
    return next(place for place, item in enumerate(tensors) if item is tensor)
