"""Which networks a user's file or module holds: for a word that names the file, but no network in it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from effbench.zoo import external
from effbench.zoo.libraries import LIBRARIES

LISTED = 12


def told(place: str) -> str | None:
    """What to write instead of ``path/file.py`` or ``package.module``, in one line.

    None where `place` is neither. Imports it. Raises ModelError where that fails.
    """
    if not is_place(place):
        return None
    root = place.partition(".")[0]
    if root in LIBRARIES:
        return f"{place} is a part of {root}; write {root}:NAME"
    kind = "file" if place.endswith(".py") else "module"
    module = external.module_of(place)
    found = list(written(module))
    inside = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    if not found and inside:
        return f"{place} is a package; name a network in one of its modules, such as {place}.{inside[0]}:function"
    if not found:
        return f"{place} is a {kind} that makes no network; add a function that returns one and write {place}:function"
    words = [f"{place}:{name}" for name in found[:LISTED]]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{place} is a {kind}; name a network in it: {', '.join(words)}{more}"


def is_place(word: str) -> bool:
    """Is this a Python file, or a module that can be imported from here?"""
    if word.endswith(".py"):
        return os.path.isfile(word)
    if not all(part.isidentifier() for part in word.split(".")):
        return False
    if "." not in word:  # every installed package has such a name, so only what lies here is meant
        return os.path.isfile(f"{word}.py") or os.path.isfile(os.path.join(word, "__init__.py"))
    sys.path.insert(0, "")
    try:
        return importlib.util.find_spec(word) is not None
    except Exception:  # the parent package is a user's code and may raise anything
        return os.path.isfile(f"{word.replace('.', os.sep)}.py")
    finally:
        sys.path.remove("")


def written(module: ModuleType) -> Iterator[str]:
    """The networks of a module as they are written behind its name, in the order of the file.

    Those are functions and classes of `torch.nn.Module` defined there, and modules that are ready. What has to be told
    an argument is written with it: ``Net?width=…``.
    """
    from torch import nn

    imported, seen = _imported(module), set()
    for name, value in vars(module).items():
        if name.startswith("_") or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            if name not in imported:
                yield name
        elif inspect.isclass(value):
            if issubclass(value, nn.Module) and _is_of(value, module):
                needed = "&".join(f"{argument}=…" for argument in _required(value))
                yield f"{name}?{needed}" if needed else name
        elif isinstance(value, functools.partial):
            if name not in imported and not _required(value):
                yield name
        elif callable(value) and _is_of(value, module) and not _required(value) and _gives(value):
            yield name


def _is_of(value: Any, module: ModuleType) -> bool:
    home = getattr(value, "__module__", None) or ""
    return home == module.__name__ or (hasattr(module, "__path__") and home.startswith(f"{module.__name__}."))


def _required(factory: Callable[..., Any]) -> list[str]:
    """The arguments without which it cannot be called."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in several]


def _gives(function: Callable[..., Any]) -> bool:
    """Can this return a network, by what is written of it?"""
    function = inspect.unwrap(function)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return False
    said = getattr(function, "__annotations__", {}).get("return", "")
    if said in (None, "None", int, float, str, bool, dict, list, tuple, "int", "float", "str", "bool"):
        return False
    try:
        lines, _ = inspect.getsourcelines(function)
        body = ast.parse(inspect.cleandoc("\n" + "".join(lines))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return True  # a lambda in the middle of a line, or code without a file
    return not isinstance(body, ast.FunctionDef) or any(_returns(node) for node in body.body)


def _returns(node: ast.AST) -> bool:
    """Does this statement return a value from the function that it stands in?"""
    if isinstance(node, ast.Return):
        return node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    return any(_returns(child) for child in ast.iter_child_nodes(node))


def _imported(module: ModuleType) -> set[str]:
    """The names that a module's own file imports."""
    try:
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return set()
    if hasattr(module, "__path__"):  # a package is there to pass on what it imports
        return set()
    return {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
