"""From the order of one cell to a call that can be timed: build the network, feed it, hand both to the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from effbench import runtimes
from effbench.core import inputs as core_inputs
from effbench.core.errors import ModelError, text_of
from effbench.core.inputs import Input
from effbench.cost import builds, example_inputs
from effbench.devices import Call, Device, OutOfMemory, cpu
from effbench.runtimes import Setting, Unsupported
from effbench.runtimes.base import Runtime, TraceDiffers
from effbench.runtimes.model_file import Exported, as_arrays
from effbench.timing import dtype_cast, output_check, reference_io, side_effects
from effbench.timing.side_effects import Seen
from effbench.user_code import failure_reasons, file_hashes
from effbench.user_code.global_state import NOTHING, Held, Switched
from effbench.user_code.module_state import Snapshot, same
from effbench.user_code.random_state import RandomState

Emit = Callable[..., None]

SEEDED = "its output is made of random numbers, drawn from a seed that it sets itself"

PUT_BACK = ", which is put back before each block of calls"
"""Of a network that writes into its input. A model file is exported such that it cannot."""


def prepare(
    spec: Mapping[str, Any],
    seed: int,
    device: Device,
    emit: Emit,
    held: Held = NOTHING,
    *,
    lean: bool = False,
    looks: bool = True,
) -> Call:
    """A call for the cell that `spec` (`Recording.order`) describes, checked against eager float32 where it is not
    that. Says as a "probe" what became of the network. `held` watches what it changes.

    `lean` leaves out whatever takes memory that running the network does not: the check, inputs beyond the first, and
    the network itself where an earlier launch has exported it. Without `looks` a cell that needs no check is not called
    for what it does beside computing (`effects.look`): an earlier launch has told that. Raises OutOfMemory,
    EffbenchError, Unsupported, and whatever the network itself raises.
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
    with _out_of_memory_translated():
        with file_hashes.watched(), held.building(spec):
            network, inputs = built(spec, seed, device, lean=lean)
        own = dtype_cast.dtypes(network)
        said = dtype_cast.note(own, setting.dtype)
        rest = spec, seed, device, setting, held
        try:
            with held.calling(spec["id"]):
                call, facts = _prepared(runtime, network, inputs, *rest, lean=lean, looks=looks)
        except RuntimeError as error:
            if not said or failure_reasons.out_of_memory(error):
                raise
            refusal = ModelError(f"{failure_reasons.told(error)}; {said}")
            if not core_inputs.runs_uncast(own, setting.dtype):
                raise refusal from error
            del network, inputs
            with held.building(spec):
                network, inputs = built(spec, seed, device, lean=lean)
            try:
                with held.calling(spec["id"]):
                    call, facts = _prepared(runtime, network, inputs, *rest, lean=lean, looks=looks, casts=False)
            except RuntimeError:
                raise refusal from error
            said = dtype_cast.note(own, setting.dtype, casts=False)
    facts |= held.facts(spec["id"])
    notes = "; ".join(filter(None, (facts.get("notes"), said)))
    facts |= {"notes": notes} if notes else {}
    if facts:
        emit("probe", cell=spec["id"], values=facts)
    return device.bind(call, spec["cost"])


