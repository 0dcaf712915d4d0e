"""Build the call of one cell that is timed: make the network and its inputs, and prepare them with the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from effbench import runtimes
from effbench.core import decoding
from effbench.core import inputs as core_inputs
from effbench.core.errors import ModelError, message_of
from effbench.core.inputs import Input
from effbench.cost import example_inputs, network_builds
from effbench.devices import Call, Device, OutOfMemory, cpu
from effbench.runtimes import Setting, Unsupported
from effbench.runtimes.base import Runtime, TraceDiffers
from effbench.runtimes.model_file import ModelFileRuntime, as_arrays
from effbench.timing import dtype_cast, output_check, reference_io, side_effects
from effbench.timing.side_effects import SideEffects
from effbench.user_code import failure_reasons, file_hashes
from effbench.user_code.global_state import NO_GUARD, SettingsGuard, Switched
from effbench.user_code.module_state import Snapshot, same
from effbench.user_code.random_state import RandomState

Emit = Callable[..., None]

SEEDED = "its output depends on random numbers from a seed that it sets itself"

RESTORED = ", which is put back before each block of calls"
"""Ending of the note on a network that writes into its input. ModelFileRuntime models get copies of it instead."""


def prepare(
    spec: Mapping[str, Any],
    seed: int,
    device: Device,
    emit: Emit,
    held: SettingsGuard = NO_GUARD,
    *,
    lean: bool = False,
    looks: bool = True,
) -> Call:
    """Build the call for the cell that `spec` (`Recording.order`) describes.

    The output is checked against eager float32, unless the cell is eager float32 itself. Emits a `probe` event with
    facts and notes about the prepared network. `held` tracks changes of process-wide settings.

    `lean` leaves out what needs more memory than running the network: the check, inputs beyond the first, and, where an
    earlier launch has exported the network, the network itself. Without `looks` a cell that needs no check is not
    examined for side effects (`side_effects.detect`), since an earlier launch did that. Raises OutOfMemory,
    EffbenchError, Unsupported, and whatever the network itself raises.
    """
    if device.kind == "fake":
        return device.bind(None, spec["cost"])
    setting = setting_of(spec, device)
    if spec.get("bundled"):
        return device.bind(_call_from_bundle(spec, setting, emit), spec["cost"])
    runtime = runtimes.get(spec["runtime"])
    runtime.require(setting)
    if lean and isinstance(runtime, ModelFileRuntime) and runtime.is_exported(setting):
        return device.bind(_call_from_export(runtime, spec, seed, device, setting), spec["cost"])
    with _out_of_memory_translated():
        with file_hashes.recording_reads(), held.building(spec):
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
            refusal = ModelError(f"{failure_reasons.reason_for(error)}; {said}")
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
    held: SettingsGuard,
    *,
    lean: bool,
    looks: bool,
    copies: bool = False,
    casts: bool = True,
) -> tuple[Call, dict[str, Any]]:
    """Return the call of a network, and facts about it.

    With `copies` each call gets a copy of its input. Without `casts` the weights keep their dtypes.
    """
    is_exported, is_reference = isinstance(runtime, ModelFileRuntime), _is_reference(spec)
    seen = None
    held.watch(spec["id"], network)
    if setting.mode == "infer" and (is_exported or not (lean or (is_reference and not looks))):
        with file_hashes.recording_reads():
            seen = _side_effects_of(network, inputs[0], setting, casts=casts)
        if seen.modes:  # looking has restored them, so an exporter would not notice
            raise Switched(f"its forward {seen.modes}")
        held.require(spec["id"])  # before preparing, since a runtime's refusal may be a consequence
    network, inputs = _convert(network, inputs, setting, casts=casts)
    held.watch(spec["id"], network)
    # A network with state is restored after preparing, so that its first output can be compared with the reference.
    passed = [item for each in inputs for item in each]
    state = Snapshot(network, passed) if seen and seen.keeps and not is_exported else None
    random = RandomState()
    given, layout = None if lean or is_exported else side_effects.cloned(inputs[0]), side_effects.layout(inputs[0])
    copies = copies or bool(seen and (seen.reshapes or (is_exported and seen.writes)))
    if copies:
        network = side_effects.with_cloned_inputs(network)
    originals: list[tuple[Any, ...]] | None = None
    try:
        try:
            prepared = runtime.prepare(network, inputs, setting)
        except TraceDiffers as error:
            raise _explain_trace(error, runtime, network, inputs[0], seen) from error
        if is_exported:
            held.restore()  # an exporter's settings are not the network's, which were recorded before
        call = prepared.call
        random.restore()
        if state:
            state.restore()
        if seen and seen.writes and not copies:
            originals = _convert_inputs(_make_inputs(network, spec, seed, device, len(inputs)), setting)
            call = side_effects.restoring_inputs(call, inputs, originals)
            call.renew()
        output = call()
    except RuntimeError:  # an earlier call may have changed the shape of the input, if the network was not examined
        if copies or side_effects.layout(inputs[0]) == layout:
            raise
    device.synchronize()
    if side_effects.layout(inputs[0]) != layout and not copies:
        fresh = _make_inputs(network, spec, seed, device, len(inputs))
        again = {"lean": lean, "looks": looks, "copies": True, "casts": casts}
        return _prepared(runtime, network, fresh, spec, seed, device, setting, held, **again)
    if given is not None and originals is None and not same(given, inputs[0]):
        originals = _convert_inputs(_make_inputs(network, spec, seed, device, len(inputs)), setting)
        call = side_effects.restoring_inputs(call, inputs, originals)
    facts = dict(prepared.facts)
    late = "" if is_exported or not casts else dtype_cast.note_after_call(dtype_cast.dtypes(network), setting.dtype)
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
            expected, found = _compare_output(seen, output, setting)
        except Unsupported as error:
            output_check.require_shapes(seen.outputs[0], output)  # shapes do not depend on random numbers
            where = runtime.name if setting.dtype == "float32" else f"{runtime.name} in {setting.dtype}"
            if not side_effects.seeds_itself(network, inputs[0]):
                raise
            raise Unsupported(f"{SEEDED}, and {where} draws other numbers than eager float32") from error
        facts |= found
    if notes:
        # Within a block the writes accumulate: restoring the input between calls would be part of the time.
        facts["notes"] = notes.replace(side_effects.WRITES, f"{side_effects.WRITES}{RESTORED}") if originals else notes
    if spec.get("keep"):
        fed = originals[0] if originals else inputs[0]
        reference_io.keep(setting.folder, fed, expected, notes, is_checkable=seen is None or seen.is_checkable)
    return call, facts


def _side_effects_of(network: Any, arguments: tuple[Any, ...], setting: Setting, *, casts: bool = True) -> SideEffects:
    """Return the outputs of eager float32, the reference, and the side effects of the network.

    The reference is float64 where both the network and the cell are float64, and the network's own dtype where it runs
    in no other.
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
            return side_effects.detect(network, [dtype_cast.cast_any(value, dtype) for value in arguments])
        except RuntimeError as error:
            if kind == kinds[-1] or failure_reasons.out_of_memory(error):
                raise
    raise AssertionError("there is at least one dtype")


