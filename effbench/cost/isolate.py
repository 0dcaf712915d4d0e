"""Lend a model to the counter: stand-in tensors, eval mode, and everything put back, also after an exception."""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Hook registries are ordered dictionaries and must stay the same objects.
_KEPT = frozenset({bool, int, float, str, type(None), OrderedDict})

Twin = Callable[[Tensor], Tensor]


def meta_twin(dtype: torch.dtype) -> Twin:
    """Stand-ins without memory, as if the model had been moved with ``.to(dtype)``. Tied tensors stay tied."""

    def twin(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.layout != torch.strided:
            return tensor.to("meta")
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="meta")

    return twin


def real_twin(dtype: torch.dtype) -> Twin:
    """Copies with values, so that a forward pass that writes to its weights or buffers leaves the originals alone."""

    def twin(tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        return copied.to(dtype) if tensor.is_floating_point() else copied

    return twin


@contextmanager
def lent(modules: Iterable[nn.Module], twin: Twin) -> Iterator[None]:
    """Within the block `modules` hold twins of their tensors and are in eval mode; afterwards they are as before.

    Module dictionaries are swapped rather than `.to()`, `.eval()` or `deepcopy` called: those untie weights, run
    overridden methods with side effects, or cost memory. What a forward pass caches on its modules is dropped.
    """
    twins: dict[int, Any] = {}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    scripted: list[tuple[nn.Module, bool]] = []

    def stand_in(value: Any) -> Any:
        kind = type(value)
        if id(value) in twins:
            return twins[id(value)]
        if isinstance(value, Tensor):
            made: Any = twin(value)
        elif kind is dict:
            made = {key: stand_in(item) if isinstance(item, Tensor) else item for key, item in value.items()}
        elif kind is list or kind is set or kind is tuple:
            made = kind([stand_in(item) if isinstance(item, Tensor) else item for item in value])
        else:
            return value
        twins[id(value)] = made
        return made

    try:
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                scripted.append((module, module.training))
                module.training = False
                continue
            attributes = module.__dict__
            before.append((attributes, attributes.copy()))
            for name, value in attributes.items():
                if type(value) not in _KEPT:
                    attributes[name] = stand_in(value)
            attributes["training"] = False
        yield
    finally:
        for attributes, original in before:
            attributes.clear()
            attributes.update(original)
        for module, training in scripted:
            module.training = training


@contextmanager
def quiet_torch() -> Iterator[None]:
    """No gradients, warnings or opaque attention fast path; random state and default dtype are given back."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.callback(torch.set_default_dtype, dtype)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: each would walk the whole of torch, which takes as long as the count itself."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
