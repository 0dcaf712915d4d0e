"""What one forward pass costs: of one operator, of one module, of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effbench.core.cost import Cost, Traffic
from effbench.core.inputs import Input
from effbench.cost.roofline import Kernel

if TYPE_CHECKING:
    import pandas


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
                traffic=Traffic.total(op.traffic for op in ops),
            )
            for path, ops in sums.items()
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per operator."""
        import pandas

        return pandas.DataFrame([op.to_dict() for op in self.ops])