def _compare_output(seen: SideEffects, output: Any, setting: Setting) -> tuple[Any, dict[str, float]]:
    """Return the expected output and the error of this one. Raises Unsupported.

    Some runtimes call the network while preparing it. If it keeps state, any of its first outputs is accepted.
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


def _explain_trace(
    error: TraceDiffers, runtime: Runtime, network: Any, arguments: tuple[Any, ...], seen: SideEffects | None
) -> Unsupported:
    """Return why a trace differs from the network: state or seeded random numbers, else control flow on data."""
    about = f"{runtime.name} runs a trace, which returns something else than this network"
    if seen and seen.kept:
        return Unsupported(f"{about}: it keeps state between calls ({side_effects.first_names(seen.kept)})")
    return Unsupported(f"{about}: {SEEDED}") if side_effects.seeds_itself(network, arguments) else error


def _call_from_bundle(spec: Mapping[str, Any], setting: Setting, emit: Emit) -> Call:
    """Return the call of a bundle's model, exported on another machine. Needs no torch. Raises Unsupported."""
    runtime = runtimes.get(spec["runtime"])
    if not isinstance(runtime, ModelFileRuntime):
        raise Unsupported(f"{runtime.name} runs no model files; measure it with `effbench run`")
    runtime.require(setting)
    inputs, expected = reference_io.kept(setting.folder)
    with cpu.out_of_memory_named():
        prepared = runtime.load([inputs], setting)
        output = prepared.call()
    # The export ran on another machine, so its time is left out.
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
    """Return the runtime's setting for a cell of a job."""
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
    """Build the network in eval mode on its device, and its inputs, by position.

    There are more inputs than the device's caches hold, or one if `lean`. Floating-point inputs are float32. Network
    and inputs are made outside of inference mode, since tensors made in it can never have gradients.

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
        network = _detach_attributes(device.place(network).eval())
        return network, _make_inputs(network, spec, seed, device, 1 if lean else _rotations(spec, device))


def _outside_of_inference_mode() -> contextlib.AbstractContextManager[Any]:
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


def _rotations(spec: Mapping[str, Any], device: Device) -> int:
    """Return how many inputs exceed the device's caches, in the dtype in which the network reads them."""
    args, named = example_inputs.make(_described(spec), spec["batch"], "float32", "meta")
    kind = dtype_cast.torch_dtype(spec["dtype"])
    return device.rotations(sum(dtype_cast.cast_any(tensor, kind).nbytes for tensor in (*args, *named.values())))


