"""Cast a network and its inputs to a cell's dtype. Floats are cast, integers stay, complex numbers stay complex."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from effbench.core.inputs import FLOATS

if TYPE_CHECKING:
    import torch
    from torch import nn


def torch_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that a network is cast to. For int8 it is float32, since the runtime quantises itself."""
    import torch

    found: torch.dtype = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    return found


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of complex weights in a network of `dtype`: complex128 for float64, else complex64.

    torch has a complex32, but most of its operators (convolutions, products, FFTs on a CPU) do not take it, and there
    is no complex bfloat16.
    """
    import torch

    return torch.complex128 if dtype == torch.float64 else torch.complex64


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast parameters and buffers to `dtype` in place. Integers stay as they are, complex weights stay complex.

    ``network.to(dtype)`` would drop imaginary parts.
    """
    if not any(tensor.is_complex() for tensor in _weights(network)):
        return network.to(dtype)
    twin = complex_dtype(dtype)

    def cast_one(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(twin)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return network._apply(cast_one)  # type: ignore[no-untyped-call, no-any-return] # as ``network.half()`` does


def cast_input(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast a float32 input to `dtype`. Inputs whose description names another dtype keep it."""
    import torch

    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def weight_dtypes(network: nn.Module) -> tuple[str, ...]:
    """Return the floating-point dtypes of parameters and buffers, each once, in order of appearance.

    A complex dtype counts as that of its parts: complex64 as float32.
    """
    kinds = (
        _real_dtype(tensor.dtype) for tensor in _weights(network) if tensor.is_floating_point() or tensor.is_complex()
    )
    return tuple(dict.fromkeys(str(kind).removeprefix("torch.") for kind in kinds))


def own_dtype(network: nn.Module) -> str:
    """Return the dtype of the first floating-point weight; float32 without one."""
    return next(iter(weight_dtypes(network)), "float32")


def cast_note(own: tuple[str, ...], dtype: str, *, cast_weights: bool = True) -> str:
    """Return a note for tables if weights are measured in another dtype than the network was built with, else "".

    `own` are its `weight_dtypes` as built, `dtype` is the cell's. Casting float32 weights to the requested dtype is the
    normal case and needs no note. Pass ``cast_weights=False`` for a network that runs only without a cast.
    """
    if not cast_weights:
        return f"its weights are {_join_names(own)}, measured as they are"
    measured = "float32" if dtype == "int8" else dtype
    if not set(own) - {"float32", measured}:
        return ""
    if len(own) > 1:
        return several_note(own, dtype)
    told = f"its weights are {own[0]} and measured as {measured}"
    return f"{told} (--dtype {own[0]} measures them as they are)" if own[0] in FLOATS else told


def several_note(own: tuple[str, ...], dtype: str) -> str:
    """Return a note about a network whose weights have several dtypes (`own`) and are cast to one."""
    return f"its weights are {_join_names(own)}, and all are measured as {'float32' if dtype == 'int8' else dtype}"


def note_after_call(now: tuple[str, ...], dtype: str) -> str:
    """Return a note if the first call created weights in another dtype than the cell's, which stay in it; else "".

    `now` are the network's `weight_dtypes` after the call.
    """
    measured = "float32" if dtype == "int8" else dtype
    other = tuple(name for name in now if name != measured)
    return f"it makes weights of {_join_names(other)} when it first runs, which stay so" if other else ""


def _weights(network: nn.Module) -> Iterable[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _real_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _join_names(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def convert_inputs(inputs: list[tuple[Any, ...]], dtype: torch.dtype, memory_format: str) -> list[tuple[Any, ...]]:
    """Return inputs of several calls in this dtype and memory format."""
    import torch

    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format

    def converted(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        cast = cast_input(value, dtype)
        return cast.contiguous(memory_format=layout) if cast.dim() == 4 else cast

    return [tuple(converted(item) for item in each) for each in inputs]


def cast_any(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor in this dtype as `cast_input` does, and anything else unchanged."""
    return cast_input(value, dtype) if hasattr(value, "dtype") else value
