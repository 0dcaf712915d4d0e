"""A network timed in this process, for those who cannot start a fresh one: a test under pytest.

What a worker sets for good is set here for as long as it takes, and put back.
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
from effbench.core.options import Allocator
from effbench.core.run import Block, Timing
from effbench.core.study import Sampling
from effbench.cost import example_inputs
from effbench.devices import Call, Device
from effbench.devices._torch_cuda import TorchCuda
from effbench.runtimes import Setting, copies
from effbench.timing import block_loop, dtype_cast, side_effects
from effbench.user_code import failure_reasons, global_state
from effbench.user_code._warning_filters import set_warning_filters, warning_filters
from effbench.user_code.module_state import Snapshot
from effbench.user_code.random_state import RandomState
from effbench.user_code.training_flags import Modes

if TYPE_CHECKING:
    from torch import nn

SEED = 0
_CELL = "here"

COOLS_S = 10.0
"""A GPU that was measured on this long ago or less is still warm: it is not loaded for seconds again."""

_used_s: dict[str, float] = {}
"""When each GPU was last measured on in this process."""


@dataclass(frozen=True)
class Prepared:
    """A network ready to be called on its device, what it costs, and what is odd about it (`effects`).

    `network` is a copy of the one that was given, or that one where nobody can copy it.
    """

    device: Device
    call: Call
    network: nn.Module
    threads: int
    costs: Cost | None
    costs_missing: str = ""
    oddities: tuple[str, ...] = ()
    modes: str = ""
    """What its first calls did to the modes of its modules (`Modes.told`)."""
    changes: tuple[global_state.Change, ...] = ()
    """What its first calls have set for the whole process."""
    left: str = "put back"
    """What has become of those changes."""
    filters: tuple[Any, ...] | None = None
    """Filters of warnings as its first calls left them: a library that it imports there hides its own for good."""
    spoilt: list[str] = field(default_factory=list)
    """What calls under `conditions` have set, which is known when these end."""
    _late: list[global_state.Change] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of it, each fault once: after `conditions` also what calls under these have set."""
        late = {change.switch.name for change in self._late}
        early = [change for change in self.changes if change.switch.name not in late]
        said = [f"its forward {self.modes}"] if self.modes else []
        said += [f"its forward sets {global_state.told(early)}; {self.left}"] if early else []
        return (*self.oddities, *said, *self.spoilt)

    @contextlib.contextmanager
    def conditions(self, allocator: str) -> Iterator[str]:
        """Those of a launch, and afterwards everything of torch's and Python's as it was: the network too, what its
        code keeps in globals, and random states (`snapshot`).

        `allocator` "retain" stays, since glibc cannot be asked for its thresholds. Yields the policy that holds, which
        is "system" where the one asked for cannot be had. Raises UnknownName, ModelError for a network that computes
        gradients in its forward.
        """
        import torch

        if allocator not in (known := get_args(Allocator)):
            raise UnknownName("allocator", allocator, known)
        state, random = Snapshot(self.network), RandomState()
        kept = allocator == "retain" and self.device.kind == "cpu" and _keep_freed_pages()
        gpu = TorchCuda(0) if self.device.kind == "cuda" else None
        before = (gpu.policy(), gpu.selected()) if gpu else None
        stack = contextlib.ExitStack()
        try:
            # Threads, denormals, tracers and the garbage collector are switches too.
            stack.enter_context(global_state.kept())
            if self.filters:
                set_warning_filters(self.filters)
            stack.enter_context(_in_eval_mode(self.network))
            if gpu:
                self.device.setup()
            else:
                # What a worker does in setup(), less the inter-op threads, which a process can set only once.
                torch.set_num_threads(self.threads)
                torch.set_flush_denormal(True)
            sys.settrace(None)
            sys.setprofile(None)
            gc.collect()
            gc.disable()
            with torch.inference_mode(), self._watched():
                yield "retain" if kept else "system"
        finally:
            if gpu and before:
                policy, index = before
                gpu.set_policy(policy)
                if gpu.selected() != index:
                    TorchCuda(index).select()
                _used_s[self.device.name] = time.monotonic()
            stack.close()
            state.restore()
            random.restore()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Put back what the calls set, and note it: some of them ran under other settings than the rest."""
        held, modes = global_state.held(self.device), Modes(self.network)
        try:
            yield
        except RuntimeError as error:
            if failure_reasons.wants_gradients(error):
                raise ModelError(failure_reasons.GRADIENTS) from error
            raise
        finally:
            if changes := held.put_back():
                self._late.extend(changes)
                self.spoilt.append(
                    f"its forward sets {global_state.told(changes)} while it is timed; take that out of it"
                )
            if (said := modes.told()) and not self.modes:
                self.spoilt.append(f"its forward {said}")


def prepare(
    network: nn.Module,
    shape: Any,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int = 1,
    is_ours: bool = False,
) -> Prepared:
    """A copy of the network on its device with seeded inputs, and counted. Nothing about the network itself changes;
    where nobody can copy it, it is measured itself and put back. One that `is_ours` needs no copy.

    There are as many inputs as in a launch, so that on a GPU none is in the L2 cache when it comes round again.

    `shape` is what `core.inputs.read` takes: `batch` and `dtype` default to those of the tensors in it, else to 1 and
    the network's own dtype; so does `device`. Raises InvalidValue, UnknownName, DeviceUnavailable; on the scripted
    device ModelError for a network that cannot be counted.

    What a call of the network sets for the whole process is put back, and noted.
    """
    with global_state.kept() as held:
        prepared = _prepared(network, shape, batch, dtype, device, threads, is_ours=is_ours)
        filters: tuple[Any, ...] | None = warning_filters()
        changes = held.put_back()
    filters = None if filters == warning_filters() else filters
    return replace(prepared, changes=changes, left=held.spoiled or prepared.left, filters=filters)


def _prepared(
    network: nn.Module,
    shape: Any,
    batch: int | None,
    dtype: str | None,
    device: str | None,
    threads: int,
    *,
    is_ours: bool,
) -> Prepared:
    """`prepare`, which leaves changed what the network changes for the whole process."""
    import torch

    from effbench import cost

    given_inputs = core_inputs.read(shape)
    batch = given_inputs.agreed_batch(batch)
    dtype = (given_inputs.dtype or own_dtype(network)) if dtype is None else dtype
    device = own_device(network) if device is None else device
    place = devices.get(device, **_options(device, threads))
    costs, missing = None, ""
    try:
        costs = cost.profile(network, shape, batch=batch, dtype=dtype).cost
    except ModelError as error:
        missing = str(error)
    if place.kind == "fake":
        if costs is None:
            raise ModelError(missing)
        return Prepared(place, place.bind(None, costs.to_dict()), network, threads or 1, costs)
    is_moved = dtype != own_dtype(network) or device != own_device(network)
    given = network
    if not is_ours:
        network = copies.of(network) or _uncopied(network, dtype, device, is_moved=is_moved)
    if is_moved:
        network = dtype_cast.cast(place.place(network), getattr(torch, dtype))
    inputs = _fed(network, given_inputs, batch, dtype, place)
    seen = _looked_at(network, inputs[0])
    if seen is None and network is not given and not is_moved and (seen := _looked_at(given, inputs[0])):
        network = given  # its copy has lost something, such as what is in `__slots__`
    called = side_effects.on_copies(network) if seen and seen.reshapes else network
    call = runtimes.get("eager").prepare(called, inputs, Setting(Path(), place.kind)).call
    if seen and seen.writes and not seen.reshapes:
        call = side_effects.renewing(call, inputs, _fed(network, given_inputs, batch, dtype, place))
    threads, (notes, modes) = getattr(place, "threads", 1), (seen.notes, seen.modes) if seen else ((), "")
    return Prepared(place, place.bind(call, {}), network, threads, costs, missing, notes, modes)


def _looked_at(network: nn.Module, arguments: tuple[Any, ...]) -> side_effects.Seen | None:
    """What it does beside computing; None where it raises. Where it is called it raises that again, for its user."""
    with _in_eval_mode(network), contextlib.suppress(Exception):
        return side_effects.look(network, arguments)
    return None


def _uncopied(network: nn.Module, dtype: str, device: str, *, is_moved: bool) -> nn.Module:
    """The network itself. Raises ModelError where it would have to change for good."""
    if is_moved:
        raise ModelError(
            f"{type(network).__name__} cannot be copied, and to be measured as {dtype} on {device} it would have to be "
            "changed; build it so, or leave out dtype and device"
        )
    return network


@contextlib.contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Afterwards every submodule is in the mode that it was in."""
    # A network that torch.jit.freeze has returned has no mode any more.
    modes = [(module, module.training) for module in network.modules() if hasattr(module, "training")]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _options(device: str, threads: int) -> dict[str, Any]:
    kind = devices.kind_of(device)
    if kind == "cpu":
        return {"threads": threads}
    is_warm = kind == "cuda" and time.monotonic() - _used_s.get(device, -COOLS_S) < COOLS_S
    return {"warm_up_s": 0.0} if is_warm else {}


