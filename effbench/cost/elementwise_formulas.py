"""Element-wise operations of every operator that is not a matrix product, from shapes. No torch."""

from __future__ import annotations

from math import log2, prod

from effbench.cost.element_counts import accumulates
from effbench.cost.formula_types import Call, Count, Shape


def per_output(each: int) -> Count:
    """Count `each` operations for every output element."""
    return lambda call: each * call.out


def per_input(each: int) -> Count:
    """Count `each` operations for every element of the first input."""
    return lambda call: each * call.inputs[0].numel


def per_element(of: str, each: int = 1) -> Count:
    """Count `each` operations for every element of the argument `of`, or of the first tensor."""
    return lambda call: each * call.operand(0, of).numel


def times(each: int, count: Count) -> Count:
    """Multiply another count by `each`."""
    return lambda call: each * count(call)


def per_list(call: Call) -> int:
    """Count one operation for every element of every output list, which has a tensor for each of the first list."""
    return sum(shape.numel for shape in call.outputs)


def per_input_list(call: Call) -> int:
    """Count one operation for every element of every tensor of the first list."""
    return sum(shape.numel for shape in call.argument(0, "self", ()) if isinstance(shape, Shape))


def batch_norm(call: Call) -> int:
    """Count 2 operations per element where the statistics are given, 5 where they are computed."""
    return call.out * (5 if call.argument(5, "training", False) else 2)


def window(call: Call) -> int:
    """Count the window elements of an N-d pooling operator over all outputs. One size may stand for all sides."""
    kernel = call.argument(1, "kernel_size")
    sides: tuple[int, ...] = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    dimensions = int(call.op.split("pool")[1][0])
    # In a backward operator, the incoming gradient has the shape of the outputs.
    outputs = call.operand(0, "grad_output").numel if call.op.endswith("backward") else call.out
    return outputs * (sides[0] ** dimensions if len(sides) == 1 else prod(sides))


def fourier(call: Call) -> int:
    """Count 5 n log2(n) for n complex elements along all of `dim` (Cooley and Tukey 1965); half if one side is real."""
    whole = max((call.operand(0, "self"), *call.outputs[:1]), key=lambda shape: shape.numel)
    side = prod(whole[place] for place in call.argument(1, "dim", ()))
    return round(5 * whole.numel * log2(max(1, side)) * (1 if call.op == "_fft_c2c" else 0.5))


def distances(call: Call) -> int:
    """Count 3 operations for each pair of points and coordinate."""
    return 3 * call.out * call.operand(0, "x1", "self")[-1]


def per_added_element(count: Count) -> Count:
    """Count 1 operation for each element that an indexed write adds to the existing values."""
    return lambda call: count(call) if accumulates(call) else 0
