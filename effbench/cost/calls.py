"""One operator call as a formula sees it, and what a formula says of an operator. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Kind = Literal["conv", "matmul", "attention", "recurrent", "norm", "pool", "reduce", "elementwise", "data", "unknown"]

PRODUCTS = ("conv", "matmul", "attention", "recurrent")
"""The kinds whose multiply-adds and output elements are counted."""


class Shape(tuple[int, ...]):
    """The shape of a tensor, told apart from a plain list of integers among an operator's arguments."""

    @property
    def numel(self) -> int:
        return prod(self)


class Mask(Shape):
    """The shape of a Boolean tensor. `selected` is how many elements are true, None where there are no values."""

    selected: int | None = None

    @property
    def true(self) -> int:
        """Elements it selects; without values all that it covers, which is the most it can select."""
        return self.numel if self.selected is None else self.selected


class Sparse(Shape):
    """The shape of a sparse tensor. `stored` is how many elements it holds, None where there are no values."""

    stored: int | None = None


@dataclass(frozen=True)
class Call:
    """One operator call as a formula sees it: tensors are replaced by their `Shape`.

    `named` are the arguments by the names of the operator's schema, defaults filled in. What is only written (``out=``)
    is not among them. `inputs` are all tensors in the order of the arguments, `owners` the argument each belongs to.
    A call without names is read by position.
    """

    op: str
    args: tuple[Any, ...]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)
    owners: tuple[str, ...] = ()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument `name`; `position` is its place in a call without names."""
        if self.named:
            return self.named.get(name, default)
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def operand(self, position: int, *names: str) -> Shape:
        """The first tensor among `names` that was given; `position` counts the tensors of a call without names."""
        for name in names:
            value = self.named.get(name)
            if isinstance(value, Shape):
                return value
        return self.inputs[position]

    def has(self, name: str) -> bool:
        """Whether the optional tensor `name` was given."""
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

    `reads`: "all" operands; "gathered" reads of the first argument only `touched` elements, or as many as come out;
    "overwritten" does not read the first; "scattered" writes of the first only `touched` elements, and reads them where
    it `accumulates`; "like" and "nothing" look at shapes alone, the result of "like" growing with its operand.
    `primary` is how many outputs are results, 0 for all (indices of a max pool and saved statistics are by-products).
    `madds` may return None: the call is then not understood. `activations` are the output elements of all products of
    an operator that holds several, `between` what it writes and reads again inside.
    `fusion` is what a compiler can do: "start" a loop that later operators join, or join one as "pointwise", "norm" (a
    scale and shift), "row" (needs a whole row), "reduce" (runs over its input), "data" (a copy, inlined as an index) or
    "concat" (takes in what it joins, but is itself written out).
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