def _prepared(
    runtime: Runtime,
    network: Any,
    inputs: list[tuple[Any, ...]],
    spec: Mapping[str, Any],
    seed: int,
    device: Device,
    setting: Setting,
    held: Held,
    *,
    lean: bool,
    looks: bool,
    copies: bool = False,
    casts: bool = True,
) -> tuple[Call, dict[str, Any]]:
    """The call of a network that was built, and what became of it. With `copies` each call is given a copy of its
    input. Unless it `casts`, the weights stay in the dtypes that they have.
    """
    is_exported, is_reference = isinstance(runtime, Exported), _is_reference(spec)
    seen = None
    held.watch(spec["id"], network)
    if setting.mode == "infer" and (is_exported or not (lean or (is_reference and not looks))):
        with file_hashes.watched():
            seen = _looked_at(network, inputs[0], setting, casts=casts)
        if seen.modes:  # which looking has put back, and an exporter would not see
            raise Switched(f"its forward {seen.modes}")
        held.require(spec["id"])  # now, since a runtime may refuse for a reason that follows from it
    network, inputs = _converted(network, inputs, setting, casts=casts)
    held.watch(spec["id"], network)
    # What preparing does to a network that changes is undone, so that its first output can be held to the reference's.
    passed = [item for each in inputs for item in each]
    state = Snapshot(network, passed) if seen and seen.keeps and not is_exported else None
    random = RandomState()
    given, layout = None if lean or is_exported else side_effects.copied(inputs[0]), side_effects.layout(inputs[0])
    copies = copies or bool(seen and (seen.reshapes or (is_exported and seen.writes)))
    if copies:
        network = side_effects.on_copies(network)
    originals: list[tuple[Any, ...]] | None = None
    try:
        try:
            prepared = runtime.prepare(network, inputs, setting)
        except TraceDiffers as error:
            raise _explained(error, runtime, network, inputs[0], seen) from error
        if is_exported:
            held.put_back()  # what an exporter sets is none of the network's, which was asked before
        call = prepared.call
        random.restore()
        if state:
            state.restore()
        if seen and seen.writes and not copies:
            originals = _as_set(_fed(network, spec, seed, device, len(inputs)), setting)
            call = side_effects.renewing(call, inputs, originals)
            call.renew()
        output = call()
    except RuntimeError:  # of an input that the call before has given another shape, where nobody has looked before
        if copies or side_effects.layout(inputs[0]) == layout:
            raise
    device.synchronize()
    if side_effects.layout(inputs[0]) != layout and not copies:
        fresh = _fed(network, spec, seed, device, len(inputs))
        again = {"lean": lean, "looks": looks, "copies": True, "casts": casts}
        return _prepared(runtime, network, fresh, spec, seed, device, setting, held, **again)
    if given is not None and originals is None and not same(given, inputs[0]):
        originals = _as_set(_fed(network, spec, seed, device, len(inputs)), setting)
        call = side_effects.renewing(call, inputs, originals)
    facts = dict(prepared.facts)
    late = "" if is_exported or not casts else dtype_cast.late_note(dtype_cast.dtypes(network), setting.dtype)
    if not output_check.is_finite(output):
        facts["output"] = "not finite"
    expected, notes = None, ""
    if seen:
        notes = "; ".join(seen.notes)
        expected = seen.outputs[0]
    elif originals or copies:
        notes = side_effects.RESHAPES if copies else side_effects.WRITES
    notes = "; ".join(filter(None, (notes, late)))
    if seen and not is_reference:
        try:
            expected, found = _held_to(seen, output, setting)
        except Unsupported as error:
            output_check.require_shapes(seen.outputs[0], output)  # which no random number changes
            where = runtime.name if setting.dtype == "float32" else f"{runtime.name} in {setting.dtype}"
            if not side_effects.seeds_itself(network, inputs[0]):
                raise
            raise Unsupported(f"{SEEDED}, and {where} draws others than eager float32") from error
        facts |= found
    if notes:
        # Within a block it writes again and again, which only a clock that stops between calls could avoid.
        facts["notes"] = notes.replace(side_effects.WRITES, f"{side_effects.WRITES}{PUT_BACK}") if originals else notes
    if spec.get("keep"):
        fed = originals[0] if originals else inputs[0]
        reference_io.keep(setting.folder, fed, expected, notes, is_checkable=seen is None or seen.is_checkable)
    return call, facts


def _looked_at(network: Any, arguments: tuple[Any, ...], setting: Setting, *, casts: bool = True) -> Seen:
    """What eager float32 returns, and what the network does beside; eager float64 where that is both its own and the
    cell's, and its own dtype where it runs in no other.
    """
    own = next(iter(dtype_cast.dtypes(network)), "float32")
    is_fed_double = any(str(getattr(value, "dtype", "")) == "torch.float64" for value in arguments)
    is_double = setting.dtype == "float64" and (own == "float64" or is_fed_double)
    kinds = ["float64" if is_double else "float32"]
    kinds += [own] if own == setting.dtype not in kinds else []
    kinds = kinds if casts else [setting.dtype]
    for kind in kinds:
        dtype = dtype_cast.torch_dtype(kind)
        with _outside_of_inference_mode():
            network = dtype_cast.cast(network, dtype) if casts else network
        try:
            return side_effects.look(network, [_cast(value, dtype) for value in arguments])
        except RuntimeError as error:
            if kind == kinds[-1] or failure_reasons.out_of_memory(error):
                raise
    raise AssertionError("there is at least one dtype")


def _held_to(seen: Seen, output: Any, setting: Setting) -> tuple[Any, dict[str, float]]:
    """The expected output and how far off this one is. Some runtimes call a network that keeps state before it can be
    asked for an output: any of the first outputs will do. Raises Unsupported.
    """
    if not seen.is_readable:
        return seen.outputs[0], {}
    if not seen.is_checkable:
        output_check.require_shapes(seen.outputs[0], output)
        return seen.outputs[0], {}
    refusal: Unsupported | None = None
    for expected in seen.outputs:
        try:
            return expected, output_check.check(expected, output, setting.dtype, tf32=setting.tf32)
        except Unsupported as error:
            refusal = refusal or error
    assert refusal is not None, "there is at least one output"
    raise refusal


def _explained(
    error: TraceDiffers, runtime: Runtime, network: Any, arguments: tuple[Any, ...], seen: Seen | None
) -> Unsupported:
    """Why a trace differs from the network, where it is not the data that decides what that computes."""
    about = f"{runtime.name} runs a trace, which returns something else than this network"
    if seen and seen.kept:
        return Unsupported(f"{about}: it keeps state between calls ({side_effects.named(seen.kept)})")
    return Unsupported(f"{about}: {SEEDED}") if side_effects.seeds_itself(network, arguments) else error


