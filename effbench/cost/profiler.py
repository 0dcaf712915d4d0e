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
from effbench.core.inputs import Input, InputsLike
from effbench.core.plugins import BrokenPlugin
from effbench.cost import example_inputs, forked_call
from effbench.cost.costs import OpCost, Profile
from effbench.cost.formulas import PRODUCTS
from effbench.cost.fusion import fused_levels, traffic
from effbench.cost.known_code import is_known_code
from effbench.cost.parameter_count import parameters_of
from effbench.cost.records import Record, mark_batch_constants, stored_bytes
from effbench.cost.sandbox import (
    defer_signals,
    fake_twin,
    meta_twin,
    quiet_torch,
    real_twin,
    replace_tensors,
    without_garbage_collection,
)
from effbench.cost.trace import Tensors, Trace, trace
from effbench.cost.trace_modes import Device, FailedAttempt, TraceMode, count_in_cheapest_mode, device_of, parameters

_T = TypeVar("_T")

LAZY = nn.parameter.UninitializedParameter
DTYPES = core_inputs.FLOATS


_DOUBT_TEXTS = {"device": "the device it runs on", "values": "values", "refused": "an error that it catches"}


def profile(
    model: nn.Module,
    input_shape: InputsLike,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    inputs: tuple[Any, ...] | None = None,
    device: Device = "auto",
) -> Profile:
    """Count one forward pass in eval mode, as if the model had been moved with ``.to(dtype)``.

    The pass runs in a forked child of this process, so nothing of the network changes here. Two kinds of networks are
    counted in this process: those of known code alone (`known_code`), which keep no state, if there is no other thread,
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
    paths = _module_paths(model)
    model_inputs = _model_inputs(list(paths), input_shape, batch, dtype, inputs)
    dtype = model_inputs.dtype
    try:
        return _profile(paths, model_inputs, device)
    except NeedsValues:
        raise
    except ModelError as error:
        own = _dtypes_of(model)
        if not set(own) - {dtype}:
            raise
        runs_as_is = core_inputs.runs_uncast(own, dtype)
        try:
            found = _profile(
                paths, replace(model_inputs, casts=False, dtype=dtype if runs_as_is else "float32"), device
            )
        except ModelError:
            raise error from None  # the cast is not the cause
        if runs_as_is:
            return found
        advice = f" (--dtype {own[0]} takes it as it is)" if len(own) == 1 and own[0] in DTYPES else ""
        raise ModelError(
            f"{type(model).__name__} does not run as {dtype}: its weights are {' and '.join(own)}; effbench casts all "
            f"to one dtype, and its forward cannot run so{advice}"
        ) from error


def _profile(paths: Mapping[nn.Module, str], model_inputs: ModelInputs, device: Device) -> Profile:
    model = next(iter(paths))
    is_alone = len(sys._current_frames()) == 1
    is_known = is_alone and model_inputs.values is None and is_known_code(paths)
    _import_shape_rules()
    if not forked_call.can_fork() or (device != "meta" and device_of(model).type not in ("cpu", "meta")):
        return count_in_cheapest_mode(list(paths), device, lambda mode: _attempt(paths, model_inputs, mode))

    def carry_out(mode: TraceMode) -> Profile | FailedAttempt:
        if is_known and mode.tensors == "meta":
            with defer_signals():
                return _attempt(paths, model_inputs, mode)
        return run_in_child_process(lambda: _attempt(paths, model_inputs, mode, disposable=True))

    return count_in_cheapest_mode(list(paths), device, carry_out)


def count(
    model: nn.Module,
    input_shape: InputsLike,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    inputs: tuple[Any, ...] | None = None,
    device: Device = "auto",
) -> Profile:
    """As `profile`, but always in this process: for networks that keep no state outside of their modules.

    Raises ModelError, InvalidValue.
    """
    paths = _module_paths(model)
    model_inputs = _model_inputs(list(paths), input_shape, batch, dtype, inputs)
    _import_shape_rules()
    return count_in_cheapest_mode(list(paths), device, lambda mode: _attempt(paths, model_inputs, mode))


def run_in_child_process(carry_out: Callable[[], _T]) -> _T:
    """Return `carry_out()`, computed in a forked child; in this process if it cannot fork, or the child hangs.

    A child hangs if it waits for a thread that a fork does not copy, or for a lock that another thread held when this
    process was forked. The latter is unlikely to happen twice, so a second child is tried first.

    Raises ModelError if the child was killed or exited.
    """

    def in_child() -> _T:
        torch.set_num_threads(1)  # fork does not copy the threads of the intra-op pool
        sys.setrecursionlimit(10 * sys.getrecursionlimit())  # hooks and operators add frames to those of a deep network
        return carry_out()

    if not forked_call.can_fork():
        return carry_out()
    _import_shape_rules()
    for _ in range(2):
        try:
            return forked_call.run(in_child)
        except forked_call.ChildFailed as failure:
            if not failure.stuck:
                raise ModelError(f"the process that counted the network failed: {failure}") from failure
    found: _T = _as_partial(carry_out())
    return found


def _import_shape_rules() -> None:
    """Import the modules that torch's shape functions in Python import when they first run.

    Imported here, they need not be imported in every child. They must not be imported during a count in this process
    either: torch._dynamo stores the attributes of torch.Tensor, some of which the tracer has then replaced.
    """
    if "torch._dynamo" not in sys.modules:
        before = set(os.environ)
        with suppress(ImportError):
            importlib.import_module("torch._dynamo")
        for name in set(os.environ) - before:  # the imports set environment variables
            del os.environ[name]


def _as_partial(found: Any) -> Any:
    """Mark the count of a network whose child hung as partial: the tracer may not have seen all its threads."""
    if not isinstance(found, Profile):
        return found
    uncounted = {"what it waited for": 1, **found.cost.uncounted}
    return replace(found, cost=replace(found.cost, status="partial", uncounted=uncounted))


def _module_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Return the path of every module of the network, the network itself first."""
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


