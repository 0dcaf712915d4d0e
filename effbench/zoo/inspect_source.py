"""Read from the source of a user's file which package it belongs to and which names it defines."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def advise_module_name(path: Path, name: str, missing: str = "") -> str | None:
    """Return advice to name a file as a module of its package, which its relative imports need; None if it is in no
    package.

    `missing` is a module that the file failed to import, which may be its own package.
    """
    level, imported = _deepest_relative_import(path)
    parts = list(path.resolve().with_suffix("").parts)
    depth = 1  # number of trailing parts that form the module's name
    while depth < len(parts) - 1 and os.path.isfile(os.path.join(*parts[:-depth], "__init__.py")):
        depth += 1
    depth = max(depth, level + 1 if level else 1)
    if depth == 1 or depth >= len(parts):
        return None
    module = ".".join(parts[-depth:])
    if missing and missing.partition(".")[0] != parts[-depth]:
        return None
    if not level and not missing:
        return None
    root = os.path.join(*parts[:-depth])
    factory = name.partition("?")[0].rpartition(":")[2] if ":" in name else "FUNCTION"
    why = f"it imports '{imported}'" if level and not missing else f"it imports its own package '{missing}'"
    return f"{path} is a part of the package {parts[-depth]} ({why}); name it {module}:{factory}{_path_hint(root)}"


def _path_hint(root: str) -> str:
    """Return what else to do so that modules in this folder are found; "" if nothing."""
    here = os.getcwd()
    if os.path.realpath(root) in map(os.path.realpath, (entry or here for entry in (here, *sys.path))):
        return ""
    short = os.path.relpath(root, here)
    return f' and set PYTHONPATH={short}, or in effbench.toml paths = ["{short}"] under [check]'


def _deepest_relative_import(path: Path) -> tuple[int, str]:
    """Return the most dots of any relative import in the file, and that import as written; (0, "") without one."""
    found = [
        ("." * node.level + (node.module or ""), node.level)
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    written, level = max(found, key=lambda item: item[1], default=("", 0))
    return level, written


def may_define(module: ModuleType, name: str) -> bool:
    """Whether the module's own file binds this name anywhere, or may provide it in another way.

    If so, the name is missing for another reason, such as a package that its import needs. True if the file cannot be
    read.
    """
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or not os.path.isfile(file):
        return True
    return any(_binds_name(node, name) for node in _outside_functions(_parse(Path(file))))


def _binds_name(node: ast.AST, name: str) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name == name
    if isinstance(node, ast.alias):
        return name in (node.asname, node.name)
    if isinstance(node, ast.Name):
        return node.id == name
    if isinstance(node, ast.Try):  # its star import may have failed
        return any(
            alias.name == "*" for inner in ast.walk(node) if isinstance(inner, ast.ImportFrom) for alias in inner.names
        )
    return isinstance(node, ast.Constant) and node.value == name  # in a table of lazily imported names


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node outside of functions and classes, which have their own names. ``__getattr__`` is included."""
    for child in ast.iter_child_nodes(node):
        yield child
        is_closed = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda))
        if not is_closed or getattr(child, "name", "") == "__getattr__":
            yield from _outside_functions(child)


def _parse(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return ast.Module([], [])
