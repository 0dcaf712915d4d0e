"""Search the user's folders for modules, but never import a user's file in place of a module of Python or torch.

A file called logging.py beside a network is harmless until torch, which imports much of its code late, imports that
file instead of Python's module.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

IMPORTED_PACKAGES = frozenset(
    {
        *("torch", "numpy", "scipy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock"),
        *("typing_extensions", "packaging", "yaml", "psutil", "cloudpickle", "functorch", "torchgen", "triton"),
        *("ml_dtypes", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "ncnn", "executorch"),
    }
)
"""Packages that torch, the runtimes and effbench import, some of them late. No user's network has such a name."""


def import_shadowed_packages(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Import torch, NumPy and all `IMPORTED_PACKAGES` that have a namesake in these folders.

    Called before the folders are searched, so that the namesakes are not imported instead.
    Raises ImportError if torch is missing.
    """
    importlib.import_module("torch")
    namesakes = {"numpy"}.union(*map(_modules_in, folders)) & IMPORTED_PACKAGES
    for name in sorted(namesakes):
        with suppress(Exception):  # not installed or broken: whatever needs it will report that
            importlib.import_module(name)


def insert_after_stdlib(folders: Sequence[str], path: Sequence[str]) -> list[str]:
    """Return `path` with the folders of Python's own modules first, directly followed by the user's `folders`."""
    own = [entry for entry in path if entry and os.path.realpath(entry) in _STDLIB_FOLDERS]
    return [*dict.fromkeys(own), *folders, *(entry for entry in path if entry not in own)]


@contextmanager
def search_folder(folder: str, *, before_python: bool = False) -> Iterator[None]:
    """Within the block, search this folder right after Python's own modules, or before them with `before_python`."""
    import_shadowed_packages([folder or os.getcwd()])
    before, within = sys.path[:], [folder, *sys.path] if before_python else insert_after_stdlib([folder], sys.path)
    sys.path[:] = within
    try:
        yield
    finally:
        if sys.path == within:
            sys.path[:] = before
        else:  # the user's code has changed the path
            with suppress(ValueError):
                sys.path.remove(folder)


def is_stdlib_name(module: str) -> bool:
    """Whether the first name of ``package.module`` is that of a module of the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names


def namesake(module: str) -> Path | None:
    """Return the user's file with the name of a standard-library module or of an `IMPORTED_PACKAGES`, or None."""
    file = Path(f"{module}.py")
    return file if (is_stdlib_name(module) or module in IMPORTED_PACKAGES) and file.is_file() else None


def is_in_stdlib(path: str) -> bool:
    """Whether this real path lies in the standard library."""
    return any(path.startswith(place + os.sep) for place in _STDLIB_FOLDERS) and not any(
        part in ("site-packages", "dist-packages") for part in path.split(os.sep)
    )


def _stdlib_folders() -> frozenset[str]:
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    places += [os.path.join(place, "lib-dynload") for place in places]
    version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    places += [os.path.join(os.path.dirname(place), version) for place in places[:2]]
    return frozenset(map(os.path.realpath, places))


_STDLIB_FOLDERS = _stdlib_folders()


def _modules_in(folder: str | os.PathLike[str]) -> set[str]:
    """Return the names of the modules and packages in a folder."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return set()
    files = {entry.partition(".")[0] for entry in entries if entry.endswith((".py", ".so", ".pyd"))}
    return files | {entry for entry in entries if os.path.isfile(os.path.join(folder, entry, "__init__.py"))}
