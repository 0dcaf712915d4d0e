"""Where a user's modules are looked for: in his folders first, but never instead of a module of Python or of torch.

A file called logging.py beside a network is the user's own business until torch, which imports much only when it needs
it, gets that file instead of Python's module.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = frozenset(
    {
        *("torch", "numpy", "scipy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock"),
        *("typing_extensions", "packaging", "yaml", "psutil", "cloudpickle", "functorch", "torchgen", "triton"),
        *("ml_dtypes", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "ncnn", "executorch"),
    }
)
"""What torch, the runtimes and effbench import, much of it only when it is needed. None of it is a user's network."""


def load_needed(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Import torch, NumPy and what else of `NEEDED` has a namesake in these folders, before they can be searched.

    Raises ImportError where there is no torch.
    """
    importlib.import_module("torch")
    namesakes = {"numpy"}.union(*map(_modules_in, folders)) & NEEDED
    for name in sorted(namesakes):
        with suppress(Exception):  # not installed, or broken: whoever needs it will say so
            importlib.import_module(name)


def arranged(folders: Sequence[str], path: Sequence[str]) -> list[str]:
    """`path` with the places of Python's own modules first, and the user's `folders` right behind them."""
    own = [entry for entry in path if entry and os.path.realpath(entry) in _PYTHONS_OWN]
    return [*dict.fromkeys(own), *folders, *(entry for entry in path if entry not in own)]


@contextmanager
def searched(folder: str, *, before_python: bool = False) -> Iterator[None]:
    """Within the block modules are looked for in this folder before any other but Python's own, or before those too."""
    load_needed([folder or os.getcwd()])
    before, within = sys.path[:], [folder, *sys.path] if before_python else arranged([folder], sys.path)
    sys.path[:] = within
    try:
        yield
    finally:
        if sys.path == within:
            sys.path[:] = before
        else:  # the user's code has changed it for itself
            with suppress(ValueError):
                sys.path.remove(folder)


def is_pythons(module: str) -> bool:
    """Is the first name of ``package.module`` that of a module of Python itself?"""
    return module.partition(".")[0] in sys.stdlib_module_names


def namesake(module: str) -> Path | None:
    """The user's file here that is called like a module of Python or of `NEEDED`, whose name is taken for good."""
    file = Path(f"{module}.py")
    return file if (is_pythons(module) or module in NEEDED) and file.is_file() else None


def is_of_python(path: str) -> bool:
    """Does this real path lie among Python's own modules?"""
    return any(path.startswith(place + os.sep) for place in _PYTHONS_OWN) and not any(
        part in ("site-packages", "dist-packages") for part in path.split(os.sep)
    )


def _pythons_own() -> frozenset[str]:
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    places += [os.path.join(place, "lib-dynload") for place in places]
    version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    places += [os.path.join(os.path.dirname(place), version) for place in places[:2]]
    return frozenset(map(os.path.realpath, places))


_PYTHONS_OWN = _pythons_own()


def _modules_in(folder: str | os.PathLike[str]) -> set[str]:
    """The names of the modules and packages that lie in a folder."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return set()
    files = {entry.partition(".")[0] for entry in entries if entry.endswith((".py", ".so", ".pyd"))}
    return files | {entry for entry in entries if os.path.isfile(os.path.join(folder, entry, "__init__.py"))}
