"""From the order of one cell to a call that can be timed: build the network, feed it, hand both to the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from effbench import feeding, runtimes
from effbench.devices import Call, Device, OutOfMemory, cpu
from effbench.errors import ModelError
from effbench.feeding import Input
from effbench.measurement import agreement
from effbench.runtimes import Setting

Emit = Callable[..., None]


def prepare(spec: Mapping[str, Any], seed: int, device: Device, emit: Emit) -> Call:
    """A call for the cell that `spec` (`Recording.job`) describes, checked against eager float32 where it is not that.

    Says as a "probe" what became of the network. Raises OutOfMemory, EffbenchError, Unsupported, and whatever the
    network itself raises.
    """
    if device.kind == "fake":
        return device.bind(None, spec["cost"])
    setting = setting_of(spec, device)
    runtime = runtimes.get(spec["runtime"])
    runtime.require(setting)
    network, inputs = built(spec, seed, device)
    expected = None
    with _out_of_memory_translated():
        if setting.mode == "infer" and (setting.dtype, spec["runtime"]) != ("float32", "eager"):
            expected = _reference(network, inputs[0])
        network, inputs = _converted(network, inputs, setting)
        prepared = runtime.prepare(network, inputs, setting)
        output = prepared.call()
        device.synchronize()
    facts = dict(prepared.facts)
    if not is_finite(output):
        facts["output"] = "not finite"
    if expected is not None:
        facts |= agreement.check(expected, output, setting.dtype)
    if facts:
        emit("probe", cell=spec["id"], values=facts)
    return device.bind(prepared.call, spec["cost"])


def setting_of(spec: Mapping[str, Any], device: Device) -> Setting:
    """The conditions that an order asks for."""
    return Setting(
        Path(spec["folder"]), device.kind, spec["threads"], spec["dtype"], spec["memory_format"], spec["mode"]
    )


def built(spec: Mapping[str, Any], seed: int, device: Device) -> tuple[Any, list[tuple[Any, ...]]]:
    """The network in float32 and eval mode, on its device, and what it is fed, by position: so many different inputs
    that the device's caches do not hold them. Floats among the inputs are float32.

    Raises EffbenchError, and whatever the network itself raises.
    """
    import torch

    from effbench import zoo

    torch.manual_seed(seed)
    network = zoo.resolve(spec["model"], spec["arguments"])
    if any(weight.is_meta for weight in (*network.parameters(), *network.buffers())):
        raise ModelError(f"{type(network).__name__} has weights without values (meta device); build them on the CPU")
    network = device.place(network).eval()
    described = [Input(tuple(item["shape"]), item["name"], item["dtype"]) for item in spec["inputs"]]
    args, named = feeding.make(described, spec["batch"], "float32", "meta")
    input_bytes = sum(tensor.nbytes for tensor in (*args, *named.values()))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(device.rotations(input_bytes)):
        args, named = feeding.make(described, spec["batch"], "float32", seed=generator)
        passed = feeding.positional(network, args, named) if named else args
        found.append(tuple(device.place(item) if isinstance(item, torch.Tensor) else item for item in passed))
    return network, found


def _reference(network: Any, arguments: tuple[Any, ...]) -> Any:
    """What eager float32 returns, copied: some networks return views of what they keep."""
    import torch

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        return [copied(item) for item in value] if isinstance(value, (list, tuple)) else None

    return copied(network(*arguments))


def _converted(network: Any, inputs: list[tuple[Any, ...]], setting: Setting) -> tuple[Any, list[tuple[Any, ...]]]:
    """Network and inputs in the setting's dtype and memory format; int8 stays float32, which the runtime quantises."""
    import torch

    dtype = torch.float32 if setting.dtype == "int8" else getattr(torch, setting.dtype)
    layout = torch.channels_last if setting.memory_format == "channels_last" else torch.contiguous_format

    def converted(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # One whose description names another dtype keeps it.
        cast = value.to(dtype) if value.dtype == torch.float32 else value
        return cast.contiguous(memory_format=layout) if cast.dim() == 4 else cast

    network = network.to(dtype)
    if setting.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    if setting.mode == "train":
        network = network.train()
    return network, [tuple(converted(item) for item in each) for each in inputs]


def is_finite(output: Any) -> bool:
    """Whether an output holds only numbers. A network that computes NaN may run at another speed than one in use."""
    import numpy as np
    import torch

    if isinstance(output, torch.Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    if isinstance(output, np.ndarray):
        return not np.issubdtype(output.dtype, np.floating) or bool(np.isfinite(output).all())
    inner = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return all(map(is_finite, inner))


@contextlib.contextmanager
def _out_of_memory_translated() -> Iterator[None]:
    """The first call may already run out of memory, before any block is timed."""
    import torch

    try:
        with cpu.out_of_memory_named():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise OutOfMemory(said) from error
