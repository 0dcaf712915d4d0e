"""Count higher-order operators (torch.cond, while_loop, scan, map, flex_attention) by the operators they run.

A dispatch mode sees such an operator as one call with functions as arguments. This module executes each as eager
PyTorch does, under the tracer. A higher-order operator without a rule here is reported as uncounted, and the status of
the result is "partial".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from effbench.cost.formulas import Call, Shape, formula
from effbench.cost.nested_values import flatten
from effbench.cost.op_cost import apply_formula

if TYPE_CHECKING:
    from effbench.cost.trace import Tracer


def run(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Execute the operator under `tracer`, and return its result.

    Raises NeedsValuesError where a branch or the end of a loop depends on values, and there are none.
    """
    name = func.name() if callable(getattr(func, "name", None)) else str(func)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(tracer, *args, **kwargs)
    kernels = getattr(func, "py_kernels", {})
    dense = kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd) or kernels.get(torch._C.DispatchKey.CPU)
    result = (dense or func)(*args, **kwargs)
    tracer.record_uncounted(name, args, result)
    return result


def _cond(tracer: Tracer, pred: Any, true_fn: Any, false_fn: Any, operands: Sequence[Any] = ()) -> Any:
    if isinstance(pred, Tensor) and tracer.tensors != "real":
        raise tracer.values_error("a branch of torch.cond depends on values")
    taken = true_fn if bool(pred) else false_fn
    with tracer:
        return taken(*operands)


def _while_loop(
    tracer: Tracer, cond_fn: Any, body_fn: Any, carried: Sequence[Any], additional: Sequence[Any] = (), **_: Any
) -> Any:
    while True:
        with tracer:
            going = cond_fn(*carried, *additional)
        if isinstance(going, Tensor) and tracer.tensors != "real":
            raise tracer.values_error("the end of a torch.while_loop depends on values")
        if not bool(going):
            return tuple(carried)
        with tracer:
            carried = body_fn(*carried, *additional)


def _scan(tracer: Tracer, combine_fn: Any, init: Any, xs: Any, additional: Sequence[Any] = ()) -> Any:
    """Run one step after another along the first dimension and stack the results, as torch's eager scan does."""
    carry: list[Any] = list(init)
    steps: list[list[Any]] = []
    with tracer:
        for step in range(xs[0].shape[0] if len(xs) else 0):
            found = list(combine_fn(*carry, *(x.select(0, step) for x in xs), *additional))
            carry, steps = found[: len(carry)], [*steps, found[len(carry) :]]
        return (*carry, *(torch.stack(each) for each in zip(*steps, strict=True)))


def _associative_scan(tracer: Tracer, combine_fn: Any, xs: Any, additional: Sequence[Any] = ()) -> Any:
    from torch._higher_order_ops.associative_scan import generic_associative_scan

    with tracer:
        return generic_associative_scan(combine_fn, xs, additional_inputs=additional)  # type: ignore[no-untyped-call]


def _map(tracer: Tracer, function: Any, xs: Any, additional: Sequence[Any] = ()) -> Any:
    from torch.utils._pytree import tree_flatten, tree_unflatten

    with tracer:
        rows = [function(*row, *additional) for row in zip(*(x.unbind(0) for x in xs), strict=True)]
        flat = [tree_flatten(row) for row in rows]
        return tree_unflatten(
            [torch.stack(each) for each in zip(*(leaves for leaves, _ in flat), strict=True)], flat[0][1]
        )


def _inner(tracer: Tracer, function: Callable[..., Any], *operands: Any, **named: Any) -> Any:
    with tracer:
        return function(*operands, **named)


def _invoke_subgraph(tracer: Tracer, function: Callable[..., Any], identifier: Any, *operands: Any) -> Any:
    return _inner(tracer, function, *operands)


def _flex_attention(tracer: Tracer, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    """Count attention over the full matrix of scores, whatever the block mask leaves out, as for any other mask.

    The element-wise functions that modify scores are not counted.
    """
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    scores = query.new_empty(query.shape[:-1], dtype=torch.float32)
    tensors = [query, key, value]
    name = "scaled_dot_product_attention"
    call = Call(name, (), tuple(Shape(item.shape) for item in tensors), (Shape(out.shape),))
    if tracer.tensors == "real":
        from torch._higher_order_ops.flex_attention import math_attention

        with tracer.paused():
            found = math_attention(query, key, value, *rest, **named)
        out, others = found[0], list(found[1:])
    else:
        others = [scores, scores.clone()] if _returns_maxima() else [scores]
    tracer.record(name, apply_formula(formula(name), call, tensors, [out]), tensors, [out, *flatten(others)])
    return (out, *others)


def _returns_maxima() -> bool:
    """Return whether flex_attention returns the scores' maxima as a third result, as in newer versions of torch."""
    import inspect

    from torch._higher_order_ops.flex_attention import math_attention

    return "max_scores" in inspect.getsource(math_attention)


_RULES: Mapping[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "associative_scan": _associative_scan,
    "map_impl": _map,
    "flex_attention": _flex_attention,
    "invoke_subgraph": _invoke_subgraph,
    "wrap": _inner,
    "checkpoint": _inner,
    "strict_mode": lambda tracer, function, operands: _inner(tracer, function, *operands),
}
"""The functions that execute an operator, by its name."""
