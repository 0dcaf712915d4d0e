"""Packages that may be missing: what to say where one is needed. A board that runs bundles has few of them."""

from __future__ import annotations

import importlib.util

from effbench.core.errors import EffbenchError

_INSTALLED_AS = {
    "cloudpickle": "cloudpickle",
    "cpuinfo": "py-cpuinfo",
    "filelock": "filelock",
    "fvcore": "fvcore",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "pandas": "pandas",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "pytest_benchmark": "pytest-benchmark",
    "rich": "rich",
    "scipy": "scipy",
    "tomli": "tomli",
    "torch": "torch",
    "typer": "typer",
}
"""What effbench imports, by the name that pip knows it under."""


class MissingPackage(EffbenchError):
    """A package that this needs is not installed; the message says how to install it."""


def has(module: str) -> bool:
    """Whether this module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def require(module: str) -> None:
    """Raises MissingPackage unless this module could be imported."""
    if not has(module):
        raise MissingPackage(_advice(module))


def lacking(error: ModuleNotFoundError) -> str | None:
    """One line for people about an import of ours that failed; None for one that is not ours."""
    module = (error.name or "").partition(".")[0]
    return _advice(module) if module in _INSTALLED_AS else None


def _advice(module: str) -> str:
    advice = f"this needs {module}, which is not installed here; pip install {_INSTALLED_AS.get(module, module)}"
    return advice + ", or measure a bundle from another machine (effbench run-bundle)" * (module == "torch")
