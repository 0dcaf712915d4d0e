"""The analytic cost of one forward pass, as data types: counts and memory access. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LEVELS = ("layer", "eager", "pointwise", "epilogue")
"""Named levels of memory access cost, from the paper's closed form to what a deployment runtime reaches."""

DEFAULT_LEVEL = "eager"
"""The level that ``memory_access`` means when no level is named."""


@dataclass(frozen=True)
class Traffic:
    """Memory access at one level, of one forward pass of the whole batch. Each read and each write counts once.

    The total at batch b is exactly ``weights + b * activations`` of batch 1.

    Parameters
    ----------
    weights
        Elements of parameters, buffers, and what is computed from them alone.
    activations
        All other elements read and written: inputs, outputs, intermediate results. Not `Cost.activations`, which counts
        each output of a convolution or product once.
    weight_bytes, activation_bytes
        The same in bytes.
    """

    weights: int = 0
    activations: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    def __str__(self) -> str:
        from effbench.core import units

        return f"{units.count(self.elements)} elements, {units.size(self.bytes)}"

    @property
    def elements(self) -> int:
        """Elements of weights and activations."""
        return self.weights + self.activations

    @property
    def bytes(self) -> int:
        """Bytes of weights and activations."""
        return self.weight_bytes + self.activation_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic.total((self, other))

    @classmethod
    def total(cls, parts: Iterable[Traffic]) -> Traffic:
        """The sum of several.

        Parameters
        ----------
        parts
            The terms of the sum.

        Returns
        -------
        Traffic
            The sum; zero without parts.
        """
        weights = activations = weight_bytes = activation_bytes = 0
        for part in parts:
            weights += part.weights
            activations += part.activations
            weight_bytes += part.weight_bytes
            activation_bytes += part.activation_bytes
        return cls(weights, activations, weight_bytes, activation_bytes)


@dataclass(frozen=True)
class Kernel:
    """One fused kernel at some level of fusion.

    Attributes
    ----------
    madds
        Multiply-adds.
    traffic
        Memory read and written.
    """

    madds: int
    traffic: Traffic


@dataclass(frozen=True)
class Cost:
    """Analytic cost of one forward pass of the whole batch. Counts, not times.

    Attributes
    ----------
    params
        Learnable parameters.
    madds
        Multiply-adds of convolutions and matrix products: the "FLOPs" of the ShuffleNetV2 paper (arXiv 1807.11164).
    activations
        Output elements of those operators.
    elementwise
        Operations of all other operators.
    memory_access_levels
        Memory access cost by level: ``"layer"``, ``"epilogue"``, ``"pointwise"``, ``"eager"``.
    status
        ``"partial"`` where an operator has no formula, else ``"complete"``.
    uncounted
        Operators without a formula, with their number of calls.
    traced_on
        The device of the traced pass: ``"meta"`` for shapes without values, or that of real tensors.
    """

    params: int
    madds: int
    activations: int
    elementwise: int
    memory_access_levels: Mapping[str, Traffic]
    status: Literal["complete", "partial"] = "complete"
    uncounted: Mapping[str, int] = field(default_factory=dict)
    traced_on: str = "meta"

    def __str__(self) -> str:
        from effbench.core import units

        counts = ", ".join(f"{units.count(getattr(self, name))} {name}" for name in ("params", "madds", "activations"))
        partial = f" (partial: {', '.join(self.uncounted)} not counted)" if self.status == "partial" else ""
        return f"{counts}, memory access {self.memory_access_levels[DEFAULT_LEVEL]}{partial}"

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 per multiply-add, plus the element-wise operations."""
        return 2 * self.madds + self.elementwise

    @property
    def memory_access(self) -> int:
        """Memory access cost in elements at the default level (eager)."""
        return self.memory_access_levels[DEFAULT_LEVEL].elements

    @property
    def memory_access_bytes(self) -> int:
        """Memory access cost in bytes at the default level (eager)."""
        return self.memory_access_levels[DEFAULT_LEVEL].bytes

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON-ready values.

        Returns
        -------
        dict
            With the keys of ``effbench profile --json``.
        """
        return {
            "params": self.params,
            "madds": self.madds,
            "activations": self.activations,
            "elementwise": self.elementwise,
            "memory_access": self.memory_access,
            "memory_access_bytes": self.memory_access_bytes,
            "memory_access_levels": {
                level: {**asdict(traffic), "elements": traffic.elements, "bytes": traffic.bytes}
                for level, traffic in self.memory_access_levels.items()
            },
            "status": self.status,
            "uncounted": dict(self.uncounted),
            "traced_on": self.traced_on,
        }
