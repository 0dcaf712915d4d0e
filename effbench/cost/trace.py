"""Run a model once and record every ATen operator: its name, its module, and what it reads and writes.

The tracer is a dispatch mode below autograd. On the meta device nothing is computed, and results are cached by argument
shapes, since PyTorch's shape functions in Python are slower than many kernels. Meta tensors report the network's own
device, and constants keep their values, so that control flow is the same as in a real run. Where it might still differ,
the tracer notes it (`Doubt`), and the caller traces again: on fake tensors, which are on the network's device for torch
itself too, or on real ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from effbench.core.errors import message_of
from effbench.cost import composite_operators, higher_order, user_formulas
from effbench.cost.formulas import UNKNOWN
from effbench.cost.nested_values import flatten, is_hashable, shape_key, storage_of, to_meta
from effbench.cost.op_cost import (
    COMPOSITES,
    CallCost,
    Operator,
    cost_of_call,
    decompose,
    describe,
    known_result,
    memory_of,
)
from effbench.cost.records import Access, Record
from effbench.cost.reported_device import report_device, report_numpy
from effbench.cost.threads import traced_threads

Tensors = Literal["meta", "fake", "real"]
"""Tensors that a trace runs on: meta tensors, fake tensors of the network's device, or real ones."""

Doubt = Literal["", "device", "refused", "values"]
"""Why a trace without values may differ from a real run: something depends on the device, the network caught an
operator's error (which tracing may have caused), or it needed a value."""


@dataclass(frozen=True)
class Trace:
    """The operators of one pass in order, the contents that the network returns, and doubts about the trace.

    `is_bounded` means that a mask without values was counted as if it selected everything.
    """

    records: list[Record]
    returned: frozenset[int]
    doubt: Doubt
    is_bounded: bool = False


class NeedsValuesError(Exception):
    """The forward pass cannot be traced from shapes alone."""


_OPERATORS: dict[Any, Operator] = {}
_COSTS: dict[Any, CallCost] = {}
_MAX_COSTS = 50_000

# The real value, whatever `reported_device` makes tensors report.
_is_meta = torch._C.TensorBase.is_meta.__get__  # type: ignore[attr-defined]

_DATA_DEPENDENT = (
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "UnsupportedFakeTensorException",
    "UnsupportedOperatorException",
)
"""Errors of fake tensors for operations that need values."""

_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl
_CPU = torch.device("cpu")
_META = torch.device("meta")
_ON_META = {"device": _META}
_CONSTANT_LIMIT = 1 << 22
"""Up to this many elements, tensors computed from constants alone keep their values on meta too."""


def forget_shapes() -> None:
    """Clear the cache of earlier traces, to time a first call."""
    _COSTS.clear()
    _OPERATORS.clear()


user_formulas.on_change(forget_shapes)