def _dtypes_of(model: nn.Module) -> tuple[str, ...]:
    tensors = (item for each in (model.parameters(), model.buffers()) for item in each)
    return tuple(dict.fromkeys(str(item.dtype).removeprefix("torch.") for item in tensors if item.is_floating_point()))


def _model_inputs(
    modules: Sequence[nn.Module],
    input_shape: InputsLike,
    batch: int | None,
    dtype: str | None,
    inputs: tuple[Any, ...] | None,
) -> ModelInputs:
    given = core_inputs.normalise(input_shape)
    batch = given.agreed_batch(batch)
    dtype = dtype or given.dtype or "float32"
    if dtype not in DTYPES:
        raise InvalidValue(f"dtype (='{dtype}') is not one that can be counted; use one of {', '.join(DTYPES)}")
    if any([item.__class__ is LAZY for item in parameters(modules)]):
        raise ModelError(
            f"{type(modules[0]).__name__} has lazy layers without shapes; run it once on real data before profiling"
        )
    return ModelInputs(given.inputs, batch, dtype, inputs, tensors=example_inputs.values_of(given))


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of one network: descriptions, and the tensors or other values that the caller passed, if any."""

    inputs: tuple[Input, ...]
    batch: int
    dtype: str
    values: tuple[Any, ...] | None = None
    """Arguments to pass instead of tensors made from `inputs`."""
    casts: bool = True
    """Whether the weights are cast to `dtype` too, or left as they are."""
    tensors: tuple[Any, ...] = ()
    """The tensor of each input, None for random values (`example_inputs.values_of`)."""

    def arguments(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments of the call, on this device. Tensors on meta have no values."""
        if self.values is not None:
            return tuple(_to_device(item, device, getattr(torch, self.dtype)) for item in self.values), {}
        return example_inputs.make(self.inputs, self.batch, self.dtype, str(device), tensors=self.tensors)

    def __str__(self) -> str:
        return " and ".join(str(replace(item, shape=(self.batch, *item.shape))) for item in self.inputs)


