"""Benchmark PyTorch networks, and test which efficiency guidelines hold on your hardware.

    >>> import effbench
    >>> effbench.profile("shufflenet_v2").cost.madds
    >>> effbench.run("g2_groups").verdicts
    >>> effbench.measure(my_module, (3, 224, 224)).to_frame()

Importing this costs milliseconds: torch, pandas and matplotlib load when something first needs them.
PYTEST_DONT_REWRITE: pytest loads a plugin from here, and would import slower if it rewrote its asserts.
"""

from __future__ import annotations

import os
import sys

# `python -m effbench` looks for modules in the current folder first, where a user's random.py must not stand in for
# Python's. So before anything else is imported; a user's own modules are found later, as with the console script.
if sys.argv[:1] == ["-m"] and ("-m", "effbench") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False):
    _home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # A clone that is not installed is found in the current folder alone.
    if sys.path and sys.path[0] in ("", os.getcwd()) and os.getcwd() != _home:
        del sys.path[0]

from effbench._version import __version__

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from typing import Any

    from effbench.api import analyse, bundle, compare, load, measure, profile, resume, run, run_bundle
    from effbench.core.estimate import Estimate
    from effbench.core.inputs import Input
    from effbench.core.study import Analysis, Case, Claim, Experiment
    from effbench.cost.user_formulas import OperatorCost, register_operator_formula
    from effbench.results import Results

__all__ = [
    "Analysis",
    "Case",
    "Claim",
    "Estimate",
    "Experiment",
    "Input",
    "OperatorCost",
    "Results",
    "__version__",
    "analyse",
    "bundle",
    "compare",
    "load",
    "measure",
    "profile",
    "register_operator_formula",
    "resume",
    "run",
    "run_bundle",
]

_HOMES = {
    "effbench.api": ("analyse", "bundle", "compare", "load", "measure", "profile", "resume", "run", "run_bundle"),
    "effbench.core.estimate": ("Estimate",),
    "effbench.core.inputs": ("Input",),
    "effbench.cost.user_formulas": ("OperatorCost", "register_operator_formula"),
    "effbench.core.study": ("Analysis", "Case", "Claim", "Experiment"),
    "effbench.results": ("Results",),
}
"""Where each public name is defined. A name that is new goes here, into `__all__` and into the imports above."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'effbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
