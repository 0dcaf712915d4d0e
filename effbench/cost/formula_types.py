"""Data types of the formula table: one operator call with shapes instead of tensors, and one formula. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Kind = Literal["conv", "matmul", "attention", "recurrent", "norm", "pool", "reduce", "elementwise", "data", "unknown"]

PRODUCTS = ("conv", "matmul", "attention", "recurrent")
"""Kinds of operators whose multiply-adds and output elements are counted."""


class Shape(tuple[int, ...]):
    """The shape of a tensor. The type distinguishes it from a plain list of integers among the arguments."""

    @property
    def numel(self) -> int:
        return prod(self)


class Mask(Shape):
    """The shape of a Boolean tensor. `selected` is the number of true elements, None where there are no values."""

    selected: int | None = None

    @property
    def true(self) -> int:
        """The number of selected elements; without values the upper bound, which is all elements."""
        return self.numel if self.selected is None else self.selected


class Sparse(Shape):
    """The shape of a sparse tensor. `stored` is the number of stored elements, None where there are no values."""

    stored: int | None = None


@dataclass(frozen=True)
class Call:
    """One operator call, with tensors replaced by their `Shape`.

    `named` are the arguments by the names of the operator's schema, defaults filled in, without arguments that are only
    written (``out=``). `inputs` are all tensors in the order of the arguments, and `owners` the argument of each. A
    call without names is read by position.
    """

    op: str
    args: tuple[Any, ...]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)
    owners: tuple[str, ...] = ()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return the argument `name`; `position` is its index in a call without names."""
        if self.named:
            return self.named.get(name, default)
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def operand(self, position: int, *names: str) -> Shape:
        """Return the first tensor among `names` that was given; `position` is its index in a call without names."""
        for name in names:
            value = self.named.get(name)
            if isinstance(value, Shape):
                return value
        return self.inputs[position]

    def has(self, name: str) -> bool:
        """Return whether the optional tensor `name` was given."""
        return isinstance(self.named.get(name), Shape)

    @property
    def out(self) -> int:
        return self.outputs[0].numel if self.outputs else 0


Count = Callable[[Call], int]
Reads = Literal["all", "gathered", "overwritten", "scattered", "like", "nothing"]
Fusion = Literal["none", "start", "pointwise", "norm", "row", "reduce", "data", "concat"]


@dataclass(frozen=True)
class Formula:
    """How one operator is counted.

    `reads` says what it reads: "all" operands; "gathered", only `touched` elements of the first argument, or as many as
    the output has; "overwritten", all but the first; "scattered", which writes only `touched` elements of the first,
    and reads them if it `accumulates`; "like" and "nothing", which read shapes only (the result of "like" has the size
    of its operand).

    `primary` is the number of outputs that are results, 0 for all (indices of a max pool and saved statistics are
    by-products). `madds` may return None, which means that the formula does not cover this call. `activations` are the
    output elements of all products inside an operator that has several, and `between` the elements that it writes and
    reads again internally.

    `fusion` is how a compiler can fuse it: "start" a loop that later operators join, or join one as "pointwise", "norm"
    (a scale and shift), "row" (needs a whole row), "reduce" (loops over its input), "data" (a copy, inlined as an
    index) or "concat" (fuses its operands, but is itself written out).
    """

    kind: Kind
    madds: Callable[[Call], int | None] | None = None
    elementwise: Count | None = None
    reads: Reads = "all"
    primary: int = 0
    fusion: Fusion = "none"
    touched: Count | None = None
    accumulates: Callable[[Call], bool] | None = None
    activations: Count | None = None
    between: Count | None = None
