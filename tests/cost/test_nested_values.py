"""Walking over every tensor in the inputs and outputs of a model."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from effbench.cost import profile
from effbench.cost.nested_values import flatten, to_meta

A, B = torch.ones(2), torch.ones(3)


@dataclass(slots=True)
class Slotted:
    first: Any
    second: Any = None


class Parent:
    __slots__ = ("__hidden", "first")

    def __init__(self) -> None:
        self.first, self.__hidden = A, B


class Child(Parent):
    __slots__ = ("unset",)


class Pair(NamedTuple):
    first: Any
    second: Any


class Output(OrderedDict[str, Any]):
    """As Hugging Face's: what it holds it also has as attributes, and some attributes beside."""

    def __init__(self) -> None:
        super().__init__(logits=A)
        self.logits, self.extra = A, B


def ring() -> list[Any]:
    made: list[Any] = [A]
    made += [made, SimpleNamespace(back=made, tensor=B)]
    return made


def deep() -> Any:
    made: Any = [A, B]
    for _ in range(5000):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Slotted(A, [B]), [A, B]),
        (Child(), [B, A]),
        (Pair(A, Pair(B, None)), [A, B]),
        (Output(), [A, B]),
        (SimpleNamespace(a=A, b={"c": (B,)}), [A, B]),
        (deque([A, B]), [A, B]),
        ([A, A], [A, A]),
        (ring(), [A, B]),
        (deep(), [A, B]),
        ({"a": None, "b": 3, "c": "text", "d": A.dtype}, []),
        (nn.Linear(2, 2), []),
        ((item for item in [A]), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_tensor_is_found(value: Any, expected: list[Any]) -> None:
    assert [id(item) for item in flatten(value)] == [id(item) for item in expected]


def test_sets_have_no_order() -> None:
    assert {id(item) for item in flatten({A, B})} == {id(A), id(B)}


def test_a_generator_is_left_to_its_owner() -> None:
    made = (item for item in [A])
    assert flatten([made, B]) == [B] and next(made) is A


def test_moved_keeps_types() -> None:
    there = to_meta(Pair(A, [B, (A,)]))
    assert type(there) is Pair and type(there.second) is list
    assert [item.device.type for item in flatten(there)] == ["meta"] * 3


def test_networks_that_return_them_are_counted() -> None:
    class Network(nn.Module):
        def __init__(self, make: Any) -> None:
            super().__init__()
            self.linear, self.make = nn.Linear(8, 8), make

        def forward(self, x: Any) -> Any:
            return self.make(self.linear(x))

    for make in (Slotted, lambda y: Pair(y, y), lambda y: SimpleNamespace(y=y), lambda y: {"y": [y]}):
        assert profile(Network(make), (8,)).cost.madds == 64
