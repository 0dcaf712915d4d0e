"""Run a model once and write down every operator: what it is, where it is, what it reads and writes.

The tracer sits below autograd and sees ATen operators. On the meta device nothing is computed, and what an operator
returns is remembered by its argument shapes, since PyTorch works shapes out in Python, slower than many kernels run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from sys import modules as imported_modules
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from effbench.cost.formulas import Call, Shape, formula, recurrent
from effbench.cost.plan import (
    Operator,
    Plan,
    count,
    describe,
    flatten,
    hashable,
    key_of,
    known_result,
    moved,
    plan_call,
)
from effbench.cost.records import Access, Record


class NeedsValuesError(Exception):
    """The forward pass cannot be followed by shapes alone."""


_OPERATORS: dict[Any, Operator] = {}
_PLANS: dict[Any, Plan] = {}
_MAX_PLANS = 50_000


def forget_shapes() -> None:
    """Drop what earlier traces remembered, for honest timings of a first call."""
    _PLANS.clear()
    _OPERATORS.clear()


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator while active. Use through `trace`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap every call below, at a third of its cost, for the sake of torch.compile

    def __init__(self, model: nn.Module, on_meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[Record] = []
        self.on_meta = on_meta
        self._dtype = torch.get_default_dtype()
        self._paused = 0
        # By storage. On meta they may as well live until the end; real ones must be free to go.
        self._values: MutableMapping[Any, tuple[int, bool]] = {} if on_meta else WeakKeyDictionary()
        self._next = 0
        self._paths: dict[int, str] = {}
        self.modules: list[nn.Module] = []
        for path, module in model.named_modules():
            self._paths[id(module)] = path
            self.modules.append(module)
        self._calls: dict[int, int] = {}
        self._where: list[tuple[str, str, int]] = [("", type(model).__name__, 1)]

    # --- contents ---

    def own(self, tensor: Tensor, constant: bool) -> int:
        """Give the storage of `tensor` a new content and return its number."""
        self._next += 1
        self._values[tensor.untyped_storage()] = (self._next, constant)
        return self._next

    def value(self, tensor: Tensor) -> tuple[int, bool]:
        """The content of a tensor and whether the network's input does not reach it. Unseen tensors are constants."""
        found = self._values.get(tensor.untyped_storage())
        return found if found is not None else (self.own(tensor, constant=True), True)

    # --- operators ---

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = _OPERATORS.get(func)
        if operator is None:
            operator = _OPERATORS[func] = describe(func)
        if operator.composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors: list[Tensor] = []
        key = (func, self._dtype, key_of(args, tensors), key_of(tuple(kwargs.items()), tensors) if kwargs else None)
        meta = self.on_meta and bool(tensors)
        if meta and any(not tensor.is_meta for tensor in tensors):
            if all(not tensor.is_meta for tensor in tensors):
                meta = False  # constants that the model makes on the CPU keep their values
            else:
                args, kwargs = self._to_meta(operator, args, kwargs)
        plan = _PLANS.get(key) if meta else None
        if plan is None or plan.returns is None:
            result = known_result(operator, args, tensors) if meta and not kwargs else None
            if result is None:
                result = func(*args, **kwargs)
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
        if not plan.free:
            self.record(operator.name, plan, tensors, outputs)
        return result

    def record(self, op: str, plan: Plan, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Write down one call, and note that what it wrote has new content."""
        reads = []
        constant = True
        for position, elements, size in plan.reads:
            tensor = tensors[position]
            value, fixed = self.value(tensor)
            constant = constant and fixed
            view = (tensor.storage_offset(), tensor.shape, tensor.stride())
            reads.append(Access(value, view, elements, size, fixed))
        if plan.in_place and not plan.reads:
            constant = all(self.value(tensors[position])[1] for position, _, _ in plan.writes)
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
        if not self._paused:
            self.records.append(Record(op, *self._where[-1], plan, tuple(reads), tuple(writes)))

    def _to_meta(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for position, name, _ in operator.mutated:
            target = args[position] if position < len(args) else kwargs.get(name)
            if isinstance(target, Tensor) and not target.is_meta:
                raise NeedsValuesError(f"{operator.name} writes to a tensor made on the CPU")
        return moved(args), {name: moved(value) for name, value in kwargs.items()}

    # --- modules ---

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:
            parent = self._where[-1][0]
            path = f"{parent}.({type(module).__name__})".lstrip(".")
        call = self._calls[id(module)] = self._calls.get(id(module), 0) + 1
        self._where.append((path, type(module).__name__, call))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._where.pop()

    def _enter_recurrent(self, module: nn.Module, args: Any) -> None:
        self._paused += 1

    def _leave_recurrent(self, module: nn.RNNBase, args: tuple[Any, ...], *rest: Any) -> None:
        self._paused -= 1
        if rest[-1] is not None:  # torch calls this without keyword arguments and output when forward has raised
            kwargs, output = rest
            path = self._paths.get(id(module), "")
            self._where.append((path, type(module).__name__, self._calls.get(id(module), 1)))
            self._recurrent(module, args, kwargs, output)
            self._where.pop()

    # --- operators that stand for many ---

    def _recurrent(self, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """One record for a recurrent layer, whose operators differ between devices: weights once, one pass a layer."""
        x = args[0] if args else kwargs["input"]
        x = x if isinstance(x, Tensor) else x.data
        out = output[0] if isinstance(output[0], Tensor) else output[0].data
        states = [item for item in flatten((args[1:], kwargs)) if item is not x]
        weights = [item for item in module._flat_weights if isinstance(item, Tensor)]
        tensors = [x, *weights, *states]
        mode = module.mode.lower().split("_")[0]
        rows = x.numel() // max(1, x.shape[-1])
        width = out.shape[-1]
        between = (module.num_layers - 1) * rows * width
        call = Call(mode, (), tuple(Shape(item.shape) for item in tensors), (Shape(out.shape),))
        size = out.element_size()
        found = formula(mode)
        plan = Plan(
            formula=found,
            free=False,
            inputs=call.inputs,
            outputs=call.outputs,
            madds=recurrent(call, len(weights)),
            activations=module.num_layers * rows * width,
            elementwise={"lstm": 9, "gru": 8}.get(mode, 1)
            * rows
            * module.hidden_size
            * module.num_layers
            * (1 + module.bidirectional),
            reads=(
                (0, x.numel() + between, x.numel() * x.element_size() + between * size),
                *((i, t.numel(), t.numel() * t.element_size()) for i, t in enumerate(tensors) if i),
            ),
            writes=((0, out.numel() + between, (out.numel() + between) * size),),
        )
        self.record(mode, plan, tensors, [out, *flatten(output[1:])])

    def attend(
        self,
        original: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Scaled dot-product attention as one operator: meta would decompose it and store the score matrix."""
        tensors = [query, key, value] + ([attn_mask] if attn_mask is not None else [])
        on_meta = self.on_meta and all(item.is_meta for item in tensors)
        memo = ("attention", self._dtype, key_of(tuple(tensors), []), args, tuple(kwargs.items()))
        plan = _PLANS.get(memo) if on_meta else None
        out = None
        if plan is None:
            self._paused += 1
            try:
                out = original(query, key, value, attn_mask, *args, **kwargs)
            finally:
                self._paused -= 1
            call = Call(
                "scaled_dot_product_attention", (), tuple(Shape(item.shape) for item in tensors), (Shape(out.shape),)
            )
            plan = count(formula(call.op), call, tensors, [out])
            if on_meta:
                _PLANS[memo] = plan
        if on_meta:
            shape = plan.outputs[0]
            # The fused kernels return (batch, tokens, heads, width) seen as (batch, heads, tokens, width).
            swapped = (*shape[:-3], shape[-2], shape[-3], shape[-1]) if len(shape) > 3 else shape
            out = torch.empty(swapped, dtype=query.dtype, device="meta")
            out = out.transpose(-3, -2) if len(shape) > 3 else out
        assert out is not None
        self.record("scaled_dot_product_attention", plan, tensors, [out])
        return out


def trace(
    model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], *, on_meta: bool
) -> tuple[list[Record], frozenset[int]]:
    """Run ``model(*inputs, **named)`` and return its operators in order, and the contents that leave the network.

    Lets the model's own exceptions through. The caller lends the model and quietens torch (`isolate`).
    """
    tracer = Tracer(model, on_meta)
    for tensor in flatten((inputs, dict(named))):
        tracer.own(tensor, constant=False)
    with ExitStack() as stack:
        hooks = [
            register_module_forward_pre_hook(tracer._enter),
            # Not `with_kwargs`: torch 2.13 forgets to remove that entry of a global hook.
            register_module_forward_hook(tracer._leave, always_call=True),
        ]
        for module in tracer.modules:
            if isinstance(module, nn.RNNBase):
                hooks.append(module.register_forward_pre_hook(tracer._enter_recurrent))
                hooks.append(module.register_forward_hook(tracer._leave_recurrent, with_kwargs=True, always_call=True))
        for hook in hooks:
            stack.callback(hook.remove)
        stack.enter_context(_one_attention(tracer))
        with tracer:
            output = model(*inputs, **named)
    return tracer.records, frozenset(tracer.value(tensor)[0] for tensor in flatten(output))


@contextmanager
def _one_attention(tracer: Tracer) -> Iterator[None]:
    """Route scaled dot-product attention to the tracer, under every name by which the model's own files imported it."""
    original = functional.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        return tracer.attend(original, *args, **kwargs)

    types = {type(module) for module in tracer.modules}
    files = {functional.__name__} | {kind.__module__ for start in types for kind in start.__mro__}
    names = [
        (space, name)
        for space in (vars(imported_modules[file]) for file in files if file in imported_modules)
        for name, thing in list(space.items())
        if thing is original
    ]
    try:
        for space, name in names:
            space[name] = attend
        yield
    finally:
        for space, name in names:
            space[name] = original
