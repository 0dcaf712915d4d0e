"""Run a model once and write down every operator: what it is, where it is, what it reads and writes.

The tracer sits below autograd and sees ATen operators. On the meta device nothing is computed, and what an operator
returns is remembered by its argument shapes, since PyTorch works shapes out in Python, slower than many kernels run.

There the tensors say that they are where the network runs, and constants keep their values, so that the network goes
the way that it always goes. Where shapes may still not tell, the tracer notes it (`Doubt`), and the caller traces
again: on fake tensors, which are on the network's own device for torch itself too, or on real ones.
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
from effbench.cost import higher_order, user_formulas, whole
from effbench.cost.formulas import UNKNOWN
from effbench.cost.op_cost import (
    WHOLE,
    Operator,
    Plan,
    decompose,
    describe,
    flatten,
    hashable,
    key_of,
    known_result,
    memory_of,
    moved,
    plan_call,
)
from effbench.cost.records import Access, Record
from effbench.cost.reported_device import exits_noticed, reported_at
from effbench.cost.threads import followed
from effbench.cost.walk import storage_of

Tensors = Literal["meta", "fake", "real"]
"""What a trace runs on: tensors of the meta device, fake ones of the network's device, or real ones."""

Doubt = Literal["", "device", "refused", "values"]
"""Why a trace without values may not be what the network does: something in it depends on the device, it caught an
operator's error (which may be of our making), or it wanted a value."""


@dataclass(frozen=True)
class Trace:
    """The operators of one pass in order, the contents that leave the network, and whether to believe them.

    `is_bounded` says that a mask without values was counted as if it selected everything.
    """

    records: list[Record]
    leaving: frozenset[int]
    doubt: Doubt
    is_bounded: bool = False


class NeedsValuesError(Exception):
    """The forward pass cannot be followed by shapes alone."""


_OPERATORS: dict[Any, Operator] = {}
_PLANS: dict[Any, Plan] = {}
_MAX_PLANS = 50_000

# The truth, past what `_as_at_home` says.
_is_meta = torch._C.TensorBase.is_meta.__get__  # type: ignore[attr-defined]

_DATA_DEPENDENT = (
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "UnsupportedFakeTensorException",
    "UnsupportedOperatorException",
)
"""Errors of fake tensors for what only values can tell."""

_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl
_CPU = torch.device("cpu")
_META = torch.device("meta")
_ON_META = {"device": _META}
_CONSTANT_LIMIT = 1 << 22
"""Elements up to which what a network makes of constants alone has its values on meta too."""


def forget_shapes() -> None:
    """Drop what earlier traces remembered, for honest timings of a first call."""
    _PLANS.clear()
    _OPERATORS.clear()


user_formulas.on_change(forget_shapes)


