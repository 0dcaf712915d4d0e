"""How many elements of memory a tensor or an index reaches, as pure functions of shapes and strides. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import gcd, prod

from effbench.cost.calls import Call, Mask, Shape

_MAX_SPAN = 1 << 24
"""Spans up to this many places are counted place by place: 2 MiB of bits, some milliseconds."""


@lru_cache(maxsize=4096)
def distinct_elements(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Different elements of memory that a tensor of this shape and stride reaches.

    An expanded dimension counts once, overlapping windows once where they overlap. Exact, unless dimensions overlap
    over more than 2^24 places in a pattern with holes: then the smaller of the number of elements and of the places
    between the first and the last, which is never below the true number.
    """
    if 0 in shape:
        return 0
    sides = sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1 and step)
    # Dimensions whose steps are all multiples of more than everything inside spans are independent of what is inside.
    spans = [0, *accumulate((size - 1) * step for step, size in sides)]
    steps = list(accumulate((step for step, _ in reversed(sides)), gcd))[::-1]
    total, start = 1, 0
    for end in range(1, len(sides) + 1):
        if end == len(sides) or steps[end] > spans[end]:
            total *= _reached(sides[start:end])
            start = end
    return total


def _reached(sides: Sequence[tuple[int, int]]) -> int:
    """Different sums of one multiple of each step, each below its size."""
    if len(sides) == 1:
        return sides[0][1]
    unit = gcd(*(step for step, _ in sides))
    places = 1
    for step, size in sides:
        if step // unit > places:
            break
        places += (size - 1) * (step // unit)
    else:
        return places  # every step is at most what lies before it: no holes
    places = 1 + sum((size - 1) * (step // unit) for step, size in sides)
    if places > _MAX_SPAN:
        return min(places, prod(size for _, size in sides))
    reached = 1
    for step, size in sides:
        done = 1
        while done < size:  # double what is there until `size` copies stand a step apart
            more = min(done, size - done)
            reached |= reached << (more * (step // unit))
            done += more
    return reached.bit_count()


# --- indexed writes ---------------------------------------------------------------------------------


def indexed(call: Call) -> int:
    """Elements of ``self[indices]``: index tensors broadcast to one shape, other dimensions whole.

    A Boolean mask stands for as many dimensions as it has, and for a list of the places where it is true.
    """
    sides = list(call.operand(0, "self"))
    whole, lists, covered = 1, [], 1
    for index in call.argument(1, "indices", ()):
        if index is None:
            whole *= sides.pop(0)
            continue
        del sides[: len(index) if isinstance(index, Mask) else 1]
        if not isinstance(index, Mask):
            lists.append(index)
        elif index.selected is not None:
            lists.append(Shape((index.selected,)))
        else:
            covered = max(covered, index.numel)
    # A mask without values selects as many as the indices beside it, if there are any.
    found = broadcast(lists)
    return whole * prod(sides) * (found if found != 1 else covered)


def broadcast(shapes: Sequence[Sequence[int]]) -> int:
    """Elements of the shape that `shapes` broadcast to."""
    longest = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    return prod(0 if 0 in sides else max(sides) for sides in zip(*padded, strict=True))


def along_index(call: Call) -> int:
    """Elements that index_copy, index_add, index_fill and index_reduce reach: whole slices along one dimension."""
    whole, index = call.operand(0, "self"), call.operand(1, "index")
    side = whole[call.argument(1, "dim", 0)] if whole else 1
    return whole.numel // max(1, side) * index.numel


def at_index(call: Call) -> int:
    """Elements that scatter and put reach: one for each index."""
    return call.operand(1, "index").numel


def under_mask(call: Call) -> int:
    """Elements that a masked write reaches."""
    whole, mask = call.operand(0, "self"), call.operand(1, "mask")
    true = mask.true if isinstance(mask, Mask) else mask.numel
    return true * (whole.numel // max(1, mask.numel))


def looked_up(call: Call) -> int:
    """Elements of the rows that a bag of embeddings looks up."""
    return call.operand(1, "indices").numel * call.operand(0, "weight", "self")[-1]


def accumulates(call: Call) -> bool:
    """Whether an indexed write adds to what is there, and so reads it."""
    base = call.op.strip("_").removesuffix("_impl")
    if base in ("scatter_reduce", "index_reduce"):
        return bool(call.argument(5, "include_self", True))
    return base in ("index_add", "scatter_add") or bool(
        call.argument(3, "accumulate", False) or call.argument(4, "reduce", None)
    )
