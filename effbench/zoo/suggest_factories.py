"""List the networks in a user's file or module, for a name that refers to the file but to no network in it."""

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

from effbench.zoo import load_model
from effbench.zoo.libraries import LIBRARIES

MAX_LISTED = 12


def advice(place: str) -> str | None:
    """Return in one line what to write instead of ``path/file.py`` or ``package.module``; None if `place` is neither.

    Imports it. Raises ModelError if that fails.
    """
    if not is_file_or_module(place):
        return None
    root = place.partition(".")[0]
    if root in LIBRARIES:
        return f"{place} is a part of {root}; write {root}:NAME"
    kind = "file" if place.endswith(".py") else "module"
    module = load_model.module_of(place)
    found = list(network_names(module))
    inside = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    if not found and inside:
        return f"{place} is a package; name a network in one of its modules, such as {place}.{inside[0]}:function"
    if not found:
        return f"{place} is a {kind} that makes no network; add a function that returns one and write {place}:function"
    choices = [f"{place}:{name}" for name in found[:MAX_LISTED]]
    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    return f"{place} is a {kind}; name a network in it: {', '.join(choices)}{more}"


def is_file_or_module(name: str) -> bool:
    """Whether this is a Python file, or a module that can be imported from here."""
    if name.endswith(".py"):
        return os.path.isfile(name)
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    if "." not in name:  # could be any installed package, so only the current folder counts
        return os.path.isfile(f"{name}.py") or os.path.isfile(os.path.join(name, "__init__.py"))
    sys.path.insert(0, "")
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # the parent package is a user's code and may raise anything
        return os.path.isfile(f"{name.replace('.', os.sep)}.py")
    finally:
        sys.path.remove("")


def network_names(module: ModuleType) -> Iterator[str]:
    """Yield what names a network of this module, as it is written after ``module:``, in the order of the file.

    These are functions that may return a network and subclasses of `torch.nn.Module`, both defined there, and instances
    of it. To a class its required arguments are added: ``Net?width=…``.
    """
    from torch import nn

    imported, seen = _imported_names(module), set()
    for name, value in vars(module).items():
        if name.startswith("_") or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            if name not in imported:
                yield name
        elif inspect.isclass(value):
            if issubclass(value, nn.Module) and _is_defined_in(value, module):
                needed = "&".join(f"{argument}=…" for argument in _required_arguments(value))
                yield f"{name}?{needed}" if needed else name
        elif isinstance(value, functools.partial):
            if name not in imported and not _required_arguments(value):
                yield name
        elif (
            callable(value)
            and _is_defined_in(value, module)
            and not _required_arguments(value)
            and _may_return_network(value)
        ):
            yield name


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    defining_module = getattr(value, "__module__", None) or ""
    return defining_module == module.__name__ or (
        hasattr(module, "__path__") and defining_module.startswith(f"{module.__name__}.")
    )


def _required_arguments(factory: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments without which `factory` cannot be called."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in several]


def _may_return_network(function: Callable[..., Any]) -> bool:
    """Whether this may return a network, judging by its source."""
    function = inspect.unwrap(function)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return False
    annotation = getattr(function, "__annotations__", {}).get("return", "")
    if annotation in (None, "None", int, float, str, bool, dict, list, tuple, "int", "float", "str", "bool"):
        return False
    try:
        lines, _ = inspect.getsourcelines(function)
        body = ast.parse(inspect.cleandoc("\n" + "".join(lines))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return True  # a lambda in the middle of a line, or code without a file
    return not isinstance(body, ast.FunctionDef) or any(_returns(node) for node in body.body)


def _returns(node: ast.AST) -> bool:
    """Whether this statement returns a value from its function."""
    if isinstance(node, ast.Return):
        return node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    return any(_returns(child) for child in ast.iter_child_nodes(node))


def _imported_names(module: ModuleType) -> set[str]:
    """Return the names that a module's own file imports."""
    try:
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return set()
    if hasattr(module, "__path__"):  # a package re-exports what it imports
        return set()
    return {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
