"""What one forward pass of a network costs, counted from shapes: the public face of this package."""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from effbench.core import inputs as core_inputs
from effbench.core.cost import Cost, Kernel, Traffic
from effbench.core.errors import InvalidValue, ModelError, NeedsValues
from effbench.core.inputs import Input
from effbench.core.plugins import BrokenPlugin
from effbench.cost import example_inputs, forked_call
from effbench.cost.costs import OpCost, Profile
from effbench.cost.familiar import keeps_nothing
from effbench.cost.formulas import PRODUCTS
from effbench.cost.fusion import fused_levels, traffic
from effbench.cost.parameter_count import parameters_of
from effbench.cost.records import Record, scaled_apart, stored_bytes
from effbench.cost.sandbox import (
    fake_twin,
    lent,
    meta_twin,
    quiet_torch,
    real_twin,
    signals_deferred,
    without_garbage_collection,
)
from effbench.cost.trace import Tensors, Trace, trace
from effbench.cost.trace_modes import Device, Refusal, TraceMode, count_in_cheapest_mode, home_of, parameters

_T = TypeVar("_T")

LAZY = nn.parameter.UninitializedParameter
DTYPES = core_inputs.FLOATS
Fed = Sequence[Any] | Mapping[str, Any]
"""What `core.inputs.described` takes: a shape, several shapes or `Input`s, or either by name."""


_DEPENDS = {"device": "the device it runs on", "values": "values", "refused": "an error that it catches"}


def profile(
    model: nn.Module,
    input_shape: Fed,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    inputs: tuple[Any, ...] | None = None,
    device: Device = "auto",
) -> Profile:
    """Count one forward pass in eval mode, as if the model had been moved with ``.to(dtype)``.

    The pass runs in a forked child of this process, so nothing of the network changes here. Two kinds of networks are
    counted in this process: those of known code alone (`familiar`), which keep no state, if there is no other thread,
    and all networks where there is no fork (Windows, macOS) or weights are on a GPU. Then weights, buffers, attributes
    of modules and torch's own state are put back, also when this raises, but not what the network keeps elsewhere.

    Memory access is ``weights + batch * activations`` of batch 1 wherever torch runs the same operators at both batch
    sizes. (nn.MultiheadAttention copies at batch 2 what it can view at batch 1.)

    Parameters
    ----------
    model
        The network. One of several dtypes that does not run in one is counted as it is (`core.inputs.runs_uncast`).
    input_shape
        Shape without the batch, or an example tensor with it; several of them or `Input`s for several inputs; a mapping
        for inputs by name. The values of tensors are used where the pass depends on them.
    batch
        Images per call. Default: that of the tensors, else 1.
    dtype
        Dtype of weights and inputs. Default: that of the tensors, else float32.
    inputs
        Values to pass instead, where random tensors will not do (a dictionary). `batch` is then only a label.
    device
        ``"meta"`` allocates no tensor data. ``"auto"`` falls back to real tensors where the pass looks at values;
        `cost.traced_on` names what was used.

    Returns
    -------
    Profile
        Counts of the network and of each operator.

    Raises
    ------
    ModelError
        Where the network refuses the input or fails.
    InvalidValue
        For an unknown dtype or a bad shape.
    """
    paths = _paths(model)
    feed = _fed(list(paths), input_shape, batch, dtype, inputs)
    dtype = feed.dtype
    try:
        return _profiled(paths, feed, device)
    except NeedsValues:
        raise
    except ModelError as error:
        own = _own_dtypes(model)
        if not set(own) - {dtype}:
            raise
        is_held = core_inputs.runs_uncast(own, dtype)
        try:
            found = _profiled(paths, replace(feed, casts=False, dtype=dtype if is_held else "float32"), device)
        except ModelError:
            raise error from None  # the cast is not the cause
        if is_held:
            return found
        advice = f" (--dtype {own[0]} takes it as it is)" if len(own) == 1 and own[0] in DTYPES else ""
        raise ModelError(
            f"{type(model).__name__} does not run as {dtype}: its weights are {' and '.join(own)}; effbench casts all "
            f"to one dtype, and its forward cannot run so{advice}"
        ) from error


def _profiled(paths: Mapping[nn.Module, str], feed: Feed, device: Device) -> Profile:
    model = next(iter(paths))
    is_alone = len(sys._current_frames()) == 1
    is_familiar = is_alone and feed.values is None and keeps_nothing(paths)
    _import_shape_rules()
    if not forked_call.can_fork() or (device != "meta" and home_of(model).type not in ("cpu", "meta")):
        return count_in_cheapest_mode(list(paths), device, lambda mode: _attempt(paths, feed, mode))

    def carry_out(mode: TraceMode) -> Profile | Refusal:
        if is_familiar and mode.tensors == "meta":
            with signals_deferred():
                return _attempt(paths, feed, mode)
        return apart(lambda: _attempt(paths, feed, mode, disposable=True))

    return count_in_cheapest_mode(list(paths), device, carry_out)


