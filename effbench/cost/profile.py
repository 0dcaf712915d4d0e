"""What one forward pass of a network costs, counted from shapes: the public face of this package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from effbench import feeding
from effbench.core import Cost, Traffic
from effbench.cost.formulas import PRODUCTS
from effbench.cost.fusion import fused_kernels, traffic
from effbench.cost.isolate import lent, meta_twin, quiet_torch, real_twin, uncollected
from effbench.cost.records import Record, scaled_apart
from effbench.cost.roofline import Kernel
from effbench.cost.trace import trace
from effbench.errors import InvalidValue, ModelError
from effbench.feeding import Input

if TYPE_CHECKING:
    import pandas

LAZY = nn.parameter.UninitializedParameter
DTYPES = feeding.FLOATS
Fed = Sequence[Any] | Mapping[str, Any]
"""What `feeding.described` takes: a shape, several shapes or `Input`s, or either by name."""


@dataclass(frozen=True)
class OpCost:
    """One operator call. Elements are counted once per read and write; `traffic` holds the same with bytes.

    `module` is the path of the innermost module ("" is the network itself) and `call` which use of that module it was.
    `weights_read` are elements that the network's input does not reach: parameters, buffers, and what is computed
    from them alone. `kind` is conv, matmul, attention, recurrent, norm, pool, reduce, elementwise, data or unknown.
    """

    module: str
    module_type: str
    call: int
    op: str
    kind: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    madds: int
    activations: int
    elementwise: int
    weights_read: int
    activations_read: int
    written: int
    traffic: Traffic

    @property
    def memory_access(self) -> int:
        """Elements read and written."""
        return self.traffic.elements

    @property
    def memory_access_bytes(self) -> int:
        return self.traffic.bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `name` is the module path."""
        plain = asdict(self)
        plain.pop("traffic")
        return {
            "name": plain.pop("module"),
            **plain,
            "memory_access": self.memory_access,
            "memory_access_bytes": self.memory_access_bytes,
        }


@dataclass(frozen=True)
class ModuleCost:
    """The sum over the operators at and below one module path."""

    module: str
    module_type: str
    madds: int
    activations: int
    elementwise: int
    traffic: Traffic


