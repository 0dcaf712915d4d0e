"""Prepare a model for tracing: replace its tensors, set eval mode, and restore everything, also after an exception."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Hook registries are ordered dictionaries and must stay the same objects.
_UNCHANGED = frozenset({bool, int, float, str, type(None), OrderedDict})

_NUMBERS = frozenset({int, float, bool})

# Registries of nn.Module.
_WITHOUT_TENSORS = frozenset({"_modules", "_non_persistent_buffers_set"})

_PLAIN = (Tensor, nn.Parameter)

Twin = Callable[[Tensor], Tensor]


def meta_twin(dtype: torch.dtype | None) -> Twin:
    """Return a function that makes meta tensors, as if the model had been moved with ``.to(dtype)`` (None: no cast).

    Tied tensors stay tied.
    """

    def twin(tensor: Tensor) -> Tensor:
        if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
            return _rewrap(tensor, twin)
        if tensor.layout != torch.strided:
            return tensor.detach().to("meta")
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="meta")
        # Also without autograd: whether torch folds the batch into rows of a product depends on requires_grad.
        return made.requires_grad_() if tensor.requires_grad else made

    return twin


def fake_twin(dtype: torch.dtype | None, mode: Any, device: torch.device) -> Twin:
    """Return a function that makes fake tensors on `device`, which have no memory."""
    from torch._subclasses.fake_tensor import FakeTensor

    bare = meta_twin(dtype)

    def twin(tensor: Tensor) -> Tensor:
        if is_traceable_wrapper_subclass(tensor):
            return _rewrap(tensor, twin)
        return FakeTensor(mode, bare(tensor).detach(), device).requires_grad_(tensor.requires_grad)

    return twin


def real_twin(dtype: torch.dtype | None, *, copied: bool) -> Twin:
    """Return a function that makes tensors with values. If `copied`, writing to them does not change the originals."""

    def twin(tensor: Tensor) -> Tensor:
        made = tensor.detach().clone() if copied else tensor.detach()
        made = made if dtype is None or not tensor.is_floating_point() else made.to(dtype)
        return made.requires_grad_(tensor.requires_grad)

    return twin


def _rewrap(tensor: Tensor, twin: Twin) -> Tensor:
    """Rebuild a tensor subclass that wraps other tensors (quantised weights) around the twins of these."""
    names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = {name: twin(getattr(tensor, name)) for name in names}
    made: Tensor = type(tensor).__tensor_unflatten__(  # type: ignore[attr-defined]
        inner, context, tensor.size(), tensor.stride()
    )
    return made


@contextmanager
def replace_tensors(modules: Iterable[nn.Module], twin: Twin) -> Iterator[None]:
    """Replace the tensors of `modules` by twins and set eval mode within the block; restore everything afterwards.

    The modules' `__dict__` are swapped. `.to()`, `.eval()` or `deepcopy` would untie weights, run overridden methods
    with side effects, or cost memory. Anything that a forward pass caches on its modules is dropped.
    """
    twins: dict[int, Any] = {}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    scripted: list[tuple[nn.Module, bool]] = []

    def replacement(value: Any) -> Any:
        kind = type(value)
        if id(value) in twins:
            return twins[id(value)]
        if isinstance(value, Tensor):
            made: Any = twin(value)
        elif kind is dict:
            made = value.copy()
            for key, item in value.items():
                if isinstance(item, Tensor):
                    made[key] = replacement(item)
        elif kind is tuple and not any([isinstance(item, Tensor) for item in value]):
            return value  # unchanged, since the network may compare by identity
        elif kind is list or kind is set or kind is tuple:
            made = kind([replacement(item) if isinstance(item, Tensor) else item for item in value])
        else:
            return value
        twins[id(value)] = made
        return made

    try:
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                if hasattr(module, "training"):  # torch.jit.freeze removes it
                    scripted.append((module, module.training))
                    module.training = False
                continue
            attributes = module.__dict__
            before.append((attributes, attributes.copy()))
            for name, value in attributes.items():
                kind = type(value)
                if kind in _UNCHANGED or (kind is tuple and _NUMBERS.issuperset(map(type, value))):
                    continue
                if name in _WITHOUT_TENSORS:
                    made = twins.get(id(value))  # shared with a copy of the module
                    if made is None:
                        made = twins[id(value)] = value.copy()
                    attributes[name] = made
                else:
                    attributes[name] = replacement(value)
            attributes["training"] = False
        yield
    finally:
        for attributes, original in before:
            attributes.clear()
            attributes.update(original)
        for module, training in scripted:
            module.training = training


@contextmanager
def quiet_torch(*, grad: bool = False) -> Iterator[None]:
    """Disable gradients (unless `grad`), warnings, the compiler, the opaque attention fast path and inference mode.

    In inference mode the tracer would see operators that torch decomposes elsewhere. Random state and default dtype are
    restored.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.callback(torch.set_default_dtype, dtype)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_compiler_disabled())
        logger = logging.getLogger(
            "torch._subclasses.fake_tensor"
        )  # it logs whole tracebacks of errors that a network catches
        stack.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _compiler_disabled() -> Iterator[None]:
    """Run compiled functions uncompiled. A compiler that meets our dispatch mode would never compile them again."""
    compiler = torch.compile

    def uncompiled_module(model: Any = None, **options: Any) -> Any:
        return (lambda function: function) if model is None else model

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # importing it takes seconds, and without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.compile = uncompiled_module
        stack.callback(setattr, torch, "compile", compiler)
        yield


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer Python signal handlers, above all Ctrl-C, to the end of the block.

    Within it an exception could leave a network without its weights, or torch with our hooks. Use it for blocks of
    milliseconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    pending: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    answered = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in answered:
            signal.signal(number, lambda number, frame: pending.append(number))
        yield
    finally:
        for number, handler in reversed(answered.items()):  # Ctrl-C last, since its handler may raise here
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection: traversing all of torch's objects takes as long as the count itself."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
