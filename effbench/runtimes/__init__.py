"""Look up runtimes by name. Importing this module imports neither torch nor any runtime."""

from __future__ import annotations

import importlib

from effbench.core import plugins
from effbench.core.errors import UnknownName
from effbench.core.plugins import BrokenPlugin
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported

__all__ = [
    "NAMES",
    "Prepared",
    "Runtime",
    "Setting",
    "Unsupported",
    "exists",
    "get",
    "missing",
    "names",
    "present",
    "summary",
]

_ADAPTERS = {
    "eager": ("eager", "Eager"),
    "compile": ("torch_compile", "Compiled"),
    "cudagraph": ("cuda_graph", "CudaGraph"),
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "executorch": ("executorch", "ExecuTorch"),
    "openvino": ("openvino", "OpenVino"),
    "ncnn": ("ncnn", "Ncnn"),
}
"""Maps a runtime's name to its module in this package and its class."""

NAMES = tuple(_ADAPTERS)


def names() -> tuple[str, ...]:
    """The names of all runtimes: ours, then those of installed packages (`core.plugins`), which are not imported."""
    return (*NAMES, *(name for name in plugins.names(plugins.RUNTIMES) if name not in _ADAPTERS))


def exists(name: str) -> bool:
    """Whether there is a runtime of this name."""
    return name in _ADAPTERS or name in names()


def get(name: str) -> Runtime:
    """The runtime of this name. Raises UnknownName, and BrokenPlugin for one of another package that is none."""
    if name not in _ADAPTERS:
        if not exists(name):
            raise UnknownName("runtime", name, names())
        return _of_plugin(name)
    module, adapter = _ADAPTERS[name]
    runtime: Runtime = getattr(importlib.import_module(f"effbench.runtimes.{module}"), adapter)()
    return runtime


def _of_plugin(name: str) -> Runtime:
    adapter = plugins.load(plugins.RUNTIMES, name)
    try:
        found = adapter() if isinstance(adapter, type) and issubclass(adapter, Runtime) else adapter
    except Exception as error:
        raise BrokenPlugin(f"runtime '{name}' of {_origin(name)} {plugins.failure_text(error)}") from error
    if not isinstance(found, Runtime) or getattr(found, "name", None) != name:
        raise BrokenPlugin(
            f"runtime '{name}' of {_origin(name)} must be a class that implements effbench.runtimes.Runtime and is "
            f"called '{name}'; repair or uninstall it"
        )
    return found


def _origin(name: str) -> str:
    return f"the package {plugins.providing_package(plugins.RUNTIMES, name)}"


def missing(name: str) -> str | None:
    """Why this runtime cannot be used here, and what to install; None where it can. Raises UnknownName."""
    try:
        return get(name).missing()
    except BrokenPlugin as error:
        return str(error)


def summary(name: str) -> str:
    """What this runtime is, in a few words, and which package it is from if not from effbench."""
    origin = plugins.providing_package(plugins.RUNTIMES, name)
    if name in _ADAPTERS:
        ignored = f" (not that of the package {origin}, which must choose another name)" if origin else ""
        return f"{get(name).summary}{ignored}"
    try:
        return f"{getattr(get(name), 'summary', 'a runtime')} (package {origin})"
    except BrokenPlugin:
        return f"package {origin}"


def present(kind: str) -> tuple[str, ...]:
    """The runtimes that are installed here and have this kind of device, eager first."""
    return tuple(name for name in names() if missing(name) is None and (kind == "fake" or kind in get(name).devices))
