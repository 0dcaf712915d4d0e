"""Analytic costs: multiply-adds, activations and memory access of one forward pass."""

from __future__ import annotations

from effbench.cost.crosscheck import Check, crosscheck
from effbench.cost.profile import ModuleCost, OpCost, Profile, profile

__all__ = ["Check", "ModuleCost", "OpCost", "Profile", "crosscheck", "profile"]
