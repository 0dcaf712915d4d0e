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

from effbench.core.errors import text_of
from effbench.cost import higher_order, whole
from effbench.cost.formulas import UNKNOWN
from effbench.cost.op_cost import (
    WHOLE,
    CallCost,
    Operator,
    cost_of_call,
    decompose,
    describe,
    flatten,
    hashable,
    key_of,
    known_result,
    memory_of,
    moved,
)
from effbench.cost.records import Access, Record
from effbench.cost.reported_device import numpy_noted, reported_at
from effbench.cost.threads import traced_threads
from effbench.cost.walk import storage_of

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
    leaving: frozenset[int]
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


class _Where(threading.local):
    """Stack of modules that a thread is in: (path, type, number of the call), innermost last."""

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
        self.unseen: set[str] = set()
        self.is_bounded = False
        self._inside = 0
        # By storage. Real storages are referenced weakly, so that their memory can be freed during the trace.
        self._values: MutableMapping[Any, tuple[int, bool]] = WeakKeyDictionary() if tensors == "real" else {}
        self._next = 0
        self._paths = paths if paths is not None else {module: path for path, module in model.named_modules()}
        self._calls: dict[int, int] = {}
        self._at = _Where(("", type(model).__name__, 1))

    # --- contents ---

    def own(self, tensor: Tensor, constant: bool) -> int:
        """Assign a new content number to the storage of `tensor` and return it."""
        self._next += 1
        self._values[memory_of(tensor)] = (self._next, constant)
        return self._next

    def value(self, tensor: Tensor) -> tuple[int, bool]:
        """Return the content number of a tensor, and whether it is constant, that is independent of the network's
        input.

        Tensors that were not seen before are constants.
        """
        found = self._values.get(memory_of(tensor))
        return found if found is not None else (self.own(tensor, constant=True), True)

    # --- doubts ---

    @property
    def is_inside(self) -> bool:
        """Whether code of torch is running, not of the network."""
        return self._inside > 0

    def needs_values(self, why: str) -> NeedsValuesError:
        """Return the error to raise where control flow needs values. Also notes a doubt, since it may be caught."""
        self.doubt = "values"
        return NeedsValuesError(why)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the operator. Errors are noted as a doubt, since the network may catch one that tracing caused."""
        try:
            return func(*args, **kwargs)
        except Exception as error:
            if self.tensors != "real":
                missing = isinstance(error, NotImplementedError) or "Tensor.item" in text_of(error)
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
        if types and any(map(_does_it_itself, types)):
            return NotImplemented  # a tensor subclass with its own __torch_dispatch__
        if operator.name in WHOLE:
            return self.whole(func, args, kwargs)
        self._inside += 1  # from here on, tensors report their real device to torch's code
        try:
            if operator.composite:
                with self:
                    result = decompose(func, args, kwargs)
                if result is not NotImplemented:
                    return result
            return self._carry_out(operator, func, args, kwargs)
        finally:
            self._inside -= 1

    def _carry_out(self, operator: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operator, and record it unless it only returns a view."""
        tensors: list[Tensor] = []
        if self.tensors == "real" and any([item.is_nested for item in args if isinstance(item, Tensor)]):
            result = self._run(func, args, kwargs)  # a nested tensor without a shape of its own
            if not operator.free:
                self.uncounted(operator.name, (), ())
            return result
        key = (func, self._dtype, key_of(args, tensors), key_of(tuple(kwargs.items()), tensors) if kwargs else None)
        meta = self.on_meta
        if meta and not (tensors and all(map(_is_meta, tensors)) and "device" not in kwargs):
            if not tensors and kwargs.get("device") == _META:
                pass  # created inside the operator, mostly an empty tensor
            elif self._has_values(func, tensors, args, kwargs):
                meta = False
            elif _is_brought(operator, args, kwargs):
                return torch.ops.aten.alias(moved(args[0]))
            else:
                args, kwargs = self._to_meta(operator, args, kwargs)
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
                if meta and hashable(key):
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

    def whole(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that torch would decompose (`op_cost.WHOLE`), and record it as one."""
        self._inside += 1
        try:
            result = None
            if self.on_meta and any(map(_is_meta, flatten(args))):
                args, kwargs = moved(args), {name: moved(value) for name, value in kwargs.items()}
                result = whole.shaped(func, args, kwargs)
            if result is None:
                with self.paused():
                    result = decompose(func, args, kwargs)
            name, cost, tensors, outputs = whole.cost_of_whole(func, args, kwargs, result)
            self.record(name, cost, tensors, outputs)
        finally:
            self._inside -= 1
        return result

    def record(self, op: str, cost: CallCost, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Record one call, and assign new content numbers to what it wrote."""
        reads = []
        constant = True
        values = self._values
        with self.lock:
            for position, elements, size, layout in cost.reads:
                tensor = tensors[position]
                try:
                    found, view = values.get(storage_of(tensor)), (tensor.storage_offset(), layout)
                except (NotImplementedError, RuntimeError):  # a tensor without storage
                    found, view = None, (0, layout)
                value, fixed = found or self.value(tensor)
                constant = constant and fixed
                reads.append(Access(value, view, elements, size, fixed))
            written = tensors if cost.in_place else outputs
            writes = []
            for position, elements, size in cost.writes:
                tensor = written[position]
                # After a partial write, the content still depends on what was in the storage before.
                fixed = constant and (not cost.in_place or self.value(tensor)[1])
                writes.append(Access(self.own(tensor, fixed), None, elements, size, fixed))
            if not cost.in_place:
                for tensor in outputs[len(cost.writes) :]:
                    self.own(tensor, constant)
            if not self._at.paused:
                self.records.append(Record(op, *self._at.stack[-1], cost, tuple(reads), tuple(writes)))

    def uncounted(self, op: str, args: Any, result: Any) -> None:
        """Record a call of which only the name is known. The status of the count is then "partial"."""
        self.record(op, CallCost(UNKNOWN, False, (), ()), flatten(args), flatten(result))

    def notice(self, what: str) -> None:
        """Report something that the tracer cannot count. The status of the count is then "partial"."""
        if not self._inside and what not in self.unseen:
            self.unseen.add(what)
            self.uncounted(what, (), ())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operators in the block without recording them."""
        self._at.paused += 1
        try:
            yield
        finally:
            self._at.paused -= 1

    # --- constants, which have values, among tensors that have none ---

    def _has_values(
        self, func: Any, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Return whether to compute with values: if all inputs are constants, unless that takes much memory."""
        if any(map(_is_meta, tensors)) or kwargs.get("device") not in (None, _CPU):
            return False
        if tensors and prod(map(Tensor.numel, tensors)) <= _CONSTANT_LIMIT:
            return True
        shaped = {name: moved(value) for name, value in kwargs.items()}
        try:
            result = func(*moved(args), **(shaped if tensors and "device" not in shaped else shaped | _ON_META))
        except Exception:  # no shape function for meta, so compute it
            return True
        return sum(map(Tensor.numel, flatten(result))) <= _CONSTANT_LIMIT

    def _to_meta(
        self, operator: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move the arguments to meta, so that new tensors are created there too."""
        for position, name, _ in operator.mutated:
            target = args[position] if position < len(args) else kwargs.get(name)
            if isinstance(target, Tensor) and not _is_meta(target):
                self.doubt = self.doubt or "device"
                raise NeedsValuesError(f"{operator.name} writes to a tensor made on the CPU")
        placed = {name: moved(value) for name, value in kwargs.items()}
        return moved(args), placed | _ON_META if "device" in placed else placed

    # --- modules ---

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(module)
        if path is None:
            parent = self._at.stack[-1][0]
            path = f"{parent}.({type(module).__name__})".lstrip(".")
        call = self._calls[id(module)] = self._calls.get(id(module), 0) + 1
        self._at.stack.append((path, type(module).__name__, call))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._at.stack.pop()


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
        tracer.own(tensor, constant=False)
    with ExitStack() as stack:
        hooks = [
            register_module_forward_pre_hook(tracer._enter),
            # Not `with_kwargs`: torch 2.13 does not remove that entry of a global hook.
            register_module_forward_hook(tracer._leave, always_call=True),
        ]
        for hook in hooks:
            stack.callback(hook.remove)
        places = ("meta",) if tensors == "meta" else ("cpu", home.type)
        stack.enter_context(whole.intercepted(tracer.whole, places))
        if tensors == "real":
            stack.enter_context(numpy_noted(tracer))
        if tensors == "meta":
            stack.enter_context(reported_at(tracer, home))
        modes = [tracer] if mode is None else [mode, tracer]
        stack.enter_context(traced_threads(modes, tracer.notice))
        for each in modes:
            stack.enter_context(each)
        try:
            output = model(*inputs, **named)
        except Exception as error:
            error.doubt = tracer.doubt  # type: ignore[attr-defined]
            raise
    leaving = frozenset(tracer.value(tensor)[0] for tensor in flatten(output))
    return Trace(tracer.records, leaving, tracer.doubt, tracer.is_bounded)


def _is_brought(operator: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the operator moves a tensor to the network's device, where it already is: no copy."""
    if operator.name != "_to_copy" or kwargs.get("dtype") not in (None, args[0].dtype):
        return False
    layout = kwargs.get("memory_format")
    return layout in (None, torch.preserve_format) or bool(args[0].is_contiguous(memory_format=layout))


def _does_it_itself(kind: type) -> bool:
    """Return whether this is a tensor subclass with its own operators. Fake tensors do not count."""
    own = getattr(kind, "__torch_dispatch__", _NO_DISPATCH)
    return own is not _NO_DISPATCH and kind.__name__ != "FakeTensor"