class _ModuleStack(threading.local):
    """The modules that a thread is in, innermost last, as (path, type, number of the call)."""

    def __init__(self, root: tuple[str, str, int]) -> None:
        self.stack = [root]
        self.paused = 0


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records every operator. Use it through `trace`."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps every call for torch.compile, which adds a third to its cost

    def __init__(self, model: nn.Module, tensors: Tensors, paths: Mapping[nn.Module, str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[Record] = []
        self.tensors = tensors
        self.on_meta = tensors == "meta"
        self.doubt: Doubt = ""
        self.lock = threading.RLock()
        self._dtype = torch.get_default_dtype()
        self.noted: set[str] = set()
        self.is_bounded = False
        self._depth_in_torch = 0
        # By storage. Real storages are referenced weakly, so that their memory can be freed during the trace.
        self._contents: MutableMapping[Any, tuple[int, bool]] = WeakKeyDictionary() if tensors == "real" else {}
        self._last_content = 0
        self._paths = paths if paths is not None else {module: path for path, module in model.named_modules()}
        self._calls: dict[int, int] = {}
        self._modules = _ModuleStack(("", type(model).__name__, 1))

    # --- contents ---

    def new_content(self, tensor: Tensor, constant: bool) -> int:
        """Assign a new content number to the storage of `tensor` and return it."""
        self._last_content += 1
        self._contents[memory_of(tensor)] = (self._last_content, constant)
        return self._last_content

    def content_of(self, tensor: Tensor) -> tuple[int, bool]:
        """Return the content number of a tensor, and whether it is constant, that is independent of the network's
        input.

        Tensors that were not seen before are constants.
        """
        found = self._contents.get(memory_of(tensor))
        return found if found is not None else (self.new_content(tensor, constant=True), True)

    # --- doubts ---

    @property
    def is_in_torch(self) -> bool:
        """Whether code of torch is running, not of the network."""
        return self._depth_in_torch > 0

    def values_error(self, why: str) -> NeedsValuesError:
        """Return the error to raise where control flow needs values. Also notes a doubt, since it may be caught."""
        self.doubt = "values"
        return NeedsValuesError(why)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the operator. Errors are noted as a doubt, since the network may catch one that tracing caused."""
        try:
            return func(*args, **kwargs)
        except Exception as error:
            if self.tensors != "real":
                missing = isinstance(error, NotImplementedError) or "Tensor.item" in message_of(error)
                self.doubt = "values" if missing or type(error).__name__ in _DATA_DEPENDENT else "refused"
            raise

    # --- operators ---

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = _OPERATORS.get(func)
        if operator is None:
            if isinstance(func, HigherOrderOperator):
                return higher_order.run(self, func, args, kwargs)
            operator = _OPERATORS[func] = describe(func)
        if types and any(map(_has_own_dispatch, types)):
            return NotImplemented  # a tensor subclass with its own __torch_dispatch__
        if operator.name in COMPOSITES:
            return self.run_composite(func, args, kwargs)
        self._depth_in_torch += 1  # from here on, tensors report their real device to torch's code
        try:
            if operator.composite:
                with self:
                    result = decompose(func, args, kwargs)
                if result is not NotImplemented:
                    return result
            return self._run_and_record(operator, func, args, kwargs)
        finally:
            self._depth_in_torch -= 1

    def _run_and_record(self, operator: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operator, and record it unless it only returns a view."""
        tensors: list[Tensor] = []
        if self.tensors == "real" and any([item.is_nested for item in args if isinstance(item, Tensor)]):
            result = self._run(func, args, kwargs)  # a nested tensor without a shape of its own
            if not operator.free:
                self.record_uncounted(operator.name, (), ())
            return result
        key = (
            func,
            self._dtype,
            shape_key(args, tensors),
            shape_key(tuple(kwargs.items()), tensors) if kwargs else None,
        )
        meta = self.on_meta
        if meta and not (tensors and all(map(_is_meta, tensors)) and "device" not in kwargs):
            if not tensors and kwargs.get("device") == _META:
                pass  # created inside the operator, mostly an empty tensor
            elif self._computes_values(func, tensors, args, kwargs):
                meta = False
            elif _is_move_without_copy(operator, args, kwargs):
                return torch.ops.aten.alias(to_meta(args[0]))
            else:
                args, kwargs = self._arguments_on_meta(operator, args, kwargs)
        cost = _COSTS.get(key) if meta else None
        if cost is None or cost.returns is None:
            result = known_result(operator, args, tensors) if meta and not kwargs else None
            if result is None:
                result = self._run(func, args, kwargs)
            if operator.free:
                return result
            outputs = flatten(result)
            if cost is None:
                cost = cost_of_call(operator, args, kwargs, tensors, result, outputs)
                if meta and is_hashable(key):
                    if len(_COSTS) >= _MAX_COSTS:
                        _COSTS.clear()
                    _COSTS[key] = cost
        else:
            outputs = [
                tensors[item] if item.__class__ is int else torch.empty_strided(*item[:2], dtype=item[2], device="meta")
                for item in cost.returns
            ]
            result = outputs[0] if cost.container is None else cost.container(outputs)
        if cost.formula.reads == "scattered" and self.tensors != "real":
            # Without values it is unknown which elements a mask selects.
            self.is_bounded |= any(tensor.dtype is torch.bool for tensor in tensors)
        if not cost.free:
            self.record(operator.name, cost, tensors, outputs)
        return result

    def run_composite(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that torch would decompose (`op_cost.COMPOSITES`), and record it as one."""
        self._depth_in_torch += 1
        try:
            result = None
            if self.on_meta and any(map(_is_meta, flatten(args))):
                args, kwargs = to_meta(args), {name: to_meta(value) for name, value in kwargs.items()}
                result = composite_operators.result_on_meta(func, args, kwargs)
            if result is None:
                with self.paused():
                    result = decompose(func, args, kwargs)
            name, cost, tensors, outputs = composite_operators.cost_of_composite(func, args, kwargs, result)
            self.record(name, cost, tensors, outputs)
        finally:
            self._depth_in_torch -= 1
        return result

    def record(self, op: str, cost: CallCost, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Record one call, and assign new content numbers to what it wrote."""
        reads = []
        constant = True
        contents = self._contents
        with self.lock:
            for position, elements, size, layout in cost.reads:
                tensor = tensors[position]
                try:
                    found, view = contents.get(storage_of(tensor)), (tensor.storage_offset(), layout)
                except (NotImplementedError, RuntimeError):  # a tensor without storage
                    found, view = None, (0, layout)
                content, fixed = found or self.content_of(tensor)
                constant = constant and fixed
                reads.append(Access(content, view, elements, size, fixed))
            written = tensors if cost.in_place else outputs
            writes = []
            for position, elements, size in cost.writes:
                tensor = written[position]
                # After a partial write, the content still depends on what was in the storage before.
                fixed = constant and (not cost.in_place or self.content_of(tensor)[1])
                writes.append(Access(self.new_content(tensor, fixed), None, elements, size, fixed))
            if not cost.in_place:
                for tensor in outputs[len(cost.writes) :]:
                    self.new_content(tensor, constant)
            if not self._modules.paused:
                self.records.append(Record(op, *self._modules.stack[-1], cost, tuple(reads), tuple(writes)))

    def record_uncounted(self, op: str, args: Any, result: Any) -> None:
        """Record a call of which only the name is known. The status of the count is then "partial"."""
        self.record(op, CallCost(UNKNOWN, False, (), ()), flatten(args), flatten(result))

    def note_uncounted(self, what: str) -> None:
        """Report something that the tracer cannot count. The status of the count is then "partial"."""
        if not self._depth_in_torch and what not in self.noted:
            self.noted.add(what)
            self.record_uncounted(what, (), ())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operators in the block without recording them."""
        self._modules.paused += 1
        try:
            yield
        finally:
            self._modules.paused -= 1

    # --- constants, which have values, among tensors that have none ---

    def _computes_values(
        self, func: Any, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Return whether to compute with values: if all inputs are constants, unless that takes much memory."""
        if any(map(_is_meta, tensors)) or kwargs.get("device") not in (None, _CPU):
            return False
        if tensors and prod(map(Tensor.numel, tensors)) <= _CONSTANT_LIMIT:
            return True
        on_meta = {name: to_meta(value) for name, value in kwargs.items()}
        try:
            result = func(*to_meta(args), **(on_meta if tensors and "device" not in on_meta else on_meta | _ON_META))
        except Exception:  # no shape function for meta, so compute it
            return True
        return sum(map(Tensor.numel, flatten(result))) <= _CONSTANT_LIMIT

    def _arguments_on_meta(
        self, operator: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move the arguments to meta, so that new tensors are created there too."""
        for position, name, _ in operator.mutated:
            target = args[position] if position < len(args) else kwargs.get(name)
            if isinstance(target, Tensor) and not _is_meta(target):
                self.doubt = self.doubt or "device"
                raise NeedsValuesError(f"{operator.name} writes to a tensor made on the CPU")
        on_meta = {name: to_meta(value) for name, value in kwargs.items()}
        return to_meta(args), on_meta | _ON_META if "device" in on_meta else on_meta

    # --- modules ---

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(module)
        if path is None:
            parent = self._modules.stack[-1][0]
            path = f"{parent}.({type(module).__name__})".lstrip(".")
        call = self._calls[id(module)] = self._calls.get(id(module), 0) + 1
        self._modules.stack.append((path, type(module).__name__, call))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._modules.stack.pop()


def trace(
    model: nn.Module,
    inputs: Sequence[Any],
    named: Mapping[str, Any],
    *,
    tensors: Tensors,
    paths: Mapping[nn.Module, str] | None = None,
    home: torch.device = _CPU,
    mode: Any = None,
) -> Trace:
    """Run ``model(*inputs, **named)`` and record its operators.

    `paths` are the names of its modules, if the caller has them. `home` is the network's device, whatever tensors are
    used; `mode` is the FakeTensorMode of fake ones. Exceptions of the model pass through, with the tracer's doubt as
    their attribute ``doubt``. The caller prepares the model and torch (`sandbox`).
    """
    tracer = Tracer(model, tensors, paths)
    for tensor in flatten((inputs, dict(named))):
        tracer.new_content(tensor, constant=False)
    with ExitStack() as stack:
        hooks = [
            register_module_forward_pre_hook(tracer._enter),
            # Not `with_kwargs`: torch 2.13 does not remove that entry of a global hook.
            register_module_forward_hook(tracer._leave, always_call=True),
        ]
        for hook in hooks:
            stack.callback(hook.remove)
        places = ("meta",) if tensors == "meta" else ("cpu", home.type)
        stack.enter_context(composite_operators.intercept(tracer.run_composite, places))
        if tensors == "real":
            stack.enter_context(report_numpy(tracer))
        if tensors == "meta":
            stack.enter_context(report_device(tracer, home))
        modes = [tracer] if mode is None else [mode, tracer]
        stack.enter_context(traced_threads(modes, tracer.note_uncounted))
        for each in modes:
            stack.enter_context(each)
        try:
            output = model(*inputs, **named)
        except Exception as error:
            error.doubt = tracer.doubt  # type: ignore[attr-defined]
            raise
    returned = frozenset(tracer.content_of(tensor)[0] for tensor in flatten(output))
    return Trace(tracer.records, returned, tracer.doubt, tracer.is_bounded)


def _is_move_without_copy(operator: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the operator moves a tensor to the network's device, where it already is: no copy."""
    if operator.name != "_to_copy" or kwargs.get("dtype") not in (None, args[0].dtype):
        return False
    layout = kwargs.get("memory_format")
    return layout in (None, torch.preserve_format) or bool(args[0].is_contiguous(memory_format=layout))


def _has_own_dispatch(kind: type) -> bool:
    """Return whether this is a tensor subclass with its own operators. Fake tensors do not count."""
    own = getattr(kind, "__torch_dispatch__", _NO_DISPATCH)
    return own is not _NO_DISPATCH and kind.__name__ != "FakeTensor"
