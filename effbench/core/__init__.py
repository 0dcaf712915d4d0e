"""The data types of effbench: frozen dataclasses and small helpers. Start reading here.

`study` has the types that describe a measurement, `run` those of its raw data, `estimate` those of its results. Study
files may import the types from here or from `effbench`.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "study": ("Analysis", "Case", "Cell", "Claim", "Experiment", "Label", "Sampling"),
    "run": ("Block", "Environment", "Launch", "Result", "Run", "Timing"),
    "estimate": ("Comparison", "Estimate", "Verdict"),
    "cost": ("DEFAULT_LEVEL", "LEVELS", "Cost", "Traffic"),
    "inputs": ("Input",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"effbench.core.{module}"), name)
    raise AttributeError(f"module 'effbench.core' has no attribute '{name}'")
