"""Build the call of one cell that is timed: make the network and its inputs, and prepare them with the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from effbench import runtimes
from effbench.core import inputs as core_inputs
from effbench.core.errors import ModelError, first_line
from effbench.cost import network_builds
from effbench.devices import Call, Device, OutOfMemory, cpu
from effbench.runtimes import Setting, Unsupported
from effbench.runtimes.base import Runtime, TraceDiffers
from effbench.runtimes.model_file import ModelFileRuntime, as_arrays
from effbench.timing import build_network, dtype_cast, output_check, reference_io, side_effects
from effbench.timing.side_effects import SideEffects
from effbench.user_code import failure_reasons, file_hashes
from effbench.user_code.global_state import NO_GUARD, SettingChanged, SettingsGuard
from effbench.user_code.module_state import Snapshot, same
from effbench.user_code.random_state import RandomState
from effbench.zoo.load_model import NETWORK_FAILURES

Emit = Callable[..., None]

SEEDED = "its output depends on random numbers from a seed that it sets itself"


def prepare(
    spec: Mapping[str, Any],
    seed: int,
    device: Device,
    emit: Emit,
    guard: SettingsGuard = NO_GUARD,
    *,
    minimal_memory: bool = False,
    examine: bool = True,
) -> Call:
    """Build the call for the cell that `spec` (`Recording.cell_spec`) describes.

    The output is checked against eager float32, unless the cell is eager float32 itself. Emits a `probe` event with
    facts and notes about the prepared network. `guard` tracks changes of process-wide settings.

    `minimal_memory` leaves out what needs more memory than running the network: the check, inputs beyond the first,
    and, where an earlier launch has exported the network, the network itself. Without `examine` a cell that needs no
    check is not examined for side effects (`side_effects.detect`), since an earlier launch did that. Raises
    OutOfMemory, EffbenchError, Unsupported, and whatever the network itself raises.
    """
    if device.kind == "fake":
        return device.bind(None, spec["cost"])
    setting = setting_of(spec, device)
    if spec.get("bundled"):
        return device.bind(_call_from_bundle(spec, setting, emit), spec["cost"])
    runtime = runtimes.get(spec["runtime"])
    runtime.require(setting)
    if minimal_memory and isinstance(runtime, ModelFileRuntime) and runtime.is_exported(setting):
        return device.bind(_call_from_export(runtime, spec, seed, device, setting), spec["cost"])
    cell = _Cell(spec, seed, device, setting, runtime, guard, minimal_memory, examine)
    with _translate_out_of_memory():
        network, inputs = _build(cell)
        own = dtype_cast.weight_dtypes(network)
        said = dtype_cast.cast_note(own, setting.dtype)
        try:
            call, facts = _prepare_call(cell, network, inputs)
        except RuntimeError as error:
            if not (said or len(own) > 1) or failure_reasons.out_of_memory_reason(error):
                raise
            why = said or dtype_cast.several_note(own, setting.dtype)
            refusal = ModelError(f"{failure_reasons.reason_for(error)}; {why}")
            if not core_inputs.runs_uncast(own, setting.dtype):
                raise refusal from error
            del network, inputs
            network, inputs = _build(cell)
            try:
                call, facts = _prepare_call(replace(cell, cast_weights=False), network, inputs)
            except RuntimeError:
                raise refusal from error
            said = dtype_cast.cast_note(own, setting.dtype, cast_weights=False)
    facts |= guard.facts(spec["id"])
    notes = "; ".join(filter(None, (facts.get("notes"), said)))
    facts |= {"notes": notes} if notes else {}
    if facts:
        emit("probe", cell=spec["id"], values=facts)
    return device.bind(call, spec["cost"])


@dataclass(frozen=True)
class _Cell:
    """A cell and how it is prepared: what the steps of `prepare` share. The parameters of `prepare` are among them.

    Without `cast_weights` the weights keep their dtypes.
    """

    spec: Mapping[str, Any]
    seed: int
    device: Device
    setting: Setting
    runtime: Runtime
    guard: SettingsGuard
    minimal_memory: bool
    examine: bool
    cast_weights: bool = True

    @property
    def id(self) -> str:
        return str(self.spec["id"])

    @property
    def is_exported(self) -> bool:
        """Whether its runtime runs a model file, and not the network."""
        return isinstance(self.runtime, ModelFileRuntime)

    @property
    def is_reference(self) -> bool:
        """Whether the cell is the reference that outputs are compared with."""
        spec = self.spec
        return (spec["runtime"], spec["dtype"], spec["memory_format"]) == ("eager", "float32", "contiguous")

    def fresh_inputs(self, network: Any, number: int) -> list[tuple[Any, ...]]:
        """Make the same inputs again, as the network reads them."""
        inputs = build_network.inputs_of(self.spec, self.seed, self.device).make(network, number)
        return build_network.convert_inputs(inputs, self.setting)


@dataclass(frozen=True)
class _FirstCall:
    """A call with the output of its first run.

    `network` is what the runtime has prepared, and `facts` are those of `Prepared`. With `clones_inputs` each call gets
    a copy of its input. With `restores_inputs` the inputs are put back before each block of calls.
    """

    call: Call
    facts: Mapping[str, Any]
    output: Any
    network: Any
    clones_inputs: bool
    restores_inputs: bool


def _build(cell: _Cell) -> tuple[Any, list[tuple[Any, ...]]]:
    with file_hashes.recording_reads(), cell.guard.building(cell.spec):
        return build_network.build(cell.spec, cell.seed, cell.device, minimal_memory=cell.minimal_memory)


def _prepare_call(cell: _Cell, network: Any, inputs: list[tuple[Any, ...]]) -> tuple[Call, dict[str, Any]]:
    """Return the call of a network, and facts about it."""
    with cell.guard.calling(cell.id):
        seen = _examine(cell, network, inputs[0])
        network, inputs = build_network.convert(network, inputs, cell.setting, cast_weights=cell.cast_weights)
        cell.guard.watch_training_flags(cell.id, network)
        clone_inputs = bool(seen and (seen.reshapes_input or (cell.is_exported and seen.writes_input)))
        first = _first_call(cell, network, inputs, seen, clone_inputs=clone_inputs)
        if first is None:
            seen = replace(seen, reshapes_input=True) if seen else None
            inputs = cell.fresh_inputs(network, len(inputs))
            first = _first_call(cell, network, inputs, seen, clone_inputs=True)
            assert first is not None, "each call is given a copy of its input"
        return first.call, _check_first_call(cell, first, inputs[0], seen)


def _examine(cell: _Cell, network: Any, arguments: tuple[Any, ...]) -> SideEffects | None:
    """Return the side effects of the network; None if it is not examined. Raises SettingChanged."""
    cell.guard.watch_training_flags(cell.id, network)
    is_needed = not (cell.minimal_memory or (cell.is_reference and not cell.examine))
    if cell.setting.mode != "infer" or not (cell.is_exported or is_needed):
        return None
    with file_hashes.recording_reads():
        seen = _side_effects_of(network, arguments, cell.setting, cast_weights=cell.cast_weights)
    if seen.training_flag_changes:  # looking has restored them, so an exporter would not notice
        raise SettingChanged(f"its forward {seen.training_flag_changes}")
    cell.guard.require_unchanged(cell.id)  # before preparing, since a runtime's refusal may be a consequence
    return seen


def _first_call(
    cell: _Cell, network: Any, inputs: list[tuple[Any, ...]], seen: SideEffects | None, *, clone_inputs: bool
) -> _FirstCall | None:
    """Prepare the call with the runtime, and make it once. With `clone_inputs` each call gets a copy of its input.

    Returns None if an input has changed its shape, so that it cannot be passed again.
    """
    # A network with state is restored after preparing, so that its first output can be compared with the reference.
    passed = [item for each in inputs for item in each]
    state = Snapshot(network, passed) if seen and seen.changes_state and not cell.is_exported else None
    random = RandomState()
    given = None if cell.minimal_memory or cell.is_exported else side_effects.clone_tensors(inputs[0])
    layout = side_effects.layout_of(inputs[0])
    if clone_inputs:
        network = side_effects.with_cloned_inputs(network)
    restores = False
    try:
        try:
            prepared = cell.runtime.prepare(network, inputs, cell.setting)
        except TraceDiffers as error:
            raise _explain_trace(error, cell.runtime, network, inputs[0], seen) from error
        if cell.is_exported:
            cell.guard.restore()  # an exporter's settings are not the network's, which were recorded before
        call = prepared.call
        random.restore()
        if state:
            state.restore()
        if seen and seen.writes_input and not clone_inputs:
            originals = cell.fresh_inputs(network, len(inputs))
            call, restores = side_effects.with_restorable_inputs(call, inputs, originals), True
            call.restore_inputs()
        output = call()
    except NETWORK_FAILURES:  # an earlier call may have changed the shape of the input: it was not examined
        if clone_inputs or side_effects.layout_of(inputs[0]) == layout:
            raise
    cell.device.synchronize()
    if side_effects.layout_of(inputs[0]) != layout and not clone_inputs:
        random.restore()
        if state:
            state.restore()
        return None
    if given is not None and not restores and not same(given, inputs[0]):
        originals = cell.fresh_inputs(network, len(inputs))
        call, restores = side_effects.with_restorable_inputs(call, inputs, originals), True
    return _FirstCall(call, prepared.facts, output, network, clone_inputs, restores)


def _check_first_call(
    cell: _Cell, first: _FirstCall, arguments: tuple[Any, ...], seen: SideEffects | None
) -> dict[str, Any]:
    """Compare the first output with that of eager float32. Returns the facts about the call, with notes."""
    facts = dict(first.facts)
    if not output_check.is_finite(first.output):
        facts["output"] = "not finite"
    expected = seen.outputs[0] if seen else None
    if seen and not cell.is_reference:
        expected, found = _compare_output(cell, first, arguments, seen)
        facts |= found
    restored = first.restores_inputs
    # Without an examination the first call alone shows what the network does to its input.
    first_note = side_effects.input_note(writes=restored, reshapes=first.clones_inputs, restored=restored)
    notes = [*seen.notes(restored=restored)] if seen else [first_note]
    if cell.cast_weights and not cell.is_exported:
        notes.append(dtype_cast.note_after_call(dtype_cast.weight_dtypes(first.network), cell.setting.dtype))
    said = "; ".join(filter(None, notes))
    if said:
        facts["notes"] = said
    if cell.spec.get("keep"):
        is_checkable = seen is None or seen.is_checkable
        reference_io.save(cell.setting.folder, arguments, expected, said, is_checkable=is_checkable)
    return facts


def _compare_output(
    cell: _Cell, first: _FirstCall, arguments: tuple[Any, ...], seen: SideEffects
) -> tuple[Any, dict[str, float]]:
    """Return the expected output and the error of the first one. Raises Unsupported."""
    setting = cell.setting
    try:
        return side_effects.compare_output(seen, first.output, setting.dtype, tf32=setting.tf32)
    except Unsupported as error:
        output_check.require_shapes(seen.outputs[0], first.output)  # shapes do not depend on random numbers
        if not side_effects.seeds_itself(first.network, arguments):
            raise
        where = cell.runtime.name if setting.dtype == "float32" else f"{cell.runtime.name} in {setting.dtype}"
        raise Unsupported(f"{SEEDED}, and {where} draws other numbers than eager float32") from error


def _side_effects_of(
    network: Any, arguments: tuple[Any, ...], setting: Setting, *, cast_weights: bool = True
) -> SideEffects:
    """Return the outputs of eager float32, the reference, and the side effects of the network.

    The reference is float64 where both the network and the cell are float64, and the network's own dtype where it runs
    in no other.
    """
    own = next(iter(dtype_cast.weight_dtypes(network)), "float32")
    has_double_input = any(str(getattr(value, "dtype", "")) == "torch.float64" for value in arguments)
    is_double = setting.dtype == "float64" and (own == "float64" or has_double_input)
    kinds = ["float64" if is_double else "float32"]
    kinds += [own] if own == setting.dtype not in kinds else []
    kinds = kinds if cast_weights else [setting.dtype]
    for kind in kinds:
        dtype = dtype_cast.torch_dtype(kind)
        with build_network.outside_of_inference_mode():
            network = dtype_cast.cast(network, dtype) if cast_weights else network
        try:
            return side_effects.detect(network, [dtype_cast.cast_any(value, dtype) for value in arguments])
        except RuntimeError as error:
            if kind == kinds[-1] or failure_reasons.out_of_memory_reason(error):
                raise
    raise AssertionError("there is at least one dtype")


def _explain_trace(
    error: TraceDiffers, runtime: Runtime, network: Any, arguments: tuple[Any, ...], seen: SideEffects | None
) -> Unsupported:
    """Return why a trace differs from the network: state or seeded random numbers, else control flow on data."""
    about = f"{runtime.name} runs a trace, which returns something else than this network"
    if seen and seen.changed_state:
        return Unsupported(f"{about}: it keeps state between calls ({side_effects.first_names(seen.changed_state)})")
    return Unsupported(f"{about}: {SEEDED}") if side_effects.seeds_itself(network, arguments) else error


def _call_from_bundle(spec: Mapping[str, Any], setting: Setting, emit: Emit) -> Call:
    """Return the call of a bundle's model, exported on another machine. Needs no torch. Raises Unsupported."""
    runtime = runtimes.get(spec["runtime"])
    if not isinstance(runtime, ModelFileRuntime):
        raise Unsupported(f"{runtime.name} runs no model files; measure it with `effbench run`")
    runtime.require(setting)
    inputs, expected = reference_io.load(setting.folder)
    with cpu.translate_out_of_memory():
        prepared = runtime.load([inputs], setting)
        output = prepared.call()
    # The export ran on another machine, so its time is left out.
    facts = {name: value for name, value in prepared.facts.items() if name != "prepare_s"}
    if not output_check.is_finite(output):
        facts["output"] = "not finite"
    notes, is_checkable = reference_io.load_notes(setting.folder)
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
        **device.runtime_settings(),
    )


def _call_from_export(
    runtime: ModelFileRuntime, spec: Mapping[str, Any], seed: int, device: Device, setting: Setting
) -> Call:
    """Return the call of a model that an earlier launch exported, without allocating the network's weights."""
    # Building on the meta device imports 75 MB of torch, which would count towards the peak memory.
    is_named = any(item["name"] for item in spec["inputs"])
    signature = network_builds.build_on_meta(spec["model"], spec["arguments"]) if is_named else None
    inputs = build_network.convert_inputs(build_network.inputs_of(spec, seed, device).make(signature, 1), setting)
    return runtime.load([as_arrays(each) for each in inputs], setting).call


def inference_mode_for(mode: str, device: Device) -> contextlib.AbstractContextManager[Any]:
    """Return inference mode, unless training. Entered once per process, so that calls need not enter it."""
    if device.kind == "fake" or mode == "train" or not device.uses_torch:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


@contextlib.contextmanager
def _translate_out_of_memory() -> Iterator[None]:
    """Translate out-of-memory errors into OutOfMemory. The first call may raise one before any block is timed."""
    import torch

    try:
        with cpu.translate_out_of_memory():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = first_line(error, 300)
        raise OutOfMemory(said) from error