def count(
    model: nn.Module,
    input_shape: Fed,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    inputs: tuple[Any, ...] | None = None,
    device: Device = "auto",
) -> Profile:
    """As `profile`, but always in this process: for networks that keep no state outside of their modules.

    Raises ModelError, InvalidValue.
    """
    paths = _paths(model)
    feed = _fed(list(paths), input_shape, batch, dtype, inputs)
    _import_shape_rules()
    return count_in_cheapest_mode(list(paths), device, lambda mode: _attempt(paths, feed, mode))


def apart(carry_out: Callable[[], _T]) -> _T:
    """`carry_out()` in a forked child; in this process where there is no fork, or the child waits for what it lacks.

    A child may also wait for a lock that another thread of this process held when it was forked. A second child is most
    unlikely to, so only what stops both is put down to the network.

    Raises ModelError where the child was ended.
    """

    def alone() -> _T:
        torch.set_num_threads(1)  # fork does not copy the threads of the intra-op pool
        sys.setrecursionlimit(10 * sys.getrecursionlimit())  # hooks and operators add frames to those of a deep network
        return carry_out()

    if not forked_call.can_fork():
        return carry_out()
    _import_shape_rules()
    for _ in range(2):
        try:
            return forked_call.run(alone)
        except forked_call.ChildFailed as failure:
            if not failure.stuck:
                raise ModelError(f"the process that counted the network failed: {failure}") from failure
    found: _T = _partial(carry_out())
    return found


def _import_shape_rules() -> None:
    """Import what torch's shape rules in Python import when they first run.

    Here once instead of in every child, and not within a count in this process: torch._dynamo keeps for good what it
    finds in torch.Tensor, where the tracer has functions of its own meanwhile.
    """
    if "torch._dynamo" not in sys.modules:
        before = set(os.environ)
        with suppress(ImportError):
            importlib.import_module("torch._dynamo")
        for name in set(os.environ) - before:  # the imports set environment variables
            del os.environ[name]


def _partial(found: Any) -> Any:
    """The result of a count whose child waited: perhaps for a thread, whose operators the tracer does not see."""
    if not isinstance(found, Profile):
        return found
    uncounted = {"what it waited for": 1, **found.cost.uncounted}
    return replace(found, cost=replace(found.cost, status="partial", uncounted=uncounted))


def _paths(model: nn.Module) -> dict[nn.Module, str]:
    """The path of every module of the network, itself first."""
    model = getattr(model, "_orig_mod", model)  # unwrap torch.compile
    paths: dict[nn.Module, str] = {}
    waiting = [("", model)]
    while waiting:  # like `named_modules`, in a third of its time
        path, module = waiting.pop()
        if module not in paths:
            paths[module] = path
            start = f"{path}." if path else ""
            inner = [(start + name, part) for name, part in module._modules.items() if part is not None]
            waiting += inner[::-1]
    return paths


def _own_dtypes(model: nn.Module) -> tuple[str, ...]:
    held = (item for tensors in (model.parameters(), model.buffers()) for item in tensors)
    return tuple(dict.fromkeys(str(item.dtype).removeprefix("torch.") for item in held if item.is_floating_point()))


def _fed(
    modules: Sequence[nn.Module],
    input_shape: Fed,
    batch: int | None,
    dtype: str | None,
    inputs: tuple[Any, ...] | None,
) -> Feed:
    given = core_inputs.read(input_shape)
    batch = given.agreed_batch(batch)
    dtype = dtype or given.dtype or "float32"
    if dtype not in DTYPES:
        raise InvalidValue(f"dtype (='{dtype}') is not one that can be counted; use one of {', '.join(DTYPES)}")
    if any([item.__class__ is LAZY for item in parameters(modules)]):
        raise ModelError(
            f"{type(modules[0]).__name__} has lazy layers without shapes; run it once on real data before profiling"
        )
    return Feed(given.inputs, batch, dtype, inputs, tensors=example_inputs.plain(given))


