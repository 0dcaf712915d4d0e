"""Compute the cost of one operator call from its argument shapes: operations, reads, writes, and the result's shapes.

The result is cached per operator and argument shapes for the life of the process. It depends on shapes, strides,
layouts and dtypes only, so that no count depends on earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effbench.cost import user_formulas
from effbench.cost.element_counts import distinct_elements
from effbench.cost.formulas import FORMULAS, FREE, PRODUCTS, UNKNOWN, Call, Formula, Mask, Shape, Sparse, formula
from effbench.cost.nested_values import TYPES_WITHOUT_TENSORS, is_meta, packed_tensors, shape_key, storage_of
from effbench.cost.user_formulas import UserFormula

COMPOSITES = frozenset({"scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Operators that torch decomposes on some devices, and that are counted as one operator on all of them."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """The cost of an operator call with given argument shapes, which is cached.

    `reads` are (index of the input tensor, elements, bytes, `layout_of`). `writes` are (index of the output or, in
    place, of the input, elements, bytes). `returns` describes how to rebuild the result: shape, stride and dtype of
    each output, or the index of the input that is returned.
    """

    formula: Formula
    free: bool
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    madds: int = 0
    activations: int = 0
    elementwise: int = 0
    reads: tuple[tuple[int, int, int, object], ...] = ()
    writes: tuple[tuple[int, int, int], ...] = ()
    in_place: bool = False
    returns: tuple[Any, ...] | None = None
    container: type | None = None


class Operator(NamedTuple):
    """Facts about an ATen operator that do not depend on its arguments."""

    name: str
    formula: Formula
    free: bool
    composite: bool
    pointwise: bool
    mutated: tuple[tuple[int, str, bool], ...]
    arguments: tuple[tuple[str, Any], ...] = ()
    custom: UserFormula | None = None
    """The user's own formula, where we have none."""


