"""Distinct elements that a tensor covers: equal to the set of its offsets, from shapes and strides alone."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from effbench.core.inputs import Input
from effbench.cost import count, profile
from effbench.cost.element_counts import distinct_elements
from effbench.cost.trace import forget_shapes

sides = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=4)


def offsets(shape: tuple[int, ...], stride: tuple[int, ...]) -> set[int]:
    places = product(*(range(size) for size in shape))
    return {sum(place * step for place, step in zip(at, stride, strict=True)) for at in places}


@settings(deadline=None, max_examples=400)
@given(sides=sides)
@example(sides=[(2, 3), (3, 2)])
@example(sides=[(3, 6), (2, 10), (2, 15)])
@example(sides=[(4, 0), (5, 1)])
def test_distinct_elements_are_the_set_of_offsets(sides: list[tuple[int, int]]) -> None:
    shape, stride = tuple(size for size, _ in sides), tuple(step for _, step in sides)
    assert distinct_elements(shape, stride) == len(offsets(shape, stride))


@settings(deadline=None, max_examples=50)
@given(sides=sides, scale=st.sampled_from([1 << 22, 1 << 30]))
def test_over_long_spans_the_count_is_never_below_the_truth(sides: list[tuple[int, int]], scale: int) -> None:
    shape = (*(size for size, _ in sides), 3, 2, 2)
    stride = (*(step for _, step in sides), 2 * scale, 3 * scale + 1, scale + 1)
    assert len(offsets(shape, stride)) <= distinct_elements(shape, stride) <= prod(shape)


def test_common_layouts() -> None:
    x = torch.empty(2, 3, 8, 8, device="meta")
    for view, expected in (
        (x, 384),
        (x.permute(0, 2, 3, 1), 384),
        (x.contiguous(memory_format=torch.channels_last), 384),
        (x[:, ::2, 1:7:2], 2 * 2 * 3 * 8),
        (x[:, :1].expand(2, 3, 8, 8), 128),
        (x.unfold(2, 3, 1).unfold(3, 3, 1), 384),  # every pixel lies in some window
        (x.unfold(3, 2, 3), 2 * 3 * 8 * 6),  # gaps of one between windows of two: 3 windows in 8
        (x[0, 0, 0, 0].expand(7), 1),
        (x[:0], 0),
    ):
        assert distinct_elements(tuple(view.shape), view.stride()) == expected


class Windows(nn.Module):
    """Overlapping windows of a sequence: 40 elements seen 3 at a time."""

    def forward(self, x: Any) -> Any:
        return x.as_strided((38, 3), (1, 1)).sum(1)


class FromLonger(nn.Module):
    """The same windows, of the same shape and stride, over a longer storage."""

    def forward(self, x: Any) -> Any:
        return torch.cat([x, x, x], 1).as_strided((38, 3), (1, 1)).sum(1)


class Rows(nn.Module):
    """A matrix of the shape of the windows, without overlap."""

    def forward(self, x: Any) -> Any:
        return x.view(38, 3).sum(1)


def test_a_count_does_not_depend_on_what_was_counted_before() -> None:
    """Counted in this process: what a child remembers ends with it."""
    forget_shapes()
    alone = count(Windows(), (40,)).cost.memory_access
    forget_shapes()
    count(FromLonger(), (40,))
    after = count(Windows(), (40,)).cost.memory_access
    assert alone == after == 40 + 38
    forget_shapes()
    assert count(Rows(), (114,)).cost.memory_access == 114 + 38
    assert count(Windows(), (40,)).cost.memory_access == 40 + 38


class Halved(nn.Module):
    """Whole numbers divided: the result is of torch's default dtype, which no argument tells."""

    def forward(self, x: Any) -> Any:
        return x / 2


def test_what_is_remembered_of_an_operator_is_of_one_default_dtype() -> None:
    forget_shapes()
    tokens = Input((10,), dtype="int64")
    assert count(Halved(), [tokens]).cost.memory_access_bytes == 10 * (8 + 4)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert count(Halved(), [tokens]).cost.memory_access_bytes == 10 * (8 + 8)
    finally:
        torch.set_default_dtype(before)
    assert count(Halved(), [tokens]).cost.memory_access_bytes == 10 * (8 + 4)


def clone_and(write: Any, *rest: Any) -> nn.Module:
    class Writes(nn.Module):
        def forward(self, x: Any, *rest: Any) -> Any:
            y = x.clone()
            write(y, *rest)
            return y

    return Writes()


FIVE = torch.arange(5)
X = (10, 8)
NONE = torch.zeros(3, 2, dtype=torch.long)
WHOLE = torch.randn(X)


def put(y: Any, key: Any, value: Any) -> None:
    y[key] = value


