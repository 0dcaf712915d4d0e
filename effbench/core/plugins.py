"""Operator formulas, metrics and runtimes of other installed packages, found by their entry points.

The name of an entry point is that of the operator, metric or runtime. So names can be listed without imports. A package
is imported when one of its names is used.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from effbench.core.errors import EffbenchError, message_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OPERATOR_GROUP, METRIC_GROUP, RUNTIME_GROUP = "effbench.operators", "effbench.metrics", "effbench.runtimes"
"""The groups of entry points."""

_KINDS = {OPERATOR_GROUP: "operator formula", METRIC_GROUP: "metric", RUNTIME_GROUP: "runtime"}
_NAMES = {
    OPERATOR_GROUP: re.compile(r"\w+::\w+"),
    METRIC_GROUP: re.compile(r"[A-Za-z][\w-]*"),
    RUNTIME_GROUP: re.compile(r"(?!all$)[A-Za-z][\w-]*"),
}
"""The allowed names. They contain no comma (separates runtimes) and no space (separates metrics)."""


class BrokenPlugin(EffbenchError):
    """A plug-in of a package or a user cannot be loaded, or does not behave as required."""


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages provide in this group, in order. Imports none of them."""
    return tuple(sorted(_entry_points(group, tuple(sys.path))))


def load(group: str, name: str) -> Any:
    """Import the object that the entry point of this name refers to.

    Raises KeyError if no package has this name, BrokenPlugin if two have it or if the import fails.
    """
    points = _entry_points(group, tuple(sys.path))[name]
    kind = _KINDS[group]
    if len(points) > 1:
        packages = " and ".join(sorted(map(package_of, points)))
        raise BrokenPlugin(f"{kind} '{name}' is provided by {packages}; uninstall all but one")
    try:
        return points[0].load()
    except (Exception, SystemExit) as error:  # importing other packages may raise anything
        raise BrokenPlugin(f"{kind} '{name}' of the package {package_of(points[0])} {failure_text(error)}") from error


def failure_text(error: BaseException, advice: str = "repair or uninstall it") -> str:
    """The text "fails (ERROR); ADVICE" for an error, to end a sentence with."""
    said = " ".join((message_of(error).strip() or "no text").splitlines()[0].split())[:200]
    return f"fails ({type(error).__name__}: {said}); {advice}"


def providing_package(group: str, name: str) -> str:
    """The package that provides this name; "" if none does."""
    return next(map(package_of, _entry_points(group, tuple(sys.path)).get(name, [])), "")


def package_of(point: EntryPoint) -> str:
    return str(getattr(point.dist, "name", None) or point.value.partition(":")[0])


@lru_cache(maxsize=16)
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Entry points by name. `path` is `sys.path`, as the key of the cache."""
    from importlib import metadata

    try:
        points = list(metadata.entry_points(group=group))
    except Exception:  # the metadata of any installed package may be damaged
        return {}
    found: dict[str, list[EntryPoint]] = {}
    for point in points:
        if _NAMES[group].fullmatch(point.name):
            found.setdefault(point.name, []).append(point)
    return found
