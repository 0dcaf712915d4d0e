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
from effbench.measurement import agreement, builds, keeping, sources
from effbench.measurement.switches import NOTHING, Held
from effbench.runtimes import Setting, Unsupported
from effbench.runtimes.exported import Exported, as_arrays

Emit = Callable[..., None]


def prepare(
    spec: Mapping[str, Any], seed: int, device: Device, emit: Emit, held: Held = NOTHING, *, lean: bool = False
) -> Call:
    """A call for the cell that `spec` (`Recording.order`) describes, checked against eager float32 where it is not
    that. Says as a "probe" what became of the network. `held` watches what it changes.

    `lean` leaves out whatever takes memory that running the network does not: the check, inputs beyond the first, and
    the network itself where an earlier launch has exported it. Raises OutOfMemory, EffbenchError, Unsupported, and
    whatever the network itself raises.
    """
    if device.kind == "fake":
        return device.bind(None, spec["cost"])
    setting = setting_of(spec, device)
    if spec.get("bundled"):
        return device.bind(_opened(spec, setting, emit), spec["cost"])
    runtime = runtimes.get(spec["runtime"])
    runtime.require(setting)
    if lean and isinstance(runtime, Exported) and runtime.is_exported(setting):
        return device.bind(_reopened(runtime, spec, seed, device, setting), spec["cost"])
    with sources.watched(), held.building(spec):
        network, inputs = built(spec, seed, device, lean=lean)
    expected = None
    with _out_of_memory_translated(), held.calling(spec["id"]):
        held.watch(spec["id"], network)
        if not lean and setting.mode == "infer" and not _is_reference(spec):
            with sources.watched():
                expected = _reference(network, inputs[0])
            held.require(spec["id"])  # now, since a runtime may refuse for a reason that follows from it
        network, inputs = _converted(network, inputs, setting)
        held.watch(spec["id"], network)
        prepared = runtime.prepare(network, inputs, setting)
        output = prepared.call()
        device.synchronize()
    facts = {**prepared.facts, **held.facts(spec["id"])}
    if not is_finite(output):
        facts["output"] = "not finite"
    if expected is not None:
        facts |= agreement.check(expected, output, setting.dtype, tf32=setting.tf32)
    if spec.get("keep"):
        keeping.keep(setting.folder, inputs[0], expected)
    if facts:
        emit("probe", cell=spec["id"], values=facts)
    return device.bind(prepared.call, spec["cost"])


def _opened(spec: Mapping[str, Any], setting: Setting, emit: Emit) -> Call:
    """The same from a bundle: the model was exported elsewhere, and nothing here needs torch. Raises Unsupported."""
    runtime = runtimes.get(spec["runtime"])
    if not isinstance(runtime, Exported):
        raise Unsupported(f"{runtime.name} runs no model files; measure it with `effbench run`")
    runtime.require(setting)
    inputs, expected = keeping.kept(setting.folder)
    with cpu.out_of_memory_named():
        prepared = runtime.load([inputs], setting)
        output = prepared.call()
    # The seconds of the export were another machine's.
    facts = {name: value for name, value in prepared.facts.items() if name != "prepare_s"}
    if not is_finite(output):
        facts["output"] = "not finite"
    facts |= agreement.check(expected, output, setting.dtype, tf32=setting.tf32)
    emit("probe", cell=spec["id"], values=facts)
    return prepared.call


def setting_of(spec: Mapping[str, Any], device: Device) -> Setting:
    """The conditions that an order asks for."""
    return Setting(
        Path(spec["folder"]),
        device.kind,
        spec["threads"],
        spec["dtype"],
        spec["memory_format"],
        spec["mode"],
        **device.setting(),
    )


