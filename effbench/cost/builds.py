"""Ways to build a named network for a count, which needs no values: on meta, with meta parameters, or as it is."""

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
"""In the order to try. Some constructors compute sizes with tensors: those are built on the CPU with only their
parameters left out. Others look at their weights, and get them."""


@dataclass(frozen=True)
class NotBuilt:
    """A network that could not be built in one way, and its error."""

    error: EffbenchError


def built(build: Build, model: str, arguments: Mapping[str, Any]) -> nn.Module | NotBuilt:
    """The named network, built in one way, without downloading weights."""
    guard = _nothing_written() if ":" in model and build != "real" else ExitStack()  # our own networks write nothing
    try:
        with libraries.without_weights(), guard, _CONTEXTS[build]():
            return zoo.resolve(model, arguments)
    except EffbenchError as error:
        return NotBuilt(error)


def on_meta(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without its weights, where it can be built so. Raises as `zoo.resolve` does."""
    for build in BUILDS:
        network = built(build, model, arguments)
        if not isinstance(network, NotBuilt):
            return network
    assert isinstance(network, NotBuilt)
    raise network.error


@contextmanager
def _meta() -> Iterator[None]:
    import torch

    with torch.device("meta"):
        yield


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """Every parameter moves to meta as its module takes it; a tied one stays tied."""
    import torch
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    twins: dict[int, tuple[Any, nn.Parameter]] = {}

    def moved(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or type(parameter) is not nn.Parameter:
            return None
        twin = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        # Kept beside its twin: the number of an object that is gone may be given away again.
        return twins.setdefault(id(parameter), (parameter, twin))[1]

    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type] # it may return a parameter
    try:
        yield
    finally:
        hook.remove()


_CONTEXTS: Mapping[Build, Callable[[], AbstractContextManager[Any]]] = {
    "meta": _meta,
    "parameters": _meta_parameters,
    "real": ExitStack,
}


class _Writes(Exception):
    """A network without values must not be written to a file."""


_watched = 0
"""The thread whose writes are refused; 0 while none are."""
_hooked = False


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Within the block a file that this thread opens to write raises: a factory that saves its network has no values.

    Python's own files are seen by an audit hook, which can only be silenced again; torch and safetensors write past it.
    What is written while a module is imported or a temporary folder is looked for is none of the network's.
    """
    global _watched, _hooked
    import torch

    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    places = [(torch.serialization, "_open_zipfile_writer"), (torch.jit, "save")]
    places += [
        (sys.modules[name], "serialize_file") for name in ("safetensors", "safetensors.torch") if name in sys.modules
    ]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    outer, _watched = _watched, threading.get_ident()
    try:
        for place, name, _ in before:
            setattr(place, name, _refuse)
        yield
    finally:
        _watched = outer
        for place, name, original in before:
            setattr(place, name, original)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise _Writes("it saves a network whose weights have no values")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or threading.get_ident() != _watched:
        return
    path, _, flags = args
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if writes and isinstance(path, (str, bytes, os.PathLike)) and not os.fsdecode(path).startswith("/dev/"):
        frame = sys._getframe()
        while frame := frame.f_back:  # type: ignore[assignment]
            if frame.f_globals.get("__name__") in ("importlib._bootstrap", "tempfile", "logging"):
                return
        _refuse()