# name, the write, its tensors, elements it writes, elements it reads (indices, values, what it adds to)
WRITES: list[tuple[str, Any, tuple[Any, ...], int, int]] = [
    ("a number at rows", lambda y, i: put(y, i, 0.0), (FIVE,), 40, 5),
    ("a number at columns", lambda y, i: put(y, (slice(None), i), 0.0), (FIVE,), 50, 5),
    ("a slice and an index", lambda y, i: put(y, (slice(2, 6), i), 0.0), (FIVE,), 20, 5),
    ("rows of a tensor", lambda y, i, v: put(y, i, v), (FIVE, torch.randn(5, 8)), 40, 5 + 40),
    ("one row for all", lambda y, i, v: put(y, i, v), (FIVE, torch.randn(8)), 40, 5 + 8),
    ("two indices broadcast", lambda y, i, j: put(y, (i, j), 0.0), (FIVE[:, None], torch.arange(3)), 15, 5 + 3),
    ("two indices in step", lambda y, i, j: put(y, (i, j), 0.0), (FIVE, FIVE), 5, 10),
    ("added", lambda y, i, v: y.index_put_((i,), v, accumulate=True), (FIVE, torch.randn(5, 8)), 40, 5 + 40 + 40),
    ("scatter", lambda y, i, v: y.scatter_(1, i, v), (NONE, WHOLE), 6, 6 + 6),
    ("scatter a number", lambda y, i: y.scatter_(1, i, 1.0), (NONE,), 6, 6),
    ("scatter and multiply", lambda y, i, v: y.scatter_(1, i, v, reduce="multiply"), (NONE, WHOLE), 6, 18),
    ("scatter_add", lambda y, i, v: y.scatter_add_(1, i, v), (NONE, WHOLE), 6, 18),
    ("scatter_reduce", lambda y, i, v: y.scatter_reduce_(1, i, v, "amax"), (NONE, WHOLE), 6, 18),
    (
        "scatter_reduce, not what is there",
        lambda y, i, v: y.scatter_reduce_(1, i, v, "amax", include_self=False),
        (NONE, WHOLE),
        6,
        12,
    ),
    ("index_add", lambda y, i, v: y.index_add_(0, i, v), (FIVE, torch.randn(5, 8)), 40, 5 + 80),
    ("index_add by name", lambda y, i, v: y.index_add_(dim=0, index=i, source=v), (FIVE, torch.randn(5, 8)), 40, 85),
    ("index_copy", lambda y, i, v: y.index_copy_(0, i, v), (FIVE, torch.randn(5, 8)), 40, 5 + 40),
    ("index_fill", lambda y, i: y.index_fill_(1, i, 0.0), (FIVE,), 50, 5),
    ("index_reduce", lambda y, i, v: y.index_reduce_(0, i, v, "amax"), (FIVE, torch.randn(5, 8)), 40, 5 + 80),
    (
        "index_reduce, not what is there",
        lambda y, i, v: y.index_reduce_(0, i, v, "amax", include_self=False),
        (FIVE, torch.randn(5, 8)),
        40,
        5 + 40,
    ),
    ("put", lambda y, i, v: y.put_(i, v), (FIVE, torch.randn(5)), 5, 5 + 5),
]


@pytest.mark.parametrize("device", ["meta", "real"])
@pytest.mark.parametrize("case", WRITES, ids=lambda case: case[0])
def test_indexed_writes_touch_what_the_index_reaches(case: Any, device: Any) -> None:
    _, write, rest, written, read = case
    cost = profile(clone_and(write), (1,), inputs=(torch.randn(X), *rest), device=device).cost
    assert cost.memory_access == 2 * 80 + written + read
    assert cost.status == "complete"


MASKS: list[tuple[str, Any, tuple[Any, ...], int, int]] = [
    ("rows", lambda y, m: put(y, m, 0.0), (torch.arange(10) < 3,), 24, 10),
    ("elements", lambda y, m: put(y, m, 0.0), (torch.arange(80).view(X) < 20,), 20, 80),
    ("columns", lambda y, m: put(y, (slice(None), m), 0.0), (torch.arange(8) < 2,), 20, 8),
    ("a mask beside an index", lambda y, m, i: put(y, (m, i), 0.0), (torch.arange(10) < 5, FIVE), 5, 15),
    ("masked_scatter", lambda y, m, v: y.masked_scatter_(m, v), (torch.arange(80).view(X) < 20, WHOLE), 20, 100),
    ("whole rows", lambda y, m, v: y.masked_scatter_(m, v), (torch.arange(10)[:, None] < 3, WHOLE), 24, 34),
]


@pytest.mark.parametrize("case", MASKS, ids=lambda case: case[0])
def test_masked_writes_touch_what_is_true_and_without_values_at_most_all(case: Any) -> None:
    _, write, rest, written, read = case
    inputs = (torch.randn(X), *rest)
    real = profile(clone_and(write), (1,), inputs=inputs, device="real").cost
    assert real.memory_access == 2 * 80 + written + read
    assert profile(clone_and(write), (1,), inputs=inputs, device="meta").cost.memory_access >= real.memory_access


def test_an_assigned_number_is_no_tensor() -> None:
    def forward(y: Any) -> None:
        y[:, torch.arange(50, device=y.device)] = 0.0

    assert profile(clone_and(forward), (100, 8)).cost.memory_access == 1600 + 50 + 50 + 400
