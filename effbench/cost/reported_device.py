"""Make meta tensors report the network's own device, so that code that branches on it is traced correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from effbench.cost.trace import Tracer

_BASE = torch._C.TensorBase
_is_meta = _BASE.is_meta.__get__  # type: ignore[attr-defined]

_STORAGES = ("untyped_storage", "storage")
"""Methods that return the storage, which reports the real device."""

_READS_VALUES = ("numpy", "tolist", "data_ptr", "__array__", "__dlpack__")
"""Methods that read memory without going through the dispatcher."""


@contextmanager
def report_device(tracer: Tracer, home: torch.device) -> Iterator[None]:
    """Make meta tensors report `home` as their device to Python code in the block.

    torch's own shape functions, which run inside of operators, still see meta. Requests for values raise an error, and
    are also noted as a doubt in the tracer, since the network may catch the error. torch has no autocast for meta, so a
    trace in which autocast for `home` starts is in doubt, too.
    """

    def is_disguised(tensor: Tensor) -> bool:
        return not tracer.is_in_torch and _is_meta(tensor)

    def reported(name: str, answer: Any) -> property:
        read = getattr(_BASE, name).__get__
        return property(lambda tensor: answer if is_disguised(tensor) else read(tensor))

    def get_device(tensor: Tensor) -> int:
        if is_disguised(tensor):
            return -1 if home.type == "cpu" else home.index or 0
        return _BASE.get_device(tensor)

    def type_of(tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and is_disguised(tensor):
            module = "torch" if home.type == "cpu" else f"torch.{home.type}"
            return f"{module}.{_BASE.type(tensor).rpartition('.')[2]}"
        return _BASE.type(tensor, *(() if dtype is None else (dtype,)), *args, **kwargs)

    def raising(name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def read_tensor(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if _is_meta(tensor):
                raise tracer.values_error(f"{name} reads values")
            return read(tensor, *args, **kwargs)

        return read_tensor

    def doubted(name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def read_tensor(tensor: Tensor) -> Any:
            if is_disguised(tensor):
                tracer.doubt = "values"
            return read(tensor)

        return read_tensor

    def autocast_noted(name: str) -> Callable[..., Any]:
        switch = getattr(torch, name)

        def note(*args: Any) -> Any:
            tracer.doubt = tracer.doubt or "device"
            return switch(*args)

        return note

    enter_autocast: Any = torch.autocast.__enter__

    def enter(mode: Any) -> Any:
        if mode._enabled and mode.device == home.type:
            tracer.doubt = tracer.doubt or "device"
        return enter_autocast(mode)

    flags = [name for name in ("is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu") if hasattr(_BASE, name)]
    answers: dict[str, Any] = {name: reported(name, name == f"is_{home.type}") for name in flags}
    answers |= {"device": reported("device", home), "get_device": get_device, "type": type_of}
    answers |= {name: raising(name) for name in _READS_VALUES if hasattr(Tensor, name)}
    answers |= {name: doubted(name) for name in _STORAGES}
    if torch.is_autocast_enabled(home.type):
        tracer.doubt = "device"
    with ExitStack() as stack:
        switches = [name for name in ("set_autocast_enabled", "set_autocast_cpu_enabled") if hasattr(torch, name)]
        owned: list[tuple[Any, str, Any]] = [(Tensor, *item) for item in answers.items()]
        owned += [(torch.autocast, "__enter__", enter), *((torch, name, autocast_noted(name)) for name in switches)]
        for owner, name, answer in owned:
            own = vars(owner).get(name)
            if own is not None:
                stack.callback(setattr, owner, name, own)
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, answer)
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

    with ExitStack() as stack:
        for name in ("numpy", "__array__", "__dlpack__"):
            own = vars(Tensor).get(name)
            if own is not None:
                stack.callback(setattr, Tensor, name, own)
            else:
                stack.callback(delattr, Tensor, name)
            setattr(Tensor, name, noting(name))
        yield
