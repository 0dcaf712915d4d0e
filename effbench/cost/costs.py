"""What one forward pass costs: of one operator, of one module, of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effbench.core.cost import Cost, Kernel, Traffic
from effbench.core.inputs import Input

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class OpCost:
    """Cost of one operator call. Each read and each write of an element counts once.

    Attributes
    ----------
    module
        Path of the innermost module; ``""`` is the network itself.
    module_type
        Class name of that module.
    call
        Which use of that module it was, from 1.
    op
        Name of the operator.
    kind
        ``"conv"``, ``"matmul"``, ``"attention"``, ``"recurrent"``, ``"norm"``, ``"pool"``, ``"reduce"``,
        ``"elementwise"``, ``"data"`` or ``"unknown"``.
    input_shapes, output_shapes
        Shapes of its tensors.
    madds
        Multiply-adds.
    activations
        Output elements of convolutions and matrix products.
    elementwise
        Operations of other operators.
    weights_read
        Elements read that do not depend on the network's input: parameters, buffers, what is computed from them alone.
    activations_read
        Other elements read.
    written
        Elements written.
    traffic
        The same elements, with bytes.
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
        """Bytes read and written."""
        return self.traffic.bytes

    def to_dict(self) -> dict[str, Any]:
        """The cost as JSON-ready values.

        Returns
        -------
        dict
            With the module's path as ``name``.
        """
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
    """Sum over the operators at and below one module.

    Attributes
    ----------
    module
        Path of the module; ``""`` is the network itself.
    module_type
        Class name of the module; ``""`` where it has no operator of its own.
    madds
        Multiply-adds.
    activations
        Output elements of convolutions and matrix products.
    elementwise
        Operations of other operators.
    traffic
        Elements and bytes moved.
    """

    module: str
    module_type: str
    madds: int
    activations: int
    elementwise: int
    traffic: Traffic


@dataclass(frozen=True)
class Profile:
    """Cost of one network on one input, and of each of its operators in order of execution.

    Attributes
    ----------
    model
        Name of the network.
    input_shape
        Shape without the batch, or a tuple of several.
    batch
        Images per call.
    dtype
        Dtype that the network was counted in.
    cost
        Counts of the whole network.
    ops
        Cost of each operator call.
    kernels
        By level of memory access, what runs as one kernel there. Their traffic adds up to that level's, and their
        multiply-adds to the network's.
    inputs
        The inputs, where they are more than one unnamed float tensor.
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

        return profile_repr.html_text(self)

    def to_dict(self, layers: bool = False) -> dict[str, Any]:
        """The profile as JSON-ready values.

        Parameters
        ----------
        layers
            Whether to add one entry per operator.

        Returns
        -------
        dict
            With the keys of ``effbench profile --json``.
        """
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
        """Costs by module, each with everything below it.

        Parameters
        ----------
        depth
            Levels below the network: 0 is the network alone, 1 adds its children. None takes all.

        Returns
        -------
        tuple of ModuleCost
            In order of execution.
        """
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
        """The operators as a table.

        Returns
        -------
        pandas.DataFrame
            One row per operator, in order of execution.
        """
        import pandas

        return pandas.DataFrame([op.to_dict() for op in self.ops])