def _described(spec: Mapping[str, Any]) -> list[Input]:
    return decoding.decode(spec["inputs"], list[Input])


def _make_inputs(
    network: Any, spec: Mapping[str, Any], seed: int, device: Device, number: int = 1
) -> list[tuple[Any, ...]]:
    """Make `number` different inputs. Only the signature of the network's forward is used, to order named inputs."""
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


def _call_from_export(
    runtime: ModelFileRuntime, spec: Mapping[str, Any], seed: int, device: Device, setting: Setting
) -> Call:
    """Return the call of a model that an earlier launch exported, without allocating the network's weights."""
    # Building on the meta device imports 75 MB of torch, which would count towards the peak memory.
    is_named = any(item["name"] for item in spec["inputs"])
    signature = network_builds.build_on_meta(spec["model"], spec["arguments"]) if is_named else None
    inputs = _convert_inputs(_make_inputs(signature, spec, seed, device), setting)
    return runtime.load([as_arrays(each) for each in inputs], setting).call


def _is_reference(spec: Mapping[str, Any]) -> bool:
    """Return whether the cell is the reference that outputs are compared with."""
    return (spec["runtime"], spec["dtype"], spec["memory_format"]) == ("eager", "float32", "contiguous")


def _convert(
    network: Any, inputs: list[tuple[Any, ...]], setting: Setting, *, casts: bool = True
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return network and inputs in the setting's dtype, memory format and mode."""
    import torch

    with _outside_of_inference_mode():
        network = dtype_cast.cast(network, dtype_cast.torch_dtype(setting.dtype)) if casts else network
        if setting.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        inputs = _convert_inputs(inputs, setting)
    return network.train() if setting.mode == "train" else network, inputs


def _convert_inputs(inputs: list[tuple[Any, ...]], setting: Setting) -> list[tuple[Any, ...]]:
    return dtype_cast.convert_inputs(inputs, dtype_cast.torch_dtype(setting.dtype), setting.memory_format)


def gradients(mode: str, device: Device) -> contextlib.AbstractContextManager[Any]:
    """Return inference mode, unless training. Entered once per process, so that calls need not enter it."""
    if device.kind == "fake" or mode == "train" or not device.uses_torch:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


@contextlib.contextmanager
def _out_of_memory_translated() -> Iterator[None]:
    """Translate out-of-memory errors into OutOfMemory. The first call may raise one before any block is timed."""
    import torch

    try:
        with cpu.out_of_memory_named():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = (message_of(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise OutOfMemory(said) from error