def _fed(
    network: nn.Module, given: core_inputs.GivenInputs, batch: int, dtype: str, device: Device
) -> list[tuple[Any, ...]]:
    """What each call passes, in turn."""
    import torch

    described, tensors = given.inputs, example_inputs.plain(given)
    args, named = example_inputs.make(described, batch, dtype, "meta")
    number = device.rotations(sum(tensor.nbytes for tensor in (*args, *named.values())))
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for _ in range(number):
        args, named = example_inputs.make(described, batch, dtype, seed=generator, tensors=tensors)
        passed = example_inputs.positional(network, args, named) if named else args
        found.append(tuple(device.place(item) if isinstance(item, torch.Tensor) else item for item in passed))
    return found


def blocks(prepared: Prepared, sampling: Sampling) -> tuple[int, bool, tuple[Timing, ...]]:
    """Warm up, then blocks until enough is known: calls in a block, whether the state was steady, the blocks."""
    warm, calls = block_loop.warm_up(prepared.device, prepared.call, _CELL, None, sampling)
    task = block_loop.Slice(0, SEED, 0, sampling.budget_s, {})
    ready = block_loop.warm_blocks([warm], {_CELL: calls}, alone=True)
    told: Iterator[Block | str] = block_loop.rounds(
        prepared.device, {_CELL: prepared.call}, {_CELL: calls}, sampling, task, warm=ready
    )
    return calls, warm.steady, tuple(item.timing for item in told if isinstance(item, Block))


def own_dtype(network: nn.Module) -> str:
    """The dtype of the first weight that is a number with a fraction; float32 without one."""
    return dtype_cast.own_dtype(network)


def own_device(network: nn.Module) -> str:
    """The name of the device that the first weight is on; "cpu" without one."""
    place = next((str(weight.device) for weight in (*network.parameters(), *network.buffers())), "cpu")
    return "cuda" if place == "cuda:0" else place


@functools.cache
def _keep_freed_pages() -> bool:
    """Make glibc keep big freed blocks in this process, as a worker's environment does; False where it cannot."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # <malloc.h>
    # One of the two alone does not keep them. An older glibc takes no threshold above 32 MB.
    done = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)
    return bool(done and mallopt(trim_threshold, (1 << 31) - 1) and mallopt(top_pad, 64 << 20))
