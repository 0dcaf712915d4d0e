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
    "available_on",
    "exists",
    "get",
    "names",
    "summary",
    "why_unavailable",
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
    """Return the names of all runtimes: ours, then those of installed packages, which are not imported."""
    return (*NAMES, *(name for name in plugins.names(plugins.RUNTIME_GROUP) if name not in _ADAPTERS))


def exists(name: str) -> bool:
    """Whether there is a runtime of this name."""
    return name in _ADAPTERS or name in names()


def get(name: str) -> Runtime:
    """Return the runtime of this name. Raises UnknownName, and BrokenPlugin if a package's runtime does not load."""
    if name not in _ADAPTERS:
        if not exists(name):
            raise UnknownName("runtime", name, names())
        return _from_plugin(name)
    module, adapter = _ADAPTERS[name]
    runtime: Runtime = getattr(importlib.import_module(f"effbench.runtimes.{module}"), adapter)()
    return runtime


def _from_plugin(name: str) -> Runtime:
    adapter = plugins.load(plugins.RUNTIME_GROUP, name)
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
    return f"the package {plugins.providing_package(plugins.RUNTIME_GROUP, name)}"


def why_unavailable(name: str) -> str | None:
    """Return why this runtime cannot be used here, and what to install; None if it can. Raises UnknownName."""
    try:
        return get(name).why_unavailable()
    except BrokenPlugin as error:
        return str(error)


def summary(name: str) -> str:
    """Describe this runtime in a few words, with the package that it is from if not effbench."""
    origin = plugins.providing_package(plugins.RUNTIME_GROUP, name)
    if name in _ADAPTERS:
        ignored = f" (not that of the package {origin}, which must choose another name)" if origin else ""
        return f"{get(name).summary}{ignored}"
    try:
        return f"{getattr(get(name), 'summary', 'a runtime')} (package {origin})"
    except BrokenPlugin:
        return f"package {origin}"


def available_on(kind: str) -> tuple[str, ...]:
    """Return the installed runtimes that support this kind of device, eager first."""
    return tuple(
        name for name in names() if why_unavailable(name) is None and (kind == "fake" or kind in get(name).devices)
    )
