"""Tell whether a run was measured under emulation: its costs are valid and its blocks are kept, but times are not
shown.
"""

from __future__ import annotations

from effbench.core.run import Environment

EMULATED = "emulated: times are not shown"
"""Why such a run shows costs and no times: its instructions were translated, so its times say nothing about a
processor.
"""


def is_emulated(conditions: Environment) -> bool:
    """Whether a run was measured under emulation. The fake device's scripted clock is valid there too."""
    return bool(conditions.facts.get("host.emulated")) and conditions.device != "fake"