@dataclass(frozen=True)
class Feed:
    """What one network is run on: described inputs, those passed as `tensors` with their values, or the `values` given
    instead of them."""

    inputs: tuple[Input, ...]
    batch: int
    dtype: str
    values: tuple[Any, ...] | None = None
    casts: bool = True
    """Whether the weights are cast to `dtype` too, or left as they are."""
    tensors: tuple[Any, ...] = ()
    """By input, None where it has no values of its own (`example_inputs.plain`)."""

    def on(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by name: the values, or seeded ones of the shapes (none on meta)."""
        if self.values is not None:
            return tuple(_placed(item, device, getattr(torch, self.dtype)) for item in self.values), {}
        return example_inputs.make(self.inputs, self.batch, self.dtype, str(device), tensors=self.tensors)

    def __str__(self) -> str:
        return " and ".join(str(replace(item, shape=(self.batch, *item.shape))) for item in self.inputs)


@without_garbage_collection()
def _attempt(
    paths: Mapping[nn.Module, str], feed: Feed, mode: TraceMode, *, disposable: bool = False
) -> Profile | Refusal:
    """Count the network in one trace mode, or return why that cannot be done.

    `paths` are all its modules, itself first. Where it is `disposable` it may be written to: it is itself a copy, of a
    child process.
    """
    model = next(iter(paths))
    kind = getattr(torch, feed.dtype) if feed.casts else None
    home = home_of(model)
    home = home if home.type != "meta" else torch.device("cpu")
    fake_mode = None
    try:
        with quiet_torch(grad=mode.grad):
            if mode.tensors == "meta":
                place, twin = torch.device("meta"), meta_twin(kind)
            elif mode.tensors == "real":
                place, twin = home, real_twin(kind, copied=not disposable)
            else:
                from torch._subclasses.fake_tensor import FakeTensorMode

                fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
                place, twin = home, fake_twin(kind, fake_mode, home)
            with lent(paths, twin):
                found = _traced(model, paths, feed, mode.tensors, place, home, fake_mode)
    except BrokenPlugin:  # no fault of the network
        raise
    except Exception as error:
        return Refusal.of(error, model, feed)
    if found.is_bounded and not mode.bounds and not any(item.is_meta for item in parameters(list(paths))):
        found = replace(found, doubt="values")
    if found.doubt:
        reason = f"what it does depends on {_DEPENDS[found.doubt]}"
        return Refusal(found.doubt, "", reason, f"{type(model).__name__} cannot be counted without values: {reason}")
    return _summed(model, list(paths), feed, found, "meta" if mode.tensors == "fake" else place.type)


def _traced(
    model: nn.Module,
    paths: Mapping[nn.Module, str],
    feed: Feed,
    tensors: Tensors,
    place: torch.device,
    home: torch.device,
    mode: Any,
) -> Trace:
    def once(feed: Feed) -> Trace:
        args, named = feed.on(torch.device("meta") if tensors == "fake" else place)
        if tensors == "fake":
            fake = fake_twin(getattr(torch, feed.dtype), mode, place)
            args, named = _mapped(args, fake), _mapped(named, fake)
        return trace(model, args, named, paths=paths, tensors=tensors, home=home, mode=mode)

    found = once(feed)
    if feed.values is None and any(access.constant for record in found.records for access in record.writes):
        # A constant may be repeated once per image, such as a class token; tracing at a larger batch shows it. Twice as
        # large rather than 1 and 2, since some operators run only at batch 1.
        with suppress(Exception):
            again = once(replace(feed, batch=2 * feed.batch))
            return replace(found, records=scaled_apart(found.records, again.records))
    return found


def _summed(model: nn.Module, modules: Sequence[nn.Module], feed: Feed, found: Trace, traced_on: str) -> Profile:
    records, leaving = found.records, found.leaving
    ops = tuple(_op_cost(record) for record in records)
    uncounted = Counter(op.op for op in ops if op.kind == "unknown")
    kernels = {
        "layer": _layers(records, ops),
        "eager": tuple(Kernel(op.madds, op.traffic) for op in ops),
        **fused_levels(records, leaving),
    }
    cost = Cost(
        params=parameters_of(modules),
        madds=sum(op.madds for op in ops),
        activations=sum(op.activations for op in ops),
        elementwise=sum(op.elementwise for op in ops),
        memory_access_levels={
            level: Traffic.total([kernel.traffic for kernel in each]) for level, each in kernels.items()
        },
        status="partial" if uncounted else "complete",
        uncounted=dict(uncounted),
        traced_on=traced_on,
    )
    shape, beyond = core_inputs.plain_shape(feed.inputs), core_inputs.beyond_shape(feed.inputs)
    return Profile(type(model).__name__, shape, feed.batch, feed.dtype, cost, ops, kernels, beyond)


def _layers(records: Sequence[Record], ops: Sequence[OpCost]) -> tuple[Kernel, ...]:
    """The level "layer": products alone, with quantised weights read as they are held."""
    held = stored_bytes(records)

    def moved(record: Record, op: OpCost) -> Traffic:
        if not held or not any(access.value in held for access in record.reads):
            return op.traffic
        reads = [
            access._replace(bytes=held[access.value]) if access.value in held else access for access in record.reads
        ]
        return traffic((*reads, *record.writes))

    pairs = zip(records, ops, strict=True)
    return tuple(Kernel(op.madds, moved(record, op)) for record, op in pairs if op.kind in PRODUCTS)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, function) for item in value)
    return value


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return _mapped(value, lambda item: item.detach().to(device, dtype if item.is_floating_point() else item.dtype))


def _op_cost(record: Record) -> OpCost:
    cost, moved = record.cost, traffic((*record.reads, *record.writes))
    written = sum([access.elements for access in record.writes])
    weights_written = sum([access.elements for access in record.writes if access.constant])
    return OpCost(
        module=record.module,
        module_type=record.module_type,
        call=record.call,
        op=record.op,
        kind=cost.formula.kind,
        input_shapes=cost.inputs,
        output_shapes=cost.outputs,
        madds=cost.madds,
        activations=cost.activations,
        elementwise=cost.elementwise,
        weights_read=moved.weights - weights_written,
        activations_read=moved.activations - (written - weights_written),
        written=written,
        traffic=moved,
    )