def built(
    spec: Mapping[str, Any], seed: int, device: Device, *, lean: bool = False
) -> tuple[Any, list[tuple[Any, ...]]]:
    """The network in float32 and eval mode, on its device, and what it is fed, by position: so many different inputs
    that the device's caches do not hold them, or one where it is to be `lean`. Floats among the inputs are float32.

    Raises EffbenchError, and whatever the network itself raises.
    """
    import torch

    from effbench import zoo

    torch.manual_seed(seed)
    network = zoo.resolve(spec["model"], spec["arguments"])
    if any(weight.is_meta for weight in (*network.parameters(), *network.buffers())):
        raise ModelError(f"{type(network).__name__} has weights without values (meta device); build them on the CPU")
    network = device.place(network).eval()
    return network, _fed(network, spec, seed, device, 1 if lean else _rotations(spec, device))


def _rotations(spec: Mapping[str, Any], device: Device) -> int:
    """How many inputs outgrow the device's caches, in the dtype that they have when the network reads them."""
    args, named = feeding.make(_described(spec), spec["batch"], "float32", "meta")
    kind = _torch_dtype(spec["dtype"])
    return device.rotations(sum(_cast(tensor, kind).nbytes for tensor in (*args, *named.values())))


def _described(spec: Mapping[str, Any]) -> list[Input]:
    return [Input(tuple(item["shape"]), item["name"], item["dtype"]) for item in spec["inputs"]]


def _fed(network: Any, spec: Mapping[str, Any], seed: int, device: Device, number: int = 1) -> list[tuple[Any, ...]]:
    """So many different inputs. Of the network only the signature of its forward is asked, and only for inputs by
    name."""
    import torch

    described = _described(spec)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        args, named = feeding.make(described, spec["batch"], "float32", seed=generator)
        passed = feeding.positional(network, args, named) if named else args
        found.append(tuple(device.place(item) if isinstance(item, torch.Tensor) else item for item in passed))
    return found


def _reopened(runtime: Exported, spec: Mapping[str, Any], seed: int, device: Device, setting: Setting) -> Call:
    """A call of what an earlier launch exported. The network's weights are never made."""
    # What torch imports to build on meta is 75 MB, which no deployed network pays.
    is_named = any(item["name"] for item in spec["inputs"])
    signature = builds.on_meta(spec["model"], spec["arguments"]) if is_named else None
    inputs = _as_set(_fed(signature, spec, seed, device), setting)
    return runtime.load([as_arrays(each) for each in inputs], setting).call


def _is_reference(spec: Mapping[str, Any]) -> bool:
    """Whether the cell is what others are held against."""
    return (spec["runtime"], spec["dtype"], spec["memory_format"]) == ("eager", "float32", "contiguous")


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
    """Network and inputs as the setting says."""
    import torch

    network = network.to(_torch_dtype(setting.dtype))
    if setting.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    if setting.mode == "train":
        network = network.train()
    return network, _as_set(inputs, setting)


def _as_set(inputs: list[tuple[Any, ...]], setting: Setting) -> list[tuple[Any, ...]]:
    """Inputs in the setting's dtype and memory format."""
    import torch

    dtype = _torch_dtype(setting.dtype)
    layout = torch.channels_last if setting.memory_format == "channels_last" else torch.contiguous_format

    def converted(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        cast = _cast(value, dtype)
        return cast.contiguous(memory_format=layout) if cast.dim() == 4 else cast

    return [tuple(converted(item) for item in each) for each in inputs]


def _cast(tensor: Any, dtype: Any) -> Any:
    """One of float32 in the cell's dtype; one whose description names another dtype keeps it."""
    import torch

    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def _torch_dtype(dtype: str) -> Any:
    """int8 stays float32, which the runtime quantises itself."""
    import torch

    return torch.float32 if dtype == "int8" else getattr(torch, dtype)


def gradients(mode: str, device: Device) -> contextlib.AbstractContextManager[Any]:
    """Entered once for as long as a process measures, so that a call costs nothing but the network."""
    if device.kind == "fake" or mode == "train" or not device.uses_torch:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


def is_finite(output: Any) -> bool:
    """Whether an output holds only numbers. A network that computes NaN may run at another speed than one in use."""
    import numpy as np

    if hasattr(output, "is_floating_point"):  # a tensor: where a bundle runs there may be no torch to ask
        return not output.is_floating_point() or bool(output.isfinite().all())
    if hasattr(output, "__array__"):
        array = np.asarray(output)
        return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())
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