@dataclass(frozen=True)
class Profile:
    """The cost of one network on one input shape (without batch), and of its every operator in order of execution.

    `kernels` are, for each level of memory access, what runs as one there: their traffic sums to that level's, and
    their multiply-adds to the network's.
    """

    model: str
    input_shape: tuple[Any, ...]
    batch: int
    dtype: str
    cost: Cost
    ops: tuple[OpCost, ...]
    kernels: Mapping[str, tuple[Kernel, ...]]
    inputs: tuple[Input, ...] = ()

    def __repr__(self) -> str:
        from effbench.cost import profile_repr

        return profile_repr.text(self)

    def _repr_html_(self) -> str:
        from effbench.cost import profile_repr

        return profile_repr.page(self)

    def to_dict(self, layers: bool = False) -> dict[str, Any]:
        """JSON-ready. With `layers`, one entry per operator."""
        plain: dict[str, Any] = {
            "model": self.model,
            "input_shape": list(self.input_shape),
            **({"inputs": [str(item) for item in self.inputs]} if self.inputs else {}),
            "batch": self.batch,
            "dtype": self.dtype,
            **self.cost.to_dict(),
        }
        if layers:
            plain["layers"] = [op.to_dict() for op in self.ops]
        return plain

    def by_module(self, depth: int | None = None) -> tuple[ModuleCost, ...]:
        """Costs per module path, each with everything below it; `depth` 0 is the network alone, 1 its children."""
        types: dict[str, str] = {}
        sums: dict[str, list[OpCost]] = {}
        for op in self.ops:
            parts = op.module.split(".") if op.module else []
            types[op.module] = op.module_type
            for length in range(len(parts) + 1):
                if depth is None or length <= depth:
                    sums.setdefault(".".join(parts[:length]), []).append(op)
        return tuple(
            ModuleCost(
                module=path,
                module_type=types.get(path, ""),
                madds=sum(op.madds for op in ops),
                activations=sum(op.activations for op in ops),
                elementwise=sum(op.elementwise for op in ops),
                traffic=sum((op.traffic for op in ops), Traffic()),
            )
            for path, ops in sums.items()
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per operator."""
        import pandas

        return pandas.DataFrame([op.to_dict() for op in self.ops])


@uncollected()
def profile(
    model: nn.Module,
    input_shape: Fed,
    *,
    batch: int = 1,
    dtype: str = "float32",
    inputs: tuple[Any, ...] | None = None,
    device: Literal["meta", "real", "auto"] = "auto",
) -> Profile:
    """Count one forward pass in eval mode, as if the model had been moved with ``.to(dtype)``.

    `input_shape` excludes the batch; several shapes or `Input`s stand for several inputs, a mapping for inputs by name.
    `inputs` are passed instead where random values will not do (a dictionary); `batch` is then only a label. "meta"
    allocates no tensor data; "auto" falls back to real tensors where the forward pass looks at values, and
    `cost.traced_on` says so.
    The model, its weights and torch's own state are left as they were, also when this raises.

    Memory access is ``weights + batch * activations`` of batch 1 wherever torch runs the same operators at both batch
    sizes; nn.MultiheadAttention, for one, copies at batch 2 what it can view at batch 1.

    Raises ModelError when the network refuses the input or fails, InvalidValue for an unknown dtype or a bad shape.
    """
    model = getattr(model, "_orig_mod", model)  # the network inside a torch.compile wrapper
    fed = feeding.described(input_shape)
    batch = feeding.whole(batch, "batch")
    if dtype not in DTYPES:
        raise InvalidValue(f"dtype (='{dtype}') is not one that can be counted; use one of {', '.join(DTYPES)}")
    parameters = list(model.parameters())
    if any(isinstance(item, LAZY) for item in parameters):
        raise ModelError(
            f"{type(model).__name__} has lazy layers without shapes; run it once on real data before profiling"
        )
    params = sum(parameter.numel() for parameter in parameters)
    records, leaving, traced_on = _run(model, Feed(fed, batch, dtype, inputs), device)
    ops = tuple(_op_cost(record) for record in records)
    uncounted = Counter(op.op for op in ops if op.kind == "unknown")
    kernels = {
        "layer": tuple(Kernel(op.madds, op.traffic) for op in ops if op.kind in PRODUCTS),
        "eager": tuple(Kernel(op.madds, op.traffic) for op in ops),
        "pointwise": fused_kernels(records, leaving, into_products=False),
        "epilogue": fused_kernels(records, leaving, into_products=True),
    }
    cost = Cost(
        params=params,
        madds=sum(op.madds for op in ops),
        activations=sum(op.activations for op in ops),
        elementwise=sum(op.elementwise for op in ops),
        memory_access_levels={
            level: sum((kernel.traffic for kernel in each), Traffic()) for level, each in kernels.items()
        },
        status="partial" if uncounted else "complete",
        uncounted=dict(uncounted),
        traced_on=traced_on,
    )
    shape, beyond = feeding.plain_shape(fed), feeding.beyond_shape(fed)
    return Profile(type(model).__name__, shape, batch, dtype, cost, ops, kernels, beyond)


@dataclass(frozen=True)
class Feed:
    """What one network is run on: described inputs, or the `values` given instead of them."""

    inputs: tuple[Input, ...]
    batch: int
    dtype: str
    values: tuple[Any, ...] | None = None

    def on(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by name: the values, or seeded ones of the shapes (none on meta)."""
        if self.values is not None:
            return tuple(_placed(item, device, getattr(torch, self.dtype)) for item in self.values), {}
        return feeding.make(self.inputs, self.batch, self.dtype, str(device))

    def __str__(self) -> str:
        return " and ".join(str(replace(item, shape=(self.batch, *item.shape))) for item in self.inputs)


def _run(model: nn.Module, feed: Feed, device: str) -> tuple[list[Record], frozenset[int], str]:
    weights = [*model.parameters(), *model.buffers()]
    home = weights[0].device if weights else torch.device("cpu")
    places = sorted({tensor.device.type for tensor in weights})
    modules = list(model.modules())
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
    failure: Exception | None = None
    with quiet_torch():
        if device != "real" and not scripted:
            try:
                with lent(modules, meta_twin(getattr(torch, feed.dtype))):
                    return *_traced(model, feed, torch.device("meta")), "meta"
            except Exception as error:
                failure = error
        if device != "meta" and "meta" not in places:
            try:
                with lent(modules, real_twin(getattr(torch, feed.dtype))):
                    return *_traced(model, feed, home), home.type
            except Exception as error:
                failure = error
    raise ModelError(_message(model, feed, failure, places)) from failure


def _traced(model: nn.Module, feed: Feed, device: torch.device) -> tuple[list[Record], frozenset[int]]:
    on_meta = device.type == "meta"
    records, leaving = trace(model, *feed.on(device), on_meta=on_meta)
    if feed.values is None and any(access.constant for record in records for access in record.writes):
        # Made from constants alone, yet perhaps once per image (a class token repeated): a second batch size tells.
        with suppress(Exception):
            again, _ = trace(model, *replace(feed, batch=feed.batch + 1).on(device), on_meta=on_meta)
            records = scaled_apart(records, again, feed.batch)
    return records, leaving


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {key: _placed(item, device, dtype) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_placed(item, device, dtype) for item in value)
    return value


def _message(model: nn.Module, feed: Feed, failure: Exception | None, places: Sequence[str]) -> str:
    name = type(model).__name__
    if failure is None:
        return f"{name} has no values in its weights (meta device); use device 'meta', or build it on the CPU"
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
    if len(places) > 1:
        return f"{name} has weights on {' and '.join(places)} and does not run there: {reason}; move it to one device"
    return f"{name} does not run on input {feed}: {reason}; give the inputs it was built for (--input)"


def _op_cost(record: Record) -> OpCost:
    plan = record.plan
    return OpCost(
        module=record.module,
        module_type=record.module_type,
        call=record.call,
        op=record.op,
        kind=plan.formula.kind,
        input_shapes=tuple(tuple(shape) for shape in plan.inputs),
        output_shapes=tuple(tuple(shape) for shape in plan.outputs),
        madds=plan.madds,
        activations=plan.activations,
        elementwise=plan.elementwise,
        weights_read=sum(access.elements for access in record.reads if access.constant),
        activations_read=sum(access.elements for access in record.reads if not access.constant),
        written=sum(access.elements for access in record.writes),
        traffic=traffic((*record.reads, *record.writes)),
    )