@without_garbage_collection()
def _attempt(
    paths: Mapping[nn.Module, str], model_inputs: ModelInputs, mode: TraceMode, *, disposable: bool = False
) -> Profile | FailedAttempt:
    """Count the network in one trace mode, or return why that failed.

    `paths` are the paths of all its modules, itself first. A `disposable` network is that of a child process, so it may
    be written to.
    """
    model = next(iter(paths))
    kind = getattr(torch, model_inputs.dtype) if model_inputs.casts else None
    home = device_of(model)
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
            with replace_tensors(paths, twin):
                found = _trace(model, paths, model_inputs, mode.tensors, place, home, fake_mode)
    except BrokenPlugin:  # no fault of the network
        raise
    except Exception as error:
        return FailedAttempt.of(error, model, model_inputs)
    if found.is_bounded and not mode.bounds and not any(item.is_meta for item in parameters(list(paths))):
        found = replace(found, doubt="values")
    if found.doubt:
        reason = f"what it does depends on {_DOUBT_TEXTS[found.doubt]}"
        return FailedAttempt(
            found.doubt, "", reason, f"{type(model).__name__} cannot be counted without values: {reason}"
        )
    return _make_profile(model, list(paths), model_inputs, found, "meta" if mode.tensors == "fake" else place.type)


def _trace(
    model: nn.Module,
    paths: Mapping[nn.Module, str],
    model_inputs: ModelInputs,
    tensors: Tensors,
    place: torch.device,
    home: torch.device,
    mode: Any,
) -> Trace:
    def once(model_inputs: ModelInputs) -> Trace:
        args, named = model_inputs.arguments(torch.device("meta") if tensors == "fake" else place)
        if tensors == "fake":
            fake = fake_twin(getattr(torch, model_inputs.dtype), mode, place)
            args, named = _map_tensors(args, fake), _map_tensors(named, fake)
        return trace(model, args, named, paths=paths, tensors=tensors, home=home, mode=mode)

    found = once(model_inputs)
    if model_inputs.values is None and any(access.constant for record in found.records for access in record.writes):
        # A constant may be repeated once per image, such as a class token; tracing at a larger batch shows it. Twice as
        # large rather than 1 and 2, since some operators run only at batch 1.
        with suppress(Exception):
            again = once(replace(model_inputs, batch=2 * model_inputs.batch))
            return replace(found, records=mark_batch_constants(found.records, again.records))
    return found


def _make_profile(
    model: nn.Module, modules: Sequence[nn.Module], model_inputs: ModelInputs, found: Trace, traced_on: str
) -> Profile:
    records, returned = found.records, found.returned
    ops = tuple(_op_cost(record) for record in records)
    uncounted = Counter(op.op for op in ops if op.kind == "unknown")
    kernels = {
        "layer": _layer_kernels(records, ops),
        "eager": tuple(Kernel(op.madds, op.traffic) for op in ops),
        **fused_levels(records, returned),
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
    shape, beyond = core_inputs.shape_of(model_inputs.inputs), core_inputs.explicit_inputs(model_inputs.inputs)
    return Profile(type(model).__name__, shape, model_inputs.batch, model_inputs.dtype, cost, ops, kernels, beyond)


def _layer_kernels(records: Sequence[Record], ops: Sequence[OpCost]) -> tuple[Kernel, ...]:
    """Return the kernels of the level "layer": products alone. Quantised weights are read in their packed form."""
    packed = stored_bytes(records)

    def moved(record: Record, op: OpCost) -> Traffic:
        if not packed or not any(access.value in packed for access in record.reads):
            return op.traffic
        reads = [
            access._replace(bytes=packed[access.value]) if access.value in packed else access for access in record.reads
        ]
        return traffic((*reads, *record.writes))

    pairs = zip(records, ops, strict=True)
    return tuple(Kernel(op.madds, moved(record, op)) for record, op in pairs if op.kind in PRODUCTS)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _to_device(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return _map_tensors(value, lambda item: item.detach().to(device, dtype if item.is_floating_point() else item.dtype))


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
