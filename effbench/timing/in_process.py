"""Time a network in the current process, for tests under pytest.

The process-wide settings of a worker hold during the measurement and are restored afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from effbench import devices, runtimes
from effbench.core import inputs as core_inputs
from effbench.core.cost import Cost
from effbench.core.errors import ModelError, UnknownName
from effbench.core.measure_options import Allocator
from effbench.core.run import Block, Timing
from effbench.core.study import Sampling
from effbench.cost import example_inputs
from effbench.devices import Call, Device
from effbench.devices.torch_cuda import TorchCuda
from effbench.runtimes import Setting, copy_network
from effbench.timing import block_loop, dtype_cast, side_effects
from effbench.timing.rotating_inputs import RotatingInputs
from effbench.user_code import failure_reasons, global_state
from effbench.user_code._warning_filters import set_warning_filters, warning_filters
from effbench.user_code.module_state import Snapshot
from effbench.user_code.random_state import RandomState
from effbench.user_code.training_flags import TrainingFlags

if TYPE_CHECKING:
    from torch import nn

SEED = 0
_CELL = "here"

STAYS_WARM_S = 10.0
"""A GPU that was used at most this long ago is still warm and needs no warm-up load."""

_used_s: dict[str, float] = {}
"""When each GPU was last used in this process, by `time.monotonic`."""


@dataclass(frozen=True)
class TimedNetwork:
    """A network to time in this process: its call on its device, its costs, and notes on its side effects.

    `network` is a copy of the given one, or the given one itself if it cannot be copied.
    """

    device: Device
    call: Call
    network: nn.Module
    threads: int
    costs: Cost | None
    costs_missing: str = ""
    side_effect_notes: tuple[str, ...] = ()
    training_flag_changes: str = ""
    """How its first calls changed the training flags of its modules (`TrainingFlags.changes_text`)."""
    changes: tuple[global_state.Change, ...] = ()
    """Process-wide settings that its first calls changed."""
    outcome: str = "put back"
    """What became of those changes: "put back", or the setting that could not be restored."""
    filters: tuple[Any, ...] | None = None
    """Warning filters after its first calls: a library that they import may install filters, and does so only once."""
    late_notes: list[str] = field(default_factory=list)
    """Notes on settings that calls under `conditions` changed, complete when `conditions` ends."""
    _late_changes: list[global_state.Change] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, each once; after `conditions` also on settings that calls under it changed."""
        late = {change.setting.name for change in self._late_changes}
        early = [change for change in self.changes if change.setting.name not in late]
        said = [f"its forward {self.training_flag_changes}"] if self.training_flag_changes else []
        said += [f"its forward sets {global_state.describe_changes(early)}; {self.outcome}"] if early else []
        return (*self.side_effect_notes, *said, *self.late_notes)

    @contextlib.contextmanager
    def conditions(self, allocator: str) -> Iterator[str]:
        """Set the measuring conditions of a launch, and restore all of torch's and Python's settings afterwards.

        The network, globals of its code and random states are restored too (`module_state`). `allocator` "retain" stays
        in force, since glibc's thresholds cannot be queried. Yields the allocator policy in force: "system" where the
        requested one is not available. Raises UnknownName, and ModelError for a network that computes gradients in its
        forward.
        """
        import torch

        if allocator not in (known := get_args(Allocator)):
            raise UnknownName("allocator", allocator, known)
        state, random = Snapshot(self.network), RandomState()
        kept = allocator == "retain" and self.device.kind == "cpu" and _keep_freed_pages()
        gpu = TorchCuda(0) if self.device.kind == "cuda" else None
        before = (gpu.policy(), gpu.current_device()) if gpu else None
        stack = contextlib.ExitStack()
        try:
            # This also restores threads, denormals, tracers and the garbage collector.
            stack.enter_context(global_state.settings_restored())
            if self.filters:
                set_warning_filters(self.filters)
            stack.enter_context(_in_eval_mode(self.network))
            if gpu:
                self.device.setup()
            else:
                # As setup() in a worker, without inter-op threads, which a process can set only once.
                torch.set_num_threads(self.threads)
                torch.set_flush_denormal(True)
            sys.settrace(None)
            sys.setprofile(None)
            gc.collect()
            gc.disable()
            with torch.inference_mode(), self._note_changes():
                yield "retain" if kept else "system"
        finally:
            if gpu and before:
                policy, index = before
                gpu.set_policy(policy)
                if gpu.current_device() != index:
                    TorchCuda(index).set_device()
                _used_s[self.device.name] = time.monotonic()
            stack.close()
            state.restore()
            random.restore()

    @contextlib.contextmanager
    def _note_changes(self) -> Iterator[None]:
        """Restore settings that the calls changed, and note them: some calls ran under other settings than the rest."""
        guard, modes = global_state.guard_for(self.device), TrainingFlags(self.network)
        try:
            yield
        except RuntimeError as error:
            if failure_reasons.wants_gradients(error):
                raise ModelError(failure_reasons.GRADIENTS_ADVICE) from error
            raise
        finally:
            if changes := guard.restore():
                self._late_changes.extend(changes)
                self.late_notes.append(
                    f"its forward sets {global_state.describe_changes(changes)} while it is timed; take that out of it"
                )
            if (said := modes.changes_text()) and not self.training_flag_changes:
                self.late_notes.append(f"its forward {said}")


