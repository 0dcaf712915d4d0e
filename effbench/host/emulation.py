"""Tell whether a run was measured under emulation: its costs are valid, its times are recorded but not shown."""

from __future__ import annotations

from effbench.core.run import Environment

EMULATED = "emulated: times are not shown"
"""Shown in place of times. An emulator translates each instruction, so its times are not those of a real processor."""


def is_emulated(conditions: Environment) -> bool:
    """Whether a run was measured under emulation, except on the fake device, whose clock is scripted."""
    return bool(conditions.facts.get("host.emulated")) and conditions.device != "fake"
