"""Analytic costs: multiply-adds, activations and memory access of one forward pass.

Importing this loads no torch: each name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effbench.core.cost import Kernel
    from effbench.cost.costs import ModuleCost, OpCost, Profile
    from effbench.cost.other_counters import Check, crosscheck
    from effbench.cost.profiler import count, profile, run_in_child_process
    from effbench.cost.roofline import bound_s, bounds_s

__all__ = [
    "Check",
    "Kernel",
    "ModuleCost",
    "OpCost",
    "Profile",
    "bound_s",
    "bounds_s",
    "count",
    "crosscheck",
    "profile",
    "run_in_child_process",
]

_MODULES = {
    "Check": "other_counters",
    "Kernel": "costs",
    "ModuleCost": "costs",
    "OpCost": "costs",
    "Profile": "costs",
    "run_in_child_process": "profiler",
    "bound_s": "roofline",
    "bounds_s": "roofline",
    "count": "profiler",
    "crosscheck": "other_counters",
    "profile": "profiler",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'effbench.cost' has no attribute '{name}'")
    return getattr(importlib.import_module(f"effbench.cost.{_MODULES[name]}"), name)