class _Where(threading.local):
    """The modules that a thread is in: (path, type, which call of it), innermost last."""

    def __init__(self, root: tuple[str, str, int]) -> None:
        self.stack = [root]
        self.paused = 0


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator while active. Use through `trace`."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap every call below, at a third of its cost, for the sake of torch.compile

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
        # By storage. Without values they may as well live until the end; real ones must be free to go.
        self._values: MutableMapping[Any, tuple[int, bool]] = WeakKeyDictionary() if tensors == "real" else {}
        self._next = 0
        self._paths = paths if paths is not None else {module: path for path, module in model.named_modules()}
        self._calls: dict[int, int] = {}
        self._at = _Where(("", type(model).__name__, 1))

    # --- contents ---

    def own(self, tensor: Tensor, constant: bool) -> int:
        """Give the storage of `tensor` a new content and return its number."""
        self._next += 1
        self._values[memory_of(tensor)] = (self._next, constant)
        return self._next

    def value(self, tensor: Tensor) -> tuple[int, bool]:
        """The content of a tensor and whether the network's input does not reach it. Unseen tensors are constants."""
        found = self._values.get(memory_of(tensor))
        return found if found is not None else (self.own(tensor, constant=True), True)

    # --- doubts ---

    @property
    def is_inside(self) -> bool:
        """Whether torch is at work, and not the network's own code."""
        return self._inside > 0

    def wants_values(self, why: str) -> NeedsValuesError:
        """The error to raise where only values can tell how the network goes on, noted though it may be caught."""
        self.doubt = "values"
        return NeedsValuesError(why)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The operator's own result. What a network without values may not do, it may catch: that is noted."""
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
            return NotImplemented  # a subclass of Tensor, which does it by operators of its own
        if operator.name in WHOLE:
            return self.whole(func, args, kwargs)
        self._inside += 1  # torch's own code from here on hears where a tensor really is
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
        """The operator's result, and a record of it unless it only views."""
        tensors: list[Tensor] = []
        if self.tensors == "real" and any([item.is_nested for item in args if isinstance(item, Tensor)]):
            result = self._run(func, args, kwargs)  # a list of tensors behind one that has no shape of its own
            if not operator.free:
                self.uncounted(operator.name, (), ())
            return result
        key = (func, self._dtype, key_of(args, tensors), key_of(tuple(kwargs.items()), tensors) if kwargs else None)
        meta = self.on_meta
        if meta and not (tensors and all(map(_is_meta, tensors)) and "device" not in kwargs):
            if not tensors and kwargs.get("device") == _META:
                pass  # made there by an operator inside: most often nothing, of no elements
            elif self._has_values(func, tensors, args, kwargs):
                meta = False
            elif _is_brought(operator, args, kwargs):
                return torch.ops.aten.alias(moved(args[0]))
            else:
                args, kwargs = self._to_meta(operator, args, kwargs)
        plan = _PLANS.get(key) if meta else None
        if plan is None or plan.returns is None:
            result = known_result(operator, args, tensors) if meta and not kwargs else None
            if result is None:
                result = self._run(func, args, kwargs)
            if operator.free:
                return result
            outputs = flatten(result)
            if plan is None:
                plan = plan_call(operator, args, kwargs, tensors, result, outputs)
                if meta and hashable(key):
                    if len(_PLANS) >= _MAX_PLANS:
                        _PLANS.clear()
                    _PLANS[key] = plan
        else:
            outputs = [
                tensors[item] if item.__class__ is int else torch.empty_strided(*item[:2], dtype=item[2], device="meta")
                for item in plan.returns
            ]
            result = outputs[0] if plan.container is None else plan.container(outputs)
        if plan.formula.reads == "scattered" and self.tensors != "real":
            # Which elements a mask selects is a matter of values.
            self.is_bounded |= any(tensor.dtype is torch.bool for tensor in tensors)
        if not plan.free:
            self.record(operator.name, plan, tensors, outputs)
        return result

    def whole(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry out an operator that stands for many (`studies.plan.WHOLE`) and write it down as one."""
        self._inside += 1
        try:
            result = None
            if self.on_meta and any(map(_is_meta, flatten(args))):
                args, kwargs = moved(args), {name: moved(value) for name, value in kwargs.items()}
                result = whole.shaped(func, args, kwargs)
            if result is None:
                with self.paused():
                    result = decompose(func, args, kwargs)
            name, plan, tensors, outputs = whole.plan_of(func, args, kwargs, result)
            self.record(name, plan, tensors, outputs)
        finally:
            self._inside -= 1
        return result

    def record(self, op: str, plan: Plan, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Write down one call, and note that what it wrote has new content."""
        reads = []
        constant = True
        values = self._values
        with self.lock:
            for position, elements, size, layout in plan.reads:
                tensor = tensors[position]
                try:
                    found, view = values.get(storage_of(tensor)), (tensor.storage_offset(), layout)
                except (NotImplementedError, RuntimeError):  # it has no storage of its own
                    found, view = None, (0, layout)
                value, fixed = found or self.value(tensor)
                constant = constant and fixed
                reads.append(Access(value, view, elements, size, fixed))
            written = tensors if plan.in_place else outputs
            writes = []
            for position, elements, size in plan.writes:
                tensor = written[position]
                # A partial write leaves the rest of the storage: the content then still depends on what was there.
                fixed = constant and (not plan.in_place or self.value(tensor)[1])
                writes.append(Access(self.own(tensor, fixed), None, elements, size, fixed))
            if not plan.in_place:
                for tensor in outputs[len(plan.writes) :]:
                    self.own(tensor, constant)
            if not self._at.paused:
                self.records.append(Record(op, *self._at.stack[-1], plan, tuple(reads), tuple(writes)))

    def uncounted(self, op: str, args: Any, result: Any) -> None:
        """Write down a call of which nothing is known but its name: the status of the count is then "partial"."""
        self.record(op, Plan(UNKNOWN, False, (), ()), flatten(args), flatten(result))

    def notice(self, what: str) -> None:
        """Name something that the tracer does not see: the count is then "partial"."""
        if not self._inside and what not in self.unseen:
            self.unseen.add(what)
            self.uncounted(what, (), ())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block operators run and are not written down."""
        self._at.paused += 1
        try:
            yield
        finally:
            self._at.paused -= 1

    # --- constants, which have values, among tensors that have none ---

    def _has_values(
        self, func: Any, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether to compute for real: of constants alone, unless that takes much memory."""
        if any(map(_is_meta, tensors)) or kwargs.get("device") not in (None, _CPU):
            return False
        if tensors and prod(map(Tensor.numel, tensors)) <= _CONSTANT_LIMIT:
            return True
        shaped = {name: moved(value) for name, value in kwargs.items()}
        try:
            result = func(*moved(args), **(shaped if tensors and "device" not in shaped else shaped | _ON_META))
        except Exception:  # what has no shape rule for meta is computed
            return True
        return sum(map(Tensor.numel, flatten(result))) <= _CONSTANT_LIMIT

    def _to_meta(
        self, operator: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments on meta, and what is made beside them too."""
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
    """Run ``model(*inputs, **named)`` and write down its operators.

    `paths` are the names of its modules, where the caller has them. `home` is where the network runs, whatever the
    tensors; `mode` is the FakeTensorMode of fake ones. Lets the model's own exceptions through, with what the tracer
    doubts as their attribute ``doubt``. The caller lends the model and quietens torch (`isolate`).
    """
    tracer = Tracer(model, tensors, paths)
    for tensor in flatten((inputs, dict(named))):
        tracer.own(tensor, constant=False)
    with ExitStack() as stack:
        hooks = [
            register_module_forward_pre_hook(tracer._enter),
            # Not `with_kwargs`: torch 2.13 forgets to remove that entry of a global hook.
            register_module_forward_hook(tracer._leave, always_call=True),
        ]
        for hook in hooks:
            stack.callback(hook.remove)
        places = ("meta",) if tensors == "meta" else ("cpu", home.type)
        stack.enter_context(whole.seen_whole(tracer.whole, places))
        if tensors == "real":
            stack.enter_context(exits_noticed(tracer))
        if tensors == "meta":
            stack.enter_context(reported_at(tracer, home))
        modes = [tracer] if mode is None else [mode, tracer]
        stack.enter_context(followed(modes, tracer.notice))
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
    """Whether a tensor is only brought to where the network runs, which is where it was: no copy."""
    if operator.name != "_to_copy" or kwargs.get("dtype") not in (None, args[0].dtype):
        return False
    layout = kwargs.get("memory_format")
    return layout in (None, torch.preserve_format) or bool(args[0].is_contiguous(memory_format=layout))


def _does_it_itself(kind: type) -> bool:
    """Whether this is a subclass of Tensor with operators of its own; fake tensors are our stand-ins."""
    own = getattr(kind, "__torch_dispatch__", _NO_DISPATCH)
    return own is not _NO_DISPATCH and kind.__name__ != "FakeTensor"
