"""Build a named network for counting, which needs no values: on meta, with meta parameters, or with real weights."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from effbench import zoo
from effbench.core.errors import EffbenchError
from effbench.zoo import libraries

if TYPE_CHECKING:
    from torch import nn

Build = Literal["meta", "parameters", "real"]
BUILDS: tuple[Build, ...] = ("meta", "parameters", "real")
"""Ways to build, in the order to try. Some constructors compute sizes with tensors, so "parameters" builds on the CPU
with only the parameters on meta. Others read their weights, and need "real" ones."""


@dataclass(frozen=True)
class BuildFailed:
    """A network could not be built in one way: the error."""

    error: EffbenchError


def build_network(build: Build, model: str, arguments: Mapping[str, Any]) -> nn.Module | BuildFailed:
    """Build the named network in one way, without downloading weights."""
    guard = _writes_forbidden() if ":" in model and build != "real" else ExitStack()  # zoo networks write no files
    try:
        with libraries.without_weights(), guard, _CONTEXTS[build]():
            return zoo.resolve(model, arguments)
    except EffbenchError as error:
        return BuildFailed(error)


def build_on_meta(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network on meta if possible, else in another of the `BUILDS`. Raises what `zoo.resolve` raises."""
    for build in BUILDS:
        network = build_network(build, model, arguments)
        if not isinstance(network, BuildFailed):
            return network
    assert isinstance(network, BuildFailed)
    raise network.error


@contextmanager
def _meta() -> Iterator[None]:
    import torch

    with torch.device("meta"):
        yield


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """Move each parameter to meta when a module registers it. Tied parameters stay tied."""
    import torch
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    twins: dict[int, tuple[Any, nn.Parameter]] = {}

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or type(parameter) is not nn.Parameter:
            return None
        twin = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        # The original is kept alive, since Python may reuse the id of a freed object.
        return twins.setdefault(id(parameter), (parameter, twin))[1]

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type] # it may return a parameter
    try:
        yield
    finally:
        hook.remove()


_CONTEXTS: Mapping[Build, Callable[[], AbstractContextManager[Any]]] = {
    "meta": _meta,
    "parameters": _meta_parameters,
    "real": ExitStack,
}


class _WriteForbidden(Exception):
    """A factory tried to save a network whose weights have no values."""


_watched_thread = 0
"""Id of the thread that must not open files for writing; 0 if there is none."""
_hook_is_added = False


@contextmanager
def _writes_forbidden() -> Iterator[None]:
    """Raise if this thread opens a file for writing in the block, since a network on meta has no values to save.

    An audit hook sees files opened by Python. It cannot be removed, only disabled. The writers of torch and safetensors
    bypass it, so they are patched. Writes during imports, logging and the search for a temporary folder are allowed.
    """
    global _watched_thread, _hook_is_added
    import torch

    if not _hook_is_added:
        sys.addaudithook(_audit)
        _hook_is_added = True
    places = [(torch.serialization, "_open_zipfile_writer"), (torch.jit, "save")]
    places += [
        (sys.modules[name], "serialize_file") for name in ("safetensors", "safetensors.torch") if name in sys.modules
    ]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    outer, _watched_thread = _watched_thread, threading.get_ident()
    try:
        for place, name, _ in before:
            setattr(place, name, _refuse)
        yield
    finally:
        _watched_thread = outer
        for place, name, original in before:
            setattr(place, name, original)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise _WriteForbidden("it saves a network whose weights have no values")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not _watched_thread or threading.get_ident() != _watched_thread:
        return
    path, _, flags = args
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if writes and isinstance(path, (str, bytes, os.PathLike)) and not os.fsdecode(path).startswith("/dev/"):
        frame = sys._getframe()
        while frame := frame.f_back:  # type: ignore[assignment]
            if frame.f_globals.get("__name__") in ("importlib._bootstrap", "tempfile", "logging"):
                return
        _refuse()
