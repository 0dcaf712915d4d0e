"""Make example inputs of a model as tensors, and turn inputs by name into positional ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import InvalidValue
from effbench.core.inputs import COMPLEX, FLOATS, Input, whole

if TYPE_CHECKING:
    import torch
    from torch import nn


def make(
    inputs: Sequence[Input], batch: int, dtype: str, device: str = "cpu", seed: int | torch.Generator = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the tensors of one call, with seeded random values.

    Floats and complex numbers are normal, integers 0 or 1, Booleans either.

    Parameters
    ----------
    inputs
        Descriptions of the tensors.
    batch
        First side of every tensor.
    dtype
        Dtype of inputs that have none of their own.
    device
        Device of the tensors. On ``"meta"`` they have no values.
    seed
        A seed, or a generator to draw from.

    Returns
    -------
    tuple of (tuple, dict)
        Tensors by position, and tensors by name.

    Raises
    ------
    InvalidValue
        For a batch that is not an integer above zero.
    """
    import torch

    batch = whole(batch, "batch")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed

    # Independent of torch's default device and dtype.
    source: dict[str, Any] = {"generator": generator, "device": "cpu"}

    def tensor(item: Input) -> torch.Tensor:
        shape, kind = (batch, *item.shape), item.dtype or dtype
        if device == "meta":
            return torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        if kind in COMPLEX:
            return torch.randn(shape, dtype=torch.complex64, **source).to(device, getattr(torch, kind))
        if kind in FLOATS:
            return torch.randn(shape, dtype=torch.float32, **source).to(device, getattr(torch, kind))
        return torch.randint(0, 2, shape, **source).to(device, getattr(torch, kind))

    made = [(item.name, tensor(item)) for item in inputs]
    return tuple(value for name, value in made if not name), {name: value for name, value in made if name}


def positional(network: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all inputs by position, since tracers and runtimes take no others.

    Raises InvalidValue for a name that is not a parameter of forward, or is keyword-only.
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