def prepare(
    network: nn.Module,
    shape: Any,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int = 1,
    is_ours: bool = False,
) -> TimedNetwork:
    """Copy the network to its device, make seeded inputs, and count its costs.

    The given network does not change. If it cannot be copied, it is measured itself and restored afterwards. A network
    that effbench built (`is_ours`) is not copied.

    There are as many inputs as in a launch, so that on a GPU an input has left the L2 cache before it is used again.
    Process-wide settings that a call of the network changes are restored and noted.

    `shape` is what `core.inputs.normalise` takes: `batch` and `dtype` default to those of the tensors in it, else to 1
    and the network's own dtype; so does `device`. Raises InvalidValue, UnknownName, DeviceUnavailable; on the scripted
    device ModelError for a network that cannot be counted.
    """
    with global_state.settings_restored() as guard:
        prepared = _prepare(network, shape, batch, dtype, device, threads, is_ours=is_ours)
        filters: tuple[Any, ...] | None = warning_filters()
        changes = guard.restore()
    filters = None if filters == warning_filters() else filters
    return replace(prepared, changes=changes, outcome=guard.unrestored or prepared.outcome, filters=filters)


def _prepare(
    network: nn.Module,
    shape: Any,
    batch: int | None,
    dtype: str | None,
    device: str | None,
    threads: int,
    *,
    is_ours: bool,
) -> TimedNetwork:
    """Do the work of `prepare`, without restoring process-wide settings."""
    import torch

    from effbench import cost

    given_inputs = core_inputs.normalise(shape)
    batch = given_inputs.agreed_batch(batch)
    dtype = (given_inputs.dtype or dtype_cast.own_dtype(network)) if dtype is None else dtype
    device = own_device(network) if device is None else device
    place = devices.get(device, **_device_options(device, threads))
    costs, missing = None, ""
    try:
        costs = cost.profile(network, shape, batch=batch, dtype=dtype).cost
    except ModelError as error:
        missing = str(error)
    if place.kind == "fake":
        if costs is None:
            raise ModelError(missing)
        return TimedNetwork(place, place.bind(None, costs.to_dict()), network, threads or 1, costs)
    is_moved = dtype != dtype_cast.own_dtype(network) or device != own_device(network)
    given = network
    if not is_ours:
        network = copy_network.deep_copy(network) or _refuse_conversion(network, dtype, device, is_moved=is_moved)
    if is_moved:
        network = dtype_cast.cast(place.place(network), getattr(torch, dtype))
    rotating = RotatingInputs(
        given_inputs.inputs, batch, dtype, SEED, place, tensors=example_inputs.values_of(given_inputs)
    )
    inputs = rotating.make(network, rotating.number())
    seen = _side_effects_of(network, inputs[0])
    if seen is None and network is not given and not is_moved and (seen := _side_effects_of(given, inputs[0])):
        network = given  # the copy does not run: it lacks something, such as attributes in `__slots__`
    called = side_effects.with_cloned_inputs(network) if seen and seen.reshapes_input else network
    call = runtimes.get("eager").prepare(called, inputs, Setting(Path(), place.kind)).call
    if seen and seen.writes_input and not seen.reshapes_input:
        call = side_effects.with_restorable_inputs(call, inputs, rotating.make(network, len(inputs)))
    threads, (notes, modes) = (
        getattr(place, "threads", 1),
        (seen.notes(), seen.training_flag_changes) if seen else ((), ""),
    )
    return TimedNetwork(place, place.bind(call, {}), network, threads, costs, missing, notes, modes)


