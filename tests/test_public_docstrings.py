"""Every public name documents its parameters, attributes and results in numpy style."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from numpydoc.docscrape import FunctionDoc, NumpyDocString

import effbench

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DIRECTIVES = re.findall(r"^\.\. auto(\w+):: (\S+)$", PAGE, re.M)


NAMED = {
    **{f"effbench.{name}": getattr(effbench, name) for name in effbench.__all__ if name != "__version__"},
    **{path: pkgutil.resolve_name(path) for kind, path in DIRECTIVES if kind != "module"},
}
"""What docs/api.md documents: the names of effbench, and each object that a directive names."""


def described(lines: list[Any]) -> set[str]:
    """The names of a section that have a text; one entry may describe several."""
    return {
        name.strip().lstrip("*") for entry in lines if "".join(entry.desc).strip() for name in entry.name.split(",")
    }


def faults_of_function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """What the docstring of a function or method lacks, or has too much."""
    text = inspect.getdoc(function)
    if not text:
        yield f"{name} has no docstring"
        return
    parts = FunctionDoc(function)
    signature = inspect.signature(function)
    taken = set(signature.parameters) - {"self", "cls"}
    told = described(parts["Parameters"])
    yield from (f"{name} does not describe its parameter {item}" for item in sorted(taken - told))
    yield from (f"{name} describes {item}, which it does not take" for item in sorted(told - taken))
    if signature.return_annotation not in (None, "None") and not any("".join(item.desc) for item in parts["Returns"]):
        yield f"{name} does not describe what it returns"
    yield from (
        f"{name} raises {item.type or item.name} without saying when" for item in parts["Raises"] if not item.desc
    )


def faults_of_class(name: str, kind: type) -> Iterator[str]:
    """What the docstrings of a class, its properties and its methods lack."""
    parts = NumpyDocString(inspect.cleandoc(kind.__doc__ or ""))
    if not parts["Summary"]:
        yield f"{name} has no summary"
    fields = {item for item in vars(kind).get("__annotations__", {}) if not item.startswith("_")}
    told = [*described(parts["Parameters"]), *described(parts["Attributes"])]
    yield from (f"{name} does not describe {item}" for item in sorted(fields - set(told)))
    # An exception also has what its constructor sets.
    if not issubclass(kind, BaseException):
        yield from (f"{name} describes {item}, which it does not have" for item in sorted(set(told) - fields))
    yield from (f"{name} describes {item} twice" for item in sorted({item for item in told if told.count(item) > 1}))
    for attribute, item in vars(kind).items():
        if attribute.startswith("_"):
            continue
        function = item.__func__ if isinstance(item, (classmethod, staticmethod)) else item
        if inspect.isfunction(function):
            yield from faults_of_function(f"{name}.{attribute}", function)
        elif isinstance(item, (property, cached_property)) and not item.__doc__:
            yield f"{name}.{attribute} has no docstring"


def faults(name: str, item: Any) -> list[str]:
    return list(faults_of_class(name, item) if inspect.isclass(item) else faults_of_function(name, item))


@pytest.mark.parametrize("name", NAMED)
def test_each_public_name_describes_its_parameters_and_attributes(name: str) -> None:
    found = faults(name, NAMED[name])
    assert not found, "\n".join(found)


def annotations(item: Any) -> Iterator[str]:
    """The types of what a function takes and returns, or a class holds, as they are written."""
    if not inspect.isclass(item):
        yield str(inspect.signature(item))
        return
    for attribute, kind in vars(item).get("__annotations__", {}).items():
        if not attribute.startswith("_"):
            yield kind
    for attribute, member in vars(item).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or inspect.unwrap(member)
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function) and not attribute.startswith("_"):
            yield str(inspect.signature(function))


def test_the_types_that_public_names_take_and_return_are_public_too() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "effbench").rglob("*.py"))
    # A name that is also an alias stands for one of Python's types here: Call, Cluster.
    ours = set(re.findall(r"^class ([A-Z]\w+)", code, re.M)) - set(re.findall(r"^([A-Z]\w+) = ", code, re.M))
    public = {item.__name__ for item in NAMED.values() if inspect.isclass(item)}
    missing = {
        f"{name}: {word}"
        for name, item in NAMED.items()
        for text in annotations(item)
        for word in re.findall(r"\w+", text)
        if word in ours - public
    }
    assert not missing


@dataclasses.dataclass
class Sample:
    """A thing.

    Attributes
    ----------
    known
        Described.
    gone
        Not a field.
    """

    known: int
    new: int

    def made(self, size: int) -> int:
        """Make it."""
        return size

    @property
    def bare(self) -> int:
        return 1


class Plain:
    """A thing that is no dataclass."""

    shown: int
    _hidden: int


def test_the_check_finds_what_is_missing_and_what_is_stale() -> None:
    assert faults("Plain", Plain) == ["Plain does not describe shown"]
    assert faults("Sample", Sample) == [
        "Sample does not describe new",
        "Sample describes gone, which it does not have",
        "Sample.made does not describe its parameter size",
        "Sample.made does not describe what it returns",
        "Sample.bare has no docstring",
    ]
