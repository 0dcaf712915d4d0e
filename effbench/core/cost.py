"""What one forward pass costs, as counts: the nouns that `core` passes on. Standard library only."""

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
    """Memory access at one level, for one forward pass of the whole batch: weights and activations apart.

    Elements and bytes moved, each read and each write counted once. ``total(batch b) = weights + b × activations``
    of batch 1, exactly.
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
        return self.weights + self.activations

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic.total((self, other))

    @classmethod
    def total(cls, parts: Iterable[Traffic]) -> Traffic:
        """The sum of all parts, without an object for each partial sum."""
        weights = activations = weight_bytes = activation_bytes = 0
        for part in parts:
            weights += part.weights
            activations += part.activations
            weight_bytes += part.weight_bytes
            activation_bytes += part.activation_bytes
        return cls(weights, activations, weight_bytes, activation_bytes)


@dataclass(frozen=True)
class Cost:
    """Analytic cost of one forward pass of the whole batch. Counts, not times.

    `madds` are multiply-adds of convolutions and matrix products (the ShuffleNetV2 paper's "FLOPs");
    `activations` their output elements; `elementwise` the operations of every other counted operator;
    `memory_access` the paper's *memory access cost*, in elements, at the named levels.
    `status` is "partial" when an operator has no formula; `uncounted` then names it with its number of calls.
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
        """JSON-ready, with the keys that ``effbench profile --json`` promises."""
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
