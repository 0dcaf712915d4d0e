"""The Python API for notebooks and scripts. The command line uses it too."""

from __future__ import annotations

from effbench.api.bundling import bundle, run_bundle
from effbench.api.measuring import analyse, compare, load, measure, profile, resume, run
from effbench.runs.destination import new_directory

__all__ = [
    "analyse",
    "bundle",
    "compare",
    "load",
    "measure",
    "new_directory",
    "profile",
    "resume",
    "run",
    "run_bundle",
]
