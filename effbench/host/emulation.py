"""What is not said of a run under emulation: its times. Its costs are as exact as anywhere, its raw blocks are kept."""

from __future__ import annotations

from effbench.core.run import Environment

EMULATED = "emulated: times are not shown"
"""Why a run has counts and no times: another processor translated its code, and how long that took says nothing."""


def is_emulated(conditions: Environment) -> bool:
    """Whether a run was measured under emulation. A scripted clock keeps its own time there too."""
    return bool(conditions.facts.get("host.emulated")) and conditions.device != "fake"
