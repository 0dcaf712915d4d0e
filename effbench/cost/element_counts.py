"""Count the distinct memory elements that a tensor or an indexed write covers, from shapes and strides. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import gcd, prod

from effbench.cost.formula_types import Call, Mask, Shape

_MAX_SPAN = 1 << 24
"""Up to this span, memory places are counted one by one in a bitmap: 2 MiB, some milliseconds."""


@lru_cache(maxsize=4096)
def distinct_elements(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the number of distinct memory elements of a tensor with this shape and stride.

    An expanded dimension counts once, and so does the overlap of windows. The result is exact, unless dimensions
    overlap over more than 2^24 places in a pattern with holes. Then it is an upper bound: the smaller of the number of
    elements and of the places between the first and the last.
    """
    if 0 in shape:
        return 0
    sides = sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1 and step)
    # A dimension whose step exceeds the span of all inner dimensions does not overlap with them.
    spans = [0, *accumulate((size - 1) * step for step, size in sides)]
    steps = list(accumulate((step for step, _ in reversed(sides)), gcd))[::-1]
    total, start = 1, 0
    for end in range(1, len(sides) + 1):
        if end == len(sides) or steps[end] > spans[end]:
            total *= _distinct_sums(sides[start:end])
            start = end
    return total


def _distinct_sums(sides: Sequence[tuple[int, int]]) -> int:
    """Count the distinct sums of one multiple of each step, where each factor is below its size."""
    if len(sides) == 1:
        return sides[0][1]
    unit = gcd(*(step for step, _ in sides))
    places = 1
    for step, size in sides:
        if step // unit > places:
            break
        places += (size - 1) * (step // unit)
    else:
        return places  # no step exceeds the span before it, so there are no holes
    places = 1 + sum((size - 1) * (step // unit) for step, size in sides)
    if places > _MAX_SPAN:
        return min(places, prod(size for _, size in sides))
    reached = 1
    for step, size in sides:
        done = 1
        while done < size:  # double the pattern until there are `size` copies, one step apart
            more = min(done, size - done)
            reached |= reached << (more * (step // unit))
            done += more
    return reached.bit_count()


# --- indexed writes ---------------------------------------------------------------------------------


def indexed_elements(call: Call) -> int:
    """Count the elements of ``self[indices]``: index tensors broadcast to one shape, other dimensions are whole.

    A Boolean mask replaces as many dimensions as it has, and acts as the list of places where it is true.
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
    # A mask without values selects as many elements as the other indices, if there are any.
    found = broadcast_elements(lists)
    return whole * prod(sides) * (found if found != 1 else covered)


def broadcast_elements(shapes: Sequence[Sequence[int]]) -> int:
    """Count the elements of the shape that `shapes` broadcast to."""
    longest = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    return prod(0 if 0 in sides else max(sides) for sides in zip(*padded, strict=True))


def elements_along_index(call: Call) -> int:
    """Count the elements that index_copy, index_add, index_fill and index_reduce write: slices along one dimension."""
    whole, index = call.operand(0, "self"), call.operand(1, "index")
    side = whole[call.argument(1, "dim", 0)] if whole else 1
    return whole.numel // max(1, side) * index.numel


def elements_at_index(call: Call) -> int:
    """Count the elements that scatter and put write: one for each index."""
    return call.operand(1, "index").numel


def elements_under_mask(call: Call) -> int:
    """Count the elements that a masked write covers."""
    whole, mask = call.operand(0, "self"), call.operand(1, "mask")
    true = mask.true if isinstance(mask, Mask) else mask.numel
    return true * (whole.numel // max(1, mask.numel))


def embedding_bag_elements(call: Call) -> int:
    """Count the elements of the rows that an embedding bag looks up."""
    return call.operand(1, "indices").numel * call.operand(0, "weight", "self")[-1]


def accumulates(call: Call) -> bool:
    """Return whether an indexed write adds to the existing values, and so reads them."""
    base = call.op.strip("_").removesuffix("_impl")
    if base in ("scatter_reduce", "index_reduce"):
        return bool(call.argument(5, "include_self", True))
    return base in ("index_add", "scatter_add") or bool(
        call.argument(3, "accumulate", False) or call.argument(4, "reduce", None)
    )