def _side_effects_of(network: nn.Module, arguments: tuple[Any, ...]) -> side_effects.SideEffects | None:
    """Return the side effects of the network, or None if it raises. The measured call will raise the same again."""
    with _in_eval_mode(network), contextlib.suppress(Exception):
        return side_effects.detect(network, arguments)
    return None


def _refuse_conversion(network: nn.Module, dtype: str, device: str, *, is_moved: bool) -> nn.Module:
    """Return the network itself. Raises ModelError where it would have to be changed permanently."""
    if is_moved:
        raise ModelError(
            f"{type(network).__name__} cannot be copied, and to be measured as {dtype} on {device} it would have to be "
            "changed; build it with that dtype on that device, or leave out both"
        )
    return network


@contextlib.contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode, and restore the mode of every submodule afterwards."""
    # Modules returned by torch.jit.freeze have no training flag.
    modes = [(module, module.training) for module in network.modules() if hasattr(module, "training")]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _device_options(device: str, threads: int) -> dict[str, Any]:
    kind = devices.kind_of(device)
    if kind == "cpu":
        return {"threads": threads}
    is_warm = kind == "cuda" and time.monotonic() - _used_s.get(device, -STAYS_WARM_S) < STAYS_WARM_S
    return {"warm_up_s": 0.0} if is_warm else {}


def time_blocks(prepared: TimedNetwork, sampling: Sampling) -> tuple[int, bool, tuple[Timing, ...]]:
    """Warm up and time blocks until a stopping rule ends it.

    Returns the calls per block, whether the warm-up became steady, and the timings.
    """
    warm, calls = block_loop.warm_up(prepared.device, prepared.call, _CELL, None, sampling)
    task = block_loop.LaunchTask(0, SEED, 0, sampling.budget_s, {})
    ready = block_loop.cells_with_long_blocks([warm], {_CELL: calls}, alone=True)
    told: Iterator[Block | str] = block_loop.measure_rounds(
        prepared.device, {_CELL: prepared.call}, {_CELL: calls}, sampling, task, long_blocks=ready
    )
    return calls, warm.steady, tuple(item.timing for item in told if isinstance(item, Block))


def own_device(network: nn.Module) -> str:
    """Return the name of the device of the first weight; "cpu" without one."""
    place = next((str(weight.device) for weight in (*network.parameters(), *network.buffers())), "cpu")
    return "cuda" if place == "cuda:0" else place


@functools.cache
def _keep_freed_pages() -> bool:
    """Make glibc keep large freed blocks in this process, as a worker's environment does. Returns False on failure."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # <malloc.h>
    # Both thresholds are needed. An older glibc takes no mmap threshold above 32 MB.
    done = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)
    return bool(done and mallopt(trim_threshold, (1 << 31) - 1) and mallopt(top_pad, 64 << 20))
