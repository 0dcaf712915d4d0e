"""Report missing optional packages. A board that only runs bundles has few of them."""

from __future__ import annotations

import importlib.util

from effbench.core.errors import EffbenchError

_PYPI_NAMES = {
    "cloudpickle": "cloudpickle",
    "cpuinfo": "py-cpuinfo",
    "cryptography": "cryptography",
    "distributed": "distributed",
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
"""Modules that effbench imports, with what pip installs them by: their names on PyPI, or an extra of effbench."""


class MissingPackage(EffbenchError):
    """A needed package is not installed. The message says how to install it."""


def has(module: str) -> bool:
    """Whether this module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def require(module: str) -> None:
    """Raise MissingPackage unless this module can be imported."""
    if not has(module):
        raise MissingPackage(_install_message(module))


def missing_package_message(error: ModuleNotFoundError) -> str | None:
    """Return a one-line message for a failed import of an optional package; None if the module is not one of them."""
    module = (error.name or "").partition(".")[0]
    return _install_message(module) if module in _PYPI_NAMES else None


def _install_message(module: str) -> str:
    advice = f"this needs {module}, which is not installed here; pip install {_PYPI_NAMES.get(module, module)}"
    return advice + ", or measure a bundle from another machine (effbench run-bundle)" * (module == "torch")
