"""A network and its inputs in the dtype of a cell: numbers with a fraction are cast, complex ones stay complex."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from effbench.core.inputs import FLOATS

if TYPE_CHECKING:
    import torch
    from torch import nn


def torch_dtype(dtype: str) -> torch.dtype:
    """The dtype that a cell's network is cast to: int8 stays float32, which the runtime quantises itself."""
    import torch

    found: torch.dtype = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    return found


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """What complex numbers become beside `dtype`: complex128 beside float64, else complex64.

    torch has a complex32, but most of its operators (convolutions, products, FFTs on a CPU) do not take it, and there
    is no complex bfloat16.
    """
    import torch

    return torch.complex128 if dtype == torch.float64 else torch.complex64


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with parameters and buffers in `dtype`, in place. Whole numbers stay; complex ones stay complex.

    ``network.to(dtype)`` alone would drop imaginary parts.
    """
    if not any(tensor.is_complex() for tensor in _tensors(network)):
        return network.to(dtype)
    twin = complex_dtype(dtype)

    def cast_one(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(twin)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return network._apply(cast_one)  # type: ignore[no-untyped-call, no-any-return] # as ``network.half()`` does


def cast_input(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An input of float32 in `dtype`; one whose description names another dtype keeps it."""
    import torch

    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def dtypes(network: nn.Module) -> tuple[str, ...]:
    """The dtypes of its parameters and buffers that hold fractions, each once, the first weight's first.

    Complex ones stand for the dtype of their parts: complex64 is float32.
    """
    kinds = (_part(tensor.dtype) for tensor in _tensors(network) if tensor.is_floating_point() or tensor.is_complex())
    return tuple(dict.fromkeys(str(kind).removeprefix("torch.") for kind in kinds))


def own_dtype(network: nn.Module) -> str:
    """The dtype of the first weight that holds fractions; float32 without one."""
    return next(iter(dtypes(network)), "float32")


def note(own: tuple[str, ...], dtype: str, *, casts: bool = True) -> str:
    """What a table says of a network whose weights are not what they are measured as; "" where there is nothing to say.

    `own` are its `dtypes` as it was built, `dtype` is the cell's. float32 is what a cell's dtype is chosen from: that
    it is cast where another dtype was asked for needs no word. One that runs only without a cast is not cast.
    """
    if not casts:
        return f"its weights are {_listed(own)}, measured as they are"
    measured = "float32" if dtype == "int8" else dtype
    if not set(own) - {"float32", measured}:
        return ""
    if len(own) > 1:
        return f"its weights are {_listed(own)}, and all are measured as {measured}"
    told = f"its weights are {own[0]} and measured as {measured}"
    return f"{told} (--dtype {own[0]} measures them as they are)" if own[0] in FLOATS else told


def late_note(now: tuple[str, ...], dtype: str) -> str:
    """The same of a network that has run, by its `dtypes` then: what it makes in its first call is nowhere cast."""
    measured = "float32" if dtype == "int8" else dtype
    other = tuple(name for name in now if name != measured)
    return f"it makes weights of {_listed(other)} when it first runs, which stay so" if other else ""


def _tensors(network: nn.Module) -> Iterable[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _part(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
