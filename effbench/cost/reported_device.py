"""Make meta tensors report the network's own device, so that code that branches on it is traced correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from effbench.cost.replaced_attributes import replaced_attributes

if TYPE_CHECKING:
    from effbench.cost.trace import Tracer

_BASE = torch._C.TensorBase
_is_meta = _BASE.is_meta.__get__  # type: ignore[attr-defined]

_STORAGES = ("untyped_storage", "storage")
"""Methods that return the storage, which reports the real device."""

_READS_VALUES = ("numpy", "tolist", "data_ptr", "__array__", "__dlpack__")
"""Methods that read memory without going through the dispatcher."""


class _Disguise:
    """What meta tensors tell Python code about their device: that they are on `home`, outside of torch's own code."""

    def __init__(self, tracer: Tracer, home: torch.device) -> None:
        self._tracer, self._home = tracer, home
        self._enter_autocast: Any = torch.autocast.__enter__

    def attributes(self) -> list[tuple[Any, str, Any]]:
        """Return what replaces attributes of torch, each as (owner, name, value)."""
        flags = [name for name in ("is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu") if hasattr(_BASE, name)]
        answers: dict[str, Any] = {name: self._reported(name, name == f"is_{self._home.type}") for name in flags}
        answers |= {"device": self._reported("device", self._home), "get_device": self.get_device, "type": self.type_of}
        answers |= {name: self._raising(name) for name in _READS_VALUES if hasattr(Tensor, name)}
        answers |= {name: self._doubted(name) for name in _STORAGES}
        switches = [name for name in ("set_autocast_enabled", "set_autocast_cpu_enabled") if hasattr(torch, name)]
        return [
            *((Tensor, *item) for item in answers.items()),
            (torch.autocast, "__enter__", self.enter_autocast),
            *((torch, name, self._noted(name)) for name in switches),
        ]

    def get_device(self, tensor: Tensor) -> int:
        if self._is_disguised(tensor):
            return -1 if self._home.type == "cpu" else self._home.index or 0
        return _BASE.get_device(tensor)

    def type_of(self, tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and self._is_disguised(tensor):
            module = "torch" if self._home.type == "cpu" else f"torch.{self._home.type}"
            return f"{module}.{_BASE.type(tensor).rpartition('.')[2]}"
        return _BASE.type(tensor, *(() if dtype is None else (dtype,)), *args, **kwargs)

    def enter_autocast(self, mode: Any) -> Any:
        if mode._enabled and mode.device == self._home.type:
            self._doubt_device()
        return self._enter_autocast(mode)

    def _is_disguised(self, tensor: Tensor) -> bool:
        return not self._tracer.is_in_torch and _is_meta(tensor)

    def _doubt_device(self) -> None:
        self._tracer.doubt = self._tracer.doubt or "device"

    def _reported(self, name: str, answer: Any) -> property:
        read = getattr(_BASE, name).__get__
        return property(lambda tensor: answer if self._is_disguised(tensor) else read(tensor))

    def _raising(self, name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def read_tensor(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if _is_meta(tensor):
                raise self._tracer.values_error(f"{name} reads values")
            return read(tensor, *args, **kwargs)

        return read_tensor

    def _doubted(self, name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def read_tensor(tensor: Tensor) -> Any:
            if self._is_disguised(tensor):
                self._tracer.doubt = "values"
            return read(tensor)

        return read_tensor

    def _noted(self, name: str) -> Callable[..., Any]:
        """Return a switch of autocast that notes its use."""
        switch = getattr(torch, name)

        def note(*args: Any) -> Any:
            self._doubt_device()
            return switch(*args)

        return note


@contextmanager
def report_device(tracer: Tracer, home: torch.device) -> Iterator[None]:
    """Make meta tensors report `home` as their device to Python code in the block.

    torch's own shape functions, which run inside of operators, still see meta. Requests for values raise an error, and
    are also noted as a doubt in the tracer, since the network may catch the error. torch has no autocast for meta, so a
    trace in which autocast for `home` starts is in doubt, too.
    """
    attributes = _Disguise(tracer, home).attributes()
    if torch.is_autocast_enabled(home.type):
        tracer.doubt = "device"
    with replaced_attributes(attributes):
        yield


@contextmanager
def report_numpy(tracer: Tracer) -> Iterator[None]:
    """Note conversions to NumPy of tensors that depend on the input: operations in NumPy are not counted."""

    def noting(name: str) -> Callable[..., Any]:
        convert = getattr(Tensor, name)

        def note(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not tracer.is_in_torch and not tracer.content_of(tensor)[1]:
                tracer.note_uncounted("numpy")
            return convert(tensor, *args, **kwargs)

        return note

    with replaced_attributes([(Tensor, name, noting(name)) for name in ("numpy", "__array__", "__dlpack__")]):
        yield