def describe(func: Any) -> Operator:
    """Look up an ATen overload: its name, its formula, and which arguments it mutates.

    Raises BrokenPlugin for a user's formula that cannot be imported.
    """
    full = func.name()
    name = full.split(".")[0].removeprefix("aten::")
    pointwise = torch.Tag.pointwise in func.tags
    found = formula(name, pointwise)
    custom = user_formulas.find(name) if name not in FORMULAS else None
    free = name in FREE or full.startswith("prim::")
    mutated = tuple(
        (position, argument.name, argument.kwarg_only)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    # torch._decomp also has Python decompositions of operators that run as one kernel: use it only without a formula.
    if free or name in COMPOSITES or custom is not None:
        composite = False
    else:
        composite = _decomposes(full) or (found is UNKNOWN and func.has_kernel_for_dispatch_key(key))
    arguments = tuple((argument.name, argument.default_value) for argument in func._schema.arguments)
    return Operator(name, found, free, composite, pointwise, mutated, arguments, custom)


def _decomposes(name: str) -> bool:
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def decompose(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator's decomposition, as torch does outside inference mode; NotImplemented where it has none.

    `func.decompose` would prefer Python decompositions, which copy where the operator does not (dropout in eval mode).
    """
    if _decomposes(func.name()):
        return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
    return func.decompose(*args, **kwargs)


def cost_of_call(
    operator: Operator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    result: Any,
    outputs: list[Tensor],
) -> CallCost:
    """Compute the cost of one call of the operator: nothing if it only returns a view, else by its formula."""
    shapes = tuple([shape_of(tensor) for tensor in tensors])
    outs = tuple([shape_of(tensor) for tensor in outputs])
    storages = [memory_of(tensor) for tensor in tensors]
    fresh = [tensor for tensor in outputs if not _is_view_of(storages, tensor)]
    if operator.custom is None and not fresh and not operator.mutated and (outputs or operator.formula is UNKNOWN):
        return CallCost(UNKNOWN, True, shapes, outs)
    only_written = {name for _, name, keyword in operator.mutated if keyword}
    named = dict(operator.arguments)
    seen = _with_shapes(args)
    # Tensors are in the order of the positional arguments and then of the keyword arguments, as given.
    named.update(zip(named, seen, strict=False))
    owners = [name for name, value in zip(named, args, strict=False) for _ in range(_number_of_tensors(value))]
    for name, value in kwargs.items():
        named[name] = _with_shapes(value)
        owners += [name] * _number_of_tensors(value)
    for name in only_written:
        del named[name]
    call = Call(operator.name, seen, shapes, outs, {}, named, tuple(owners))
    changed = {name for _, name, _ in operator.mutated}
    targets = [] if fresh else [place for place, name in enumerate(owners) if name in changed]
    unread = [place for place, name in enumerate(owners) if name in only_written]
    returns, container = (None, None) if unread else _describe_result(result, tensors, storages)
    if operator.custom is None:
        return apply_formula(operator.formula, call, tensors, outputs, targets, unread, returns, container)
    written = [tensors[place] for place in targets] or outputs
    shapes_in = {name: _with_shapes(value) for name, value in kwargs.items()}
    cost = user_formulas.cost_of(operator.name, operator.custom, seen, shapes_in, [item.shape for item in written])
    call_cost = apply_formula(
        user_formulas.to_formula(cost), call, tensors, outputs, targets, unread, returns, container
    )
    return user_formulas.with_traffic(call_cost, cost, operator.name, tensors, written)


def apply_formula(
    found: Formula,
    call: Call,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    targets: Sequence[int] = (),
    unread: Iterable[int] = (),
    returns: tuple[Any, ...] | None = None,
    container: type | None = None,
) -> CallCost:
    """Apply the formula: elements read from weights and activations, elements written, multiply-adds."""
    if targets and not call.outputs:
        call = Call(call.op, call.args, call.inputs, tuple(call.inputs[place] for place in targets), call.kwargs,
                    call.named, call.owners)  # fmt: skip
    madds = found.madds(call) if found.madds else 0
    if madds is None:
        found, madds = UNKNOWN, 0
    between = found.between(call) if found.between else 0
    skipped = set(unread)
    reads = []
    for position, tensor in enumerate(tensors):
        if position in skipped or found.reads == "nothing":
            continue
        elements = _elements_read(found, call, position, tensor)
        if elements is not None:
            elements += between if position == 0 else 0
            half = call.op.endswith("fp16") and argument_of(call, position) == "W_prepack"  # unpacked to float32
            reads.append((position, elements, _bytes(tensor, elements) // (2 if half else 1), layout_of(tensor)))
    writes = []
    for position in targets or range(found.primary or len(outputs)):
        tensor = tensors[position] if targets else outputs[position]
        elements = _distinct_elements(tensor)
        if targets and found.touched and found.reads == "scattered":
            elements = min(elements, found.touched(call))
        elements += between if position == 0 else 0
        writes.append((position, elements, _bytes(tensor, elements)))
    products = found.activations(call) if found.activations else call.out
    return CallCost(
        formula=found,
        free=False,
        inputs=tuple(map(tuple, call.inputs)),
        outputs=tuple(map(tuple, call.outputs)),
        madds=madds,
        activations=products if found.kind in PRODUCTS else 0,
        elementwise=found.elementwise(call) if found.elementwise else 0,
        reads=tuple(reads),
        writes=tuple(writes),
        in_place=bool(targets),
        returns=returns,
        container=container,
    )


def argument_of(call: Call, position: int) -> str:
    """Return the name of the argument that a tensor belongs to, "" in a call without names."""
    return call.owners[position] if call.owners else ""


def _elements_read(found: Formula, call: Call, position: int, tensor: Tensor) -> int | None:
    """Return the number of elements that an operator reads of one operand; None where it does not read it."""
    owner = argument_of(call, position)
    if found.reads == "like" or owner == "batch_sizes":
        return 0
    elements = _distinct_elements(tensor)
    if found.reads != "all" and (owner == next(iter(call.named), "") if call.owners else position == 0):
        if found.reads == "overwritten":
            return None
        if found.reads == "scattered":
            touched = found.touched(call) if found.touched else elements
            return min(elements, touched) if found.accumulates and found.accumulates(call) else None
        if found.reads == "gathered":
            return min(elements, found.touched(call) if found.touched else call.out)
    if owner == "src" and call.has("index"):
        return min(elements, call.operand(0, "index").numel)
    if owner == "source" and found.touched and call.has("mask"):
        return min(elements, found.touched(call))
    if not tensor.dim() and call.out != 1 and (found.fusion == "pointwise" or owner in ("values", "value")):
        return 0  # a Python number wrapped in a tensor, as in ``x[index] = 0`` or ``torch.where(mask, x, 0)``
    return elements


def known_result(operator: Operator, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> Any:
    """Return the meta result of two frequent operators whose shape functions are slow Python code; otherwise None."""
    x = tensors[0]
    if operator.pointwise and operator.mutated and x is args[0]:
        return x if all(other.shape == x.shape and other.dtype == x.dtype for other in tensors) else None
    if operator.name == "native_batch_norm" and len(args) > 5 and args[5] is False and x.is_contiguous():
        return tuple(torch.empty(shape, dtype=x.dtype, device="meta") for shape in (x.shape, 0, 0))
    return None


def _describe_result(result: Any, tensors: Sequence[Tensor], storages: Sequence[Any]) -> tuple[Any, Any]:
    """Describe how to rebuild a result without running the operator; None where that is not safe."""
    items = [result] if isinstance(result, Tensor) else result
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Tensor) for item in items):
        return None, None
    rebuilt: list[Any] = []
    for item in items:
        same = next((place for place, tensor in enumerate(tensors) if tensor is item), None)
        if same is not None:
            rebuilt.append(same)
        elif _is_view_of(storages, item) or item.layout is not torch.strided:
            return None, None
        else:
            rebuilt.append((item.shape, item.stride(), item.dtype))
    return tuple(rebuilt), None if isinstance(result, Tensor) else type(result)


# --- what a tensor holds ----------------------------------------------------------------------------


class _UnknownMemory:
    """Placeholder for memory that torch does not expose."""


def memory_of(tensor: Tensor) -> Any:
    """Return the storage of a tensor, which its views share; for a sparse tensor the storage of its values."""
    try:
        return storage_of(tensor)
    except (NotImplementedError, RuntimeError):
        pieces = _dense_parts(tensor)
        return storage_of(pieces[0]) if pieces else _UnknownMemory()


def layout_of(tensor: Tensor) -> object:
    """Return the layout of a tensor in its storage, without the offset."""
    return (tensor.shape, tensor.stride()) if tensor.layout is torch.strided else (tensor.shape, tensor.layout)


def _is_view_of(storages: Sequence[Any], tensor: Tensor) -> bool:
    memory = memory_of(tensor)
    return any(memory is storage for storage in storages)


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that a sparse one consists of."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]
    return []


def _distinct_elements(tensor: Tensor) -> int:
    """Count the distinct memory elements of a tensor: expanded dimensions once, values and indices if sparse."""
    if tensor.layout is not torch.strided:
        return sum(piece.numel() for piece in _dense_parts(tensor)) or tensor.numel()
    return distinct_elements(tensor.shape, tensor.stride())


def _bytes(tensor: Tensor, elements: int) -> int:
    pieces = _dense_parts(tensor) if tensor.layout is not torch.strided else []
    if pieces:
        return sum(piece.numel() * piece.element_size() for piece in pieces)
    return elements * tensor.element_size()


def shape_of(tensor: Tensor) -> Shape:
    """Return the `Shape` of a tensor: with the number of selected elements for a mask, and of stored elements for a
    sparse tensor, where there are values to know them from.
    """
    if tensor.dtype in (torch.bool, torch.uint8) and tensor.dim():
        mask = Mask(tensor.shape)
        mask.selected = None if is_meta(tensor) else _number_selected(tensor)
        return mask
    if tensor.layout is not torch.strided and tensor.layout is not torch._mkldnn:  # type: ignore[attr-defined]
        sparse = Sparse(tensor.shape)
        sparse.stored = None if is_meta(tensor) else _dense_parts(tensor)[0].numel()
        return sparse
    return Shape(tensor.shape)


def _number_selected(mask: Tensor) -> int | None:
    try:
        return int(torch.count_nonzero(mask))
    except Exception:  # a batched tensor under vmap
        return None


# --- walking through arguments ----------------------------------------------------------------------


def _with_shapes(value: Any) -> Any:
    if value is None or value.__class__ in TYPES_WITHOUT_TENSORS:
        return value
    if isinstance(value, Tensor):
        return shape_of(value)
    if isinstance(value, torch.ScriptObject):
        found = [Shape(item.shape) for item in packed_tensors(value)]
        weights = [shape for shape in found if len(shape) > 1]
        return weights[0] if len(weights) == 1 else tuple(weights) or None
    return tuple([_with_shapes(item) for item in value]) if isinstance(value, (list, tuple)) else value


def _number_of_tensors(value: Any) -> int:
    """Count the tensors that `shape_key` finds in one argument."""
    if value is None or value.__class__ in TYPES_WITHOUT_TENSORS:
        return 0
    if isinstance(value, Tensor):
        return 1
    found: list[Tensor] = []
    shape_key(value, found)
    return len(found)
