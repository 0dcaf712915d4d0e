"""Intercept scaled dot-product attention and recurrent layers before torch decomposes them, to count them as one.

Devices decompose them differently: meta stores attention's score matrix, which no fused kernel does, and steps through
a recurrent layer that the CPU runs as one operator. They are intercepted at the dispatcher, which every way to call
them goes through: ``torch.nn.functional``, ``torch._C._nn``, ``torch.ops.aten``, TorchScript, exported graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from effbench.cost.formulas import Call, Shape, formula, recurrent
from effbench.cost.nested_values import flatten
from effbench.cost.op_cost import COMPOSITES, CallCost, apply_formula, layout_of

ATTENTION = "scaled_dot_product_attention"
RECURRENT = tuple(sorted(COMPOSITES - {ATTENTION}))

_ELEMENTWISE = {"lstm": 9, "gru": 8}
"""Element-wise operations per row and hidden unit (`formulas`); 1 for plain RNNs."""

_AUTOGRAD = {"cpu": "AutogradCPU", "meta": "AutogradMeta", "cuda": "AutogradCUDA", "mps": "AutogradMPS"}

_FLASH_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _overloads() -> list[Any]:
    aten = torch.ops.aten
    found = [aten.scaled_dot_product_attention.default]
    for name in RECURRENT:
        found += [getattr(aten, name).input, getattr(aten, name).data]
    return found


@contextmanager
def intercept(
    carry_out: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any], places: Iterable[str]
) -> Iterator[None]:
    """Call ``carry_out(operator, arguments, named)`` in place of these operators within the block.

    `places` are the types of the devices on which they may run. The kernel is registered in addition to torch's own,
    which is not replaced, and unregistered at the end. It has autograd's dispatch keys only, so the result of
    `carry_out` stays differentiable.
    """
    keys = [_AUTOGRAD[place] for place in dict.fromkeys(places) if place in _AUTOGRAD]
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    at_work = [carry_out]  # torch keeps kernels, and what they refer to, after they are unregistered
    try:
        for func in _overloads():

            def kernel(*args: Any, _func: Any = func, **kwargs: Any) -> Any:
                return at_work[0](_func, args, kwargs)

            for key in keys:
                library.impl(func.name().removeprefix("aten::"), kernel, key)
        yield
    finally:
        library._destroy()
        at_work.clear()


def result_on_meta(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the operator's result on meta, computed from shapes, with the memory layout of the CPU.

    None for other arguments, such as those that torch rejects with its own error.
    """
    given = named_arguments(func, args, kwargs)
    return _attention_result(given) if func.__name__.startswith(ATTENTION) else _recurrent_result(given)


def cost_of_composite(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[str, CallCost, list[Tensor], list[Tensor]]:
    """Return the operator's name, its cost, the tensors that it reads, and those that it writes."""
    given = named_arguments(func, args, kwargs)
    name = func.__name__.partition(".")[0]
    if name == ATTENTION:
        tensors = flatten([given[key] for key in ("query", "key", "value", "attn_mask")])
        call = Call(name, (), tuple(Shape(item.shape) for item in tensors), (Shape(result.shape),))
        return name, apply_formula(formula(name), call, tensors, [result]), tensors, [result]
    return _recurrent_cost(name, given, flatten(result))


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names of the operator's schema, defaults filled in."""
    return {
        argument.name: args[place]
        if place < len(args)
        else kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
        for place, argument in enumerate(func._schema.arguments)
    }


def _attention_result(given: Mapping[str, Any]) -> Tensor | None:
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    if query.dim() < 3 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2] or given["dropout_p"]:
        return None
    heads = query.shape[-3] if given["enable_gqa"] else None
    broadcast: Any = torch.broadcast_shapes
    try:
        outer = broadcast(
            query.shape[:-2], *((*item.shape[:-3], heads) if heads else item.shape[:-2] for item in (key, value))
        )
        if mask is not None:
            outer = broadcast(outer, mask.shape[:-2])
    except RuntimeError:
        return None
    fused = (
        query.dim() == 4
        and tuple(outer) == query.shape[:2]
        and query.shape[0] == key.shape[0] == value.shape[0]
        and (heads or query.shape[1] == key.shape[1] == value.shape[1])
        and query.shape[-1] == value.shape[-1]
        and query.dtype in _FLASH_DTYPES
        and all(item.stride(-1) == 1 and item.numel() for item in (query, key, value))
        and (mask is None or mask.dim() in (2, 4))
    )
    # The output of the fused kernel has the query's layout; that of the plain products is contiguous.
    if fused:
        return torch.empty_like(query)
    made: Tensor = query.new_empty((*outer, query.shape[-2], value.shape[-1]))
    return made


def _recurrent_result(given: Mapping[str, Any]) -> Any:
    packed = "batch_sizes" in given
    x = given["data"] if packed else given["input"]
    states = given["hx"] if isinstance(given["hx"], (list, tuple)) else [given["hx"]]
    weights = given["params"]
    if not weights or weights[0].shape[-1] != x.shape[-1]:
        return None
    width = states[0].shape[-1] * (1 + given["bidirectional"])
    out = x.new_empty((*x.shape[:-1], width))
    return (out, *(torch.empty_like(state) for state in states))


def _recurrent_cost(
    op: str, given: Mapping[str, Any], outputs: list[Tensor]
) -> tuple[str, CallCost, list[Tensor], list[Tensor]]:
    """Return the cost of a recurrent layer: weights are read once, values between layers written and read once."""
    name = op.partition("_")[0]
    x = given["data"] if "batch_sizes" in given else given["input"]
    states, weights, out = flatten(given["hx"]), flatten(given["params"]), outputs[0]
    tensors = [x, *weights, *states]
    layers, rows = given["num_layers"], x.numel() // max(1, x.shape[-1])
    between = (layers - 1) * rows * out.shape[-1]
    call = Call(name, (), tuple(Shape(item.shape) for item in tensors), (Shape(out.shape),))
    size = out.element_size()
    hidden = rows * states[-1].shape[-1] * layers * (1 + given["bidirectional"])
    cost = CallCost(
        formula=formula(name),
        free=False,
        inputs=tuple(map(tuple, call.inputs)),
        outputs=tuple(map(tuple, call.outputs)),
        madds=recurrent(call, len(weights)),
        activations=layers * prod(out.shape),
        elementwise=_ELEMENTWISE.get(name, 1) * hidden,
        reads=(
            (0, x.numel() + between, x.numel() * x.element_size() + between * size, layout_of(x)),
            *((i, t.numel(), t.numel() * t.element_size(), layout_of(t)) for i, t in enumerate(tensors) if i),
        ),
        writes=((0, out.numel() + between, (out.numel() + between) * size),),
    )
    return name, cost, tensors, outputs
