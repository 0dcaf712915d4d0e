"""Analytic costs: multiply-adds, activations and memory access of one forward pass."""

from __future__ import annotations

from effbench.cost.costs import ModuleCost, OpCost, Profile
from effbench.cost.crosscheck import Check, crosscheck
from effbench.cost.profile import apart, count, profile
from effbench.cost.roofline import Kernel, bound_s, bounds_s

__all__ = [
    "Check",
    "Kernel",
    "ModuleCost",
    "OpCost",
    "Profile",
    "apart",
    "bound_s",
    "bounds_s",
    "count",
    "crosscheck",
    "profile",
]
