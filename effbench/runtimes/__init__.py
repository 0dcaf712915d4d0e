"""Look up runtimes by name. Importing this module imports neither torch nor any runtime."""

from __future__ import annotations

import importlib

from effbench.core.errors import UnknownName
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported

__all__ = ["NAMES", "Prepared", "Runtime", "Setting", "Unsupported", "get", "missing", "present"]

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


def get(name: str) -> Runtime:
    """Return the runtime of this name. Raises UnknownName."""
    if name not in _ADAPTERS:
        raise UnknownName("runtime", name, NAMES)
    module, adapter = _ADAPTERS[name]
    runtime: Runtime = getattr(importlib.import_module(f"effbench.runtimes.{module}"), adapter)()
    return runtime


def missing(name: str) -> str | None:
    """Return why this runtime cannot be used here and what to install; None if it can. Raises UnknownName."""
    return get(name).missing()


def present(kind: str) -> tuple[str, ...]:
    """Return the runtimes that are installed here and support this kind of device, eager first."""
    return tuple(name for name in NAMES if (kind == "fake" or kind in get(name).devices) and missing(name) is None)
