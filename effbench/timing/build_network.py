"""Build the network and the inputs of one cell, in the dtype, memory format and mode that it is measured in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from effbench.core import decoding
from effbench.core.errors import ModelError
from effbench.core.inputs import Input
from effbench.devices import Device
from effbench.runtimes import Setting
from effbench.timing import dtype_cast
from effbench.timing.rotating_inputs import RotatingInputs


def build(
    spec: Mapping[str, Any], seed: int, device: Device, *, minimal_memory: bool = False
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Build the network in eval mode on its device, and its inputs, by position.

    There are more inputs than the device's caches hold, or one if `minimal_memory`. Floating-point inputs are float32.
    Network and inputs are made outside of inference mode, since tensors made in it can never have gradients.

    Raises EffbenchError, and whatever the network itself raises.
    """
    import torch

    from effbench import zoo

    with outside_of_inference_mode():
        torch.manual_seed(seed)
        network = zoo.resolve(spec["model"], spec["arguments"])
        if any(weight.is_meta for weight in (*network.parameters(), *network.buffers())):
            raise ModelError(
                f"{type(network).__name__} has weights without values (meta device); build them on the CPU"
            )
        network = _detach_attributes(device.place(network).eval())
        inputs = inputs_of(spec, seed, device)
        return network, inputs.make(network, 1 if minimal_memory else inputs.number(spec["dtype"]))


def inputs_of(spec: Mapping[str, Any], seed: int, device: Device) -> RotatingInputs:
    """Return the inputs of a cell, which are float32 until the network is cast."""
    described = decoding.decode(spec["inputs"], list[Input])
    # A tensor of float64 that the user passed keeps its digits.
    is_double = spec["dtype"] == "float64" and any(item.sha256 for item in described)
    return RotatingInputs(described, spec["batch"], "float64" if is_double else "float32", seed, device)


def convert(
    network: Any, inputs: list[tuple[Any, ...]], setting: Setting, *, cast_weights: bool = True
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return network and inputs in the setting's dtype, memory format and mode."""
    import torch

    with outside_of_inference_mode():
        network = dtype_cast.cast(network, dtype_cast.torch_dtype(setting.dtype)) if cast_weights else network
        if setting.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        inputs = convert_inputs(inputs, setting)
    return network.train() if setting.mode == "train" else network, inputs


def convert_inputs(inputs: list[tuple[Any, ...]], setting: Setting) -> list[tuple[Any, ...]]:
    return dtype_cast.convert_inputs(inputs, dtype_cast.torch_dtype(setting.dtype), setting.memory_format)


def outside_of_inference_mode() -> contextlib.AbstractContextManager[Any]:
    """Leave inference mode, if it is on."""
    import torch

    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def _detach_attributes(network: Any) -> Any:
    """Detach attributes that were computed from weights, such as those of weight norm: tensors with an autograd history
    cannot be copied.
    """
    import torch

    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                setattr(module, name, value.detach())
    return network
