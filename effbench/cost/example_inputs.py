"""Example inputs of a model as tensors: seeded ones of given shapes, or those that the caller passed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import EffbenchError, InvalidValue, first_line
from effbench.core.inputs import COMPLEX, FLOATS, GivenInputs, Input, missing_values_reason, whole_number

if TYPE_CHECKING:
    import torch
    from torch import nn


def make(
    inputs: Sequence[Input],
    batch: int,
    dtype: str,
    device: str = "cpu",
    seed: int | torch.Generator = 0,
    *,
    tensors: Sequence[Any] = (),
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the tensors of one call, with seeded random values.

    Floats and complex numbers are normal, integers 0 or 1, Booleans either. An input that the caller passed as a
    tensor is a copy of that: of its place in `tensors` (`values_of`), or of the file that the input names.

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
    EffbenchError
        If the tensors of a file are gone or have changed.
    """
    import torch

    batch = whole_number(batch, "batch")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed

    # Independent of torch's default device and dtype.
    random: dict[str, Any] = {"generator": generator, "device": "cpu"}

    def tensor(item: Input, passed: Any) -> torch.Tensor:
        shape, kind = (batch, *item.shape), item.dtype or dtype
        if device == "meta":
            return torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        if passed is not None or item.sha256:
            source: torch.Tensor = _load_values(item) if passed is None else passed
            if len(source) != batch:  # a count asks what a larger batch costs
                source = source.repeat(-(-batch // len(source)), *[1] * (source.dim() - 1))[:batch]
            return source.to(device, getattr(torch, kind), copy=True)
        if kind in COMPLEX:
            return torch.randn(shape, dtype=torch.complex64, **random).to(device, getattr(torch, kind))
        if kind in FLOATS:
            return torch.randn(shape, dtype=torch.float32, **random).to(device, getattr(torch, kind))
        return torch.randint(0, 2, shape, **random).to(device, getattr(torch, kind))

    passed = tensors or [None] * len(inputs)
    made = [(item.name, tensor(item, one)) for item, one in zip(inputs, passed, strict=True)]
    return tuple(value for name, value in made if not name), {name: value for name, value in made if name}


def values_of(given: GivenInputs) -> tuple[Any, ...]:
    """The tensors that the caller passed, on the CPU, contiguous, without gradients or a subclass; None where an input
    has none, () where no input has. Raises InvalidValue.
    """
    return tuple(None if item is None else _values_of_one(item) for item in given.tensors)


def _values_of_one(item: Any) -> torch.Tensor:
    import torch

    try:
        tensor = item if isinstance(item, torch.Tensor) else torch.from_numpy(_array(item))
        tensor = tensor.detach().cpu().as_subclass(torch.Tensor)
        return tensor.resolve_conj().resolve_neg().contiguous()
    except Exception as error:  # arrays of any library, and tensors of any subclass
        said = first_line(error, 200)
        raise InvalidValue(f"an input of type {type(item).__name__} cannot be read as a tensor: {said}") from error


def _array(item: Any) -> Any:
    import numpy as np

    found = np.array(item)  # a copy: torch takes no array that is read-only or runs backwards
    return found.astype(found.dtype.newbyteorder("="))


def store_values(given: GivenInputs, folder: Path) -> tuple[Input, ...]:
    """The inputs, with the tensors that the caller passed written into `folder` for other processes.

    Raises InvalidValue, OSError.
    """
    tensors = values_of(given)
    if not tensors:
        return given.inputs
    import torch

    found = []
    for item, tensor in zip(given.inputs, tensors, strict=True):
        if tensor is not None:
            told = digest(tensor)
            path = folder / f"{told}.pt"
            if not path.exists():
                torch.save(tensor.clone(), path)  # a view would be saved with all that it is a view of
            item = replace(item, values=str(path), sha256=told)
        found.append(item)
    return tuple(found)


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and values of a contiguous tensor on the CPU."""
    import torch

    told = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    told.update(tensor.view(torch.uint8).numpy().data)
    return told.hexdigest()


def _load_values(item: Input) -> torch.Tensor:
    """The tensor in the file that the input names. Raises EffbenchError where it is not there, or another."""
    import torch

    try:
        found: torch.Tensor = torch.load(item.values, weights_only=True)
        is_same = digest(found) == item.sha256
    except Exception as error:  # a file of the session before, or none at all
        raise EffbenchError(missing_values_reason((item,)) or f"{item.values} cannot be read: {error}") from error
    if not is_same:
        raise EffbenchError(f"{item.values} does not hold the tensor that input {item} was given; measure it again")
    return found


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