def _opened(spec: Mapping[str, Any], setting: Setting, emit: Emit) -> Call:
    """The same from a bundle: the model was exported elsewhere, and nothing here needs torch. Raises Unsupported."""
    runtime = runtimes.get(spec["runtime"])
    if not isinstance(runtime, Exported):
        raise Unsupported(f"{runtime.name} runs no model files; measure it with `effbench run`")
    runtime.require(setting)
    inputs, expected = reference_io.kept(setting.folder)
    with cpu.out_of_memory_named():
        prepared = runtime.load([inputs], setting)
        output = prepared.call()
    # The seconds of the export were another machine's.
    facts = {name: value for name, value in prepared.facts.items() if name != "prepare_s"}
    if not output_check.is_finite(output):
        facts["output"] = "not finite"
    notes, is_checkable = reference_io.noted(setting.folder)
    if is_checkable:
        facts |= output_check.check(expected, output, setting.dtype, tf32=setting.tf32)
    else:
        output_check.require_shapes(expected, output)
    if notes:
        facts["notes"] = notes
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
    """The network as its factory returns it, in eval mode and on its device, and what it is fed, by position: so many
    different inputs that the device's caches do not hold them, or one where it is to be `lean`. Floats among the inputs
    are float32. Both are made outside of inference mode, as they are wherever a network is used: tensors that were made
    in it can never have gradients.

    Raises EffbenchError, and whatever the network itself raises.
    """
    import torch

    from effbench import zoo

    with _outside_of_inference_mode():
        torch.manual_seed(seed)
        network = zoo.resolve(spec["model"], spec["arguments"])
        if any(weight.is_meta for weight in (*network.parameters(), *network.buffers())):
            raise ModelError(
                f"{type(network).__name__} has weights without values (meta device); build them on the CPU"
            )
        network = _without_history(device.place(network).eval())
        return network, _fed(network, spec, seed, device, 1 if lean else _rotations(spec, device))


def _outside_of_inference_mode() -> contextlib.AbstractContextManager[Any]:
    """With gradients, as a script begins."""
    import torch

    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def _without_history(network: Any) -> Any:
    """Attributes that were computed from weights, such as those of weight norm, cut off from them: nothing can copy a
    tensor that remembers where it came from.
    """
    import torch

    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                setattr(module, name, value.detach())
    return network


def _rotations(spec: Mapping[str, Any], device: Device) -> int:
    """How many inputs outgrow the device's caches, in the dtype that they have when the network reads them."""
    args, named = example_inputs.make(_described(spec), spec["batch"], "float32", "meta")
    kind = dtype_cast.torch_dtype(spec["dtype"])
    return device.rotations(sum(_cast(tensor, kind).nbytes for tensor in (*args, *named.values())))


def _described(spec: Mapping[str, Any]) -> list[Input]:
    return [Input(**item) for item in spec["inputs"]]


def _fed(network: Any, spec: Mapping[str, Any], seed: int, device: Device, number: int = 1) -> list[tuple[Any, ...]]:
    """So many different inputs. Of the network only the signature of its forward is asked, and only for inputs by
    name."""
    import torch

    described = _described(spec)
    generator = torch.Generator().manual_seed(seed)
    found = []
    # A tensor of float64 that the user passed keeps its digits.
    is_double = spec["dtype"] == "float64" and any(item.sha256 for item in described)
    for _ in range(number):
        args, named = example_inputs.make(
            described, spec["batch"], "float64" if is_double else "float32", seed=generator
        )
        passed = example_inputs.positional(network, args, named) if named else args
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


def _converted(
    network: Any, inputs: list[tuple[Any, ...]], setting: Setting, *, casts: bool = True
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Network and inputs as the setting says."""
    import torch

    with _outside_of_inference_mode():
        network = dtype_cast.cast(network, dtype_cast.torch_dtype(setting.dtype)) if casts else network
        if setting.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        inputs = _as_set(inputs, setting)
    return network.train() if setting.mode == "train" else network, inputs


def _as_set(inputs: list[tuple[Any, ...]], setting: Setting) -> list[tuple[Any, ...]]:
    """Inputs in the setting's dtype and memory format."""
    import torch

    dtype = dtype_cast.torch_dtype(setting.dtype)
    layout = torch.channels_last if setting.memory_format == "channels_last" else torch.contiguous_format

    def converted(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        cast = _cast(value, dtype)
        return cast.contiguous(memory_format=layout) if cast.dim() == 4 else cast

    return [tuple(converted(item) for item in each) for each in inputs]


def _cast(value: Any, dtype: Any) -> Any:
    return dtype_cast.cast_input(value, dtype) if hasattr(value, "dtype") else value


def gradients(mode: str, device: Device) -> contextlib.AbstractContextManager[Any]:
    """Entered once for as long as a process measures, so that a call costs nothing but the network."""
    if device.kind == "fake" or mode == "train" or not device.uses_torch:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


@contextlib.contextmanager
def _out_of_memory_translated() -> Iterator[None]:
    """The first call may already run out of memory, before any block is timed."""
    import torch

    try:
        with cpu.out_of_memory_named():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = (text_of(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise OutOfMemory(said) from error
