"""effbench: which efficiency guidelines hold on your hardware?

    >>> import effbench
    >>> effbench.profile("shufflenet_v2").cost.madds
    >>> effbench.run("g2_groups").verdicts
    >>> effbench.measure(my_module, (3, 224, 224)).to_frame()

Importing this costs milliseconds: torch, pandas and matplotlib load when something first needs them.
pytest, whose plugin is in here, has no asserts of ours to explain: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effbench._version import __version__

__all__ = ["__version__", "analyse", "compare", "load", "measure", "profile", "run"]

if TYPE_CHECKING:
    from effbench.api import analyse, compare, load, measure, profile, run


def __getattr__(name: str) -> Any:
    if name in __all__:
        from effbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'effbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
