"""Tell before a launch whether this machine is fit to measure now."""

from __future__ import annotations

import time
from pathlib import Path

from effbench.host import machine
from effbench.host.noise import Observation

HOT_C = 85.0
"""Processors lower their clock from about here."""

OTHER_CORES = 0.5
"""Others that keep more than this many cores busy are waited for."""

WINDOW_S = 0.3


def why_unfit(root: Path = machine.HERE) -> str:
    """Return why the machine itself is not fit: throttled, or too hot; "" if it is."""
    mask = machine.firmware_throttling(root)
    if mask is not None and mask & 0xF:
        return f"the firmware throttles the processor ({mask:#x})"
    hottest = max(machine.temperatures(root).items(), key=lambda item: item[1], default=None)
    if hottest is not None and hottest[1] >= HOT_C:
        return f"too hot: {hottest[1]:.0f} °C ({hottest[0]})"
    return ""


def why_busy(window_s: float = WINDOW_S) -> str:
    """Watch the machine for `window_s` and return which load others put on it; "" if they leave it alone."""
    observed = Observation()
    time.sleep(window_s)
    _, conditions = observed.end()
    others = conditions.other_cores
    return f"others keep {others:.1f} cores busy" if others is not None and others > OTHER_CORES else ""
