"""What a network is fed: one input or several, by position or by name, from their description to tensors.

Floats are normal values, whole numbers 0 or 1, truth values either: legal as token numbers, masks and classes alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from effbench.errors import InvalidValue

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOATS = ("float32", "float64", "float16", "bfloat16")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Input:
    """One tensor that a network takes: its shape without the batch, by position, or by `name` where it has one.

    `dtype` "" is that of the case; tokens and masks say their own, such as "int64" or "bool".
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""

    def __str__(self) -> str:
        """As the command line writes it: ``ids=128:int64``."""
        sides = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.name}={sides}".lstrip("=") + (f":{self.dtype}" if self.dtype else "")


def described(given: Any) -> tuple[Input, ...]:
    """One shape, several shapes and `Input`s, or a mapping of either by name, as inputs.

    A tensor stands for its shape without the first side, the batch, and its dtype. Raises InvalidValue.
    """
    if isinstance(given, Mapping):
        items = [replace(_described(item), name=name) for name, item in given.items()]
    elif isinstance(given, Input) or hasattr(given, "dtype") or all(isinstance(side, int) for side in given):
        items = [_described(given)]
    else:
        items = [_described(item) for item in given]
    names = [item.name for item in items if item.name]
    for name in names:
        if not name.isidentifier() or names.count(name) > 1:
            raise InvalidValue(f"input '{name}' must be named once, as the network's forward names it")
    return tuple(items)


def plain_shape(inputs: Sequence[Input]) -> tuple[Any, ...]:
    """The one shape, or the tuple of several."""
    shapes = tuple(item.shape for item in inputs)
    return shapes[0] if len(shapes) == 1 else shapes


def beyond_shape(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs where they say more than the shape of one tensor of floats, else ()."""
    return () if len(inputs) == 1 and not (inputs[0].name or inputs[0].dtype) else tuple(inputs)


def make(
    inputs: Sequence[Input], batch: int, dtype: str, device: str = "cpu", seed: int | torch.Generator = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors for one call: those by position, those by name. On meta they have no values."""
    import torch

    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed

    def tensor(item: Input) -> torch.Tensor:
        shape, kind = (batch, *item.shape), item.dtype or dtype
        if device == "meta":
            return torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        if kind in FLOATS:
            return torch.randn(shape, generator=generator).to(device, getattr(torch, kind))
        return torch.randint(0, 2, shape, generator=generator).to(device, getattr(torch, kind))

    made = [(item.name, tensor(item)) for item in inputs]
    return tuple(value for name, value in made if not name), {name: value for name, value in made if name}


def positional(network: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same call by position alone, which is all that tracers and runtimes know.

    Raises InvalidValue for a name that forward does not have, or takes by name only.
    """
    signature = inspect.signature(network.forward)
    try:
        bound = signature.bind(*args, **named)
    except TypeError as error:
        raise InvalidValue(
            f"{type(network).__name__}: {error}; its forward takes {', '.join(signature.parameters)}"
        ) from None
    if bound.kwargs.keys() & {name for name, kind in signature.parameters.items() if kind.kind is kind.KEYWORD_ONLY}:
        raise InvalidValue(f"{type(network).__name__} takes an input by name only; let its forward take it by position")
    last = max((place for place, name in enumerate(signature.parameters) if name in bound.arguments), default=-1)
    bound.apply_defaults()
    return bound.args[: max(last + 1, len(args))]


def _described(item: Any) -> Input:
    if isinstance(item, Input):
        found = item
    elif hasattr(item, "dtype") and hasattr(item, "shape"):
        found = Input(tuple(item.shape[1:]), dtype=str(item.dtype).removeprefix("torch."))
    elif isinstance(item, Sequence) and not isinstance(item, str):
        found = Input(tuple(item))
    else:
        raise InvalidValue(f"input (={item!r}) must be a shape without the batch, an Input or a tensor")
    if not all(isinstance(side, int) and side > 0 for side in found.shape):
        raise InvalidValue(f"input shape (={found.shape}) must consist of positive integers, such as (3, 224, 224)")
    if found.dtype and found.dtype not in DTYPES:
        raise InvalidValue(f"input dtype (='{found.dtype}') must be one of {', '.join(DTYPES)}")
    return found
