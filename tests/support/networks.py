"""What tests of networks share: weights of the right scale, and the order of the levels of memory access."""

from __future__ import annotations

import _thread
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.utils.flop_counter import FlopCounterMode

from effbench import zoo
from effbench.core.cost import Traffic

RUN = 65_521
"""A prime: repeated, a run of so many numbers falls on other rows of every layer."""


class FunctionModule(nn.Module):
    """Runs a function of itself and its inputs; keyword arguments become its modules and parameters."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def repeat(target: torch.Tensor, values: torch.Tensor) -> None:
    """Write one short run over and over: fast for any size."""
    flat, length = target.view(-1), values.numel()
    whole = flat.numel() // length * length
    flat[:whole].view(-1, length).copy_(values)
    flat[whole:].copy_(values[: flat.numel() - whole])


def fill(network: nn.Module) -> None:
    """Random weights of He's scale and random statistics of norms, from one short random run."""
    noise = torch.randn(RUN, generator=torch.Generator().manual_seed(0))
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            value.zero_()
            continue
        if key.endswith("running_var"):
            values = 0.5 + noise.abs()
        elif value.dim() > 1:
            values = noise * (2 / value[0].numel()) ** 0.5
        else:
            values = noise * 0.1 + (key.endswith("weight"))
        repeat(value, values)
        noise = noise.roll(1)


@contextmanager
def quick_noise() -> Iterator[None]:
    """What initialisers draw for large weights is one short run of the same distribution, from another place on."""
    draw_normal, draw_uniform = torch.Tensor.normal_, torch.Tensor.uniform_
    normal, uniform = torch.randn(2 * RUN), torch.rand(2 * RUN)

    def somewhere(run: torch.Tensor) -> torch.Tensor:
        start = int(torch.randint(RUN, ()))
        return run[start : start + RUN]

    def normal_(self: torch.Tensor, mean: float = 0, std: float = 1, **options: Any) -> torch.Tensor:
        if self.numel() <= RUN:
            return draw_normal(self, mean, std, **options)
        repeat(self.detach(), somewhere(normal) * std + mean)
        return self

    def uniform_(self: torch.Tensor, low: float = 0, high: float = 1, **options: Any) -> torch.Tensor:
        if self.numel() <= RUN:
            return draw_uniform(self, low, high, **options)
        repeat(self.detach(), somewhere(uniform) * (high - low) + low)
        return self

    with patch.multiple(torch.Tensor, normal_=normal_, uniform_=uniform_):
        yield


INITIALISERS = "constant_ kaiming_normal_ kaiming_uniform_ normal_ ones_ trunc_normal_ uniform_ zeros_".split()  # noqa: SIM905


def without_initialisers() -> Any:
    """A context in which no initialiser runs: on meta they take most of the time that building takes."""
    return patch.multiple(nn.init, **dict.fromkeys(INITIALISERS, lambda tensor, *_, **__: tensor))


@contextmanager
def shapes_only() -> Iterator[None]:
    """What is built in the block lies on meta."""
    with torch.device("meta"), without_initialisers():
        yield


def on_meta(name: str, **arguments: Any) -> nn.Module:
    """A network of the zoo in eval mode, as shapes."""
    with shapes_only():
        return zoo.build(name, **arguments).eval()


def run_and_count(network: nn.Module, x: torch.Tensor) -> tuple[Any, int]:
    """The output, and the multiply-adds that torch's own counter sees.

    Batch norms have none and keep the shape. On meta their shape function takes most of the time, so they are left out.
    """
    unnormed = patch.object(nn.BatchNorm2d, "forward", lambda _layer, x: x)
    with unnormed, torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = network(x)
    return y, counter.get_total_flops() // 2


def assert_ordered(levels: Mapping[str, Traffic]) -> None:
    for unit in ("elements", "bytes"):
        moved = [getattr(levels[level], unit) for level in ("layer", "epilogue", "pointwise", "eager")]
        assert moved == sorted(moved), (unit, moved)


def global_hooks() -> dict[str, int]:
    tables = {name: value for name, value in vars(torch_modules).items() if name.startswith("_global_")}
    return {name: len(value) for name, value in tables.items() if hasattr(value, "__len__")}


AUTOGRAD = ("AutogradCPU", "AutogradMeta")


def patched() -> dict[str, int]:
    """What the counter puts functions of its own in place of, while it counts."""
    places = (torch.Tensor, torch.autocast, threading.Thread, threading.Condition, _thread, ThreadPoolExecutor)
    functions = {(place, name): value for place in (*places, ThreadPool) for name, value in vars(place).items()}
    # torch itself gains modules as they are imported.
    functions |= {(torch, name): getattr(torch, name) for name in ("compile", "set_autocast_enabled")}
    return {f"{place.__name__}.{name}": id(value) for (place, name), value in functions.items()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    def state() -> dict[str, Any]:
        return {
            "attributes": {name: (set(vars(part)), part.training) for name, part in model.named_modules()},
            "tensors": {name: (id(value), value._version) for name, value in model.state_dict(keep_vars=True).items()},
            "identity": {name: id(value) for name, value in vars(model).items() if name != "training"},
            "hooks": {
                name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in model.named_modules()
            },
            "global hooks": global_hooks(),
            "functions": {name: id(value) for name, value in vars(functional).items()},
            "patched": patched(),
            "kernels": [torch._C._dispatch_has_kernel_for_dispatch_key("aten::lstm.input", key) for key in AUTOGRAD],
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "grad": torch.is_grad_enabled(),
            "garbage collection": gc.isenabled(),
            "a logger": logging.getLogger("torch._subclasses.fake_tensor").disabled,
            "dtype": torch.get_default_dtype(),
            "device": torch.get_default_device(),
            "modes": torch.utils._python_dispatch._get_current_dispatch_mode(),
        }

    before = state()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    yield
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
