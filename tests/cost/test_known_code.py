"""Counting in this process for models of known code, in a child process for all others, with equal counts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import unchanged
from nursery import HANGS_S
from shell import environment
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from effbench.cost import count, forked_call, profile
from effbench.cost.known_code import is_known_code
from effbench.cost.trace import Tracer


def known() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize(
    "network", [known(), nn.LSTM(3, 4), nn.MultiheadAttention(8, 2), nn.ModuleDict({"a": nn.Embedding(3, 4)})]
)
def test_layers_of_torch_are_known(network: nn.Module) -> None:
    assert is_known_code(network.modules())


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnLinear(nn.Linear):
    """Of a class of torch's, and yet not."""


class OwnParameter(nn.Parameter):
    pass


class Disguised(nn.Conv2d):
    """Of a class that says that it is torch's."""

    def _conv_forward(self, *args: Any) -> torch.Tensor:
        return super()._conv_forward(*args)


Disguised.__module__ = "torch.nn.modules.conv"


class Homeless(nn.Conv2d):
    """Of a class that says that it is from where nothing is."""


Homeless.__module__ = "torch.nn.modules.nowhere"


def with_hook(name: str) -> Callable[[nn.Sequential], None]:
    return lambda network: getattr(network[0], name)(lambda *_: None)


def with_attribute(name: str, value: Any) -> Callable[[nn.Sequential], None]:
    return lambda network: setattr(network[2], name, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.append(Own()),
        lambda network: network.append(OwnLinear(5, 5)),
        lambda network: network.append(Disguised(5, 5, 1)),
        lambda network: network.append(Homeless(5, 5, 1)),
        lambda network: setattr(network[0], "sizes", [1, (2, OwnParameter(torch.ones(1)))]),
        lambda network: network.append(nn.TransformerEncoderLayer(5, 1, activation=torch.tanh)),
        lambda network: parametrizations.weight_norm(network[0]),
        lambda network: network[4].register_parameter("weight", OwnParameter(torch.ones(5, 256))),
        *map(with_hook, ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")),
        with_attribute("forward", lambda x: x),
        with_attribute("cache", object()),
        with_attribute("other", Own()),
    ],
)
def test_what_a_user_adds_is_unknown(change: Callable[[nn.Sequential], Any]) -> None:
    network = known()
    assert is_known_code(network.modules())
    change(network)
    assert not is_known_code(network.modules())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *((nn.Linear, "forward"), (nn.Conv2d, "_conv_forward"), (functional, "linear")),
        *((nn.Module, "__call__"), (nn.Module, "_call_impl"), (nn.Module, "__getattr__")),
    ],
)
def test_a_function_put_in_place_of_torchs_is_unknown(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(place, name)

    def own(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    network = known()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, own)
        assert not is_known_code(network.modules())
    assert is_known_code(network.modules())


def test_what_hangs_on_a_class_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors that are compared are a tensor, and no answer."""
    for _ in range(2):
        monkeypatch.setattr(nn.Linear, "table", torch.rand(3), raising=False)
        assert is_known_code(known().modules())


class Watching(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class WatchingBelow(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def test_a_mode_that_would_see_the_count_makes_it_unknown() -> None:
    network = known()
    for mode in (Watching(), WatchingBelow()):  # type: ignore[no-untyped-call]
        with mode:
            assert not is_known_code(network.modules())


def test_a_global_hook_is_unknown() -> None:
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert not is_known_code(known().modules())
        handle.remove()
    assert is_known_code(known().modules())


# --- where it is counted ----------------------------------------------------------------------------


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As in a process that has this thread alone, whatever runs the tests. Yields an item for each child."""
    children: list[int] = []
    run = forked_call.run
    with monkeypatch.context() as patch:
        patch.setattr(sys, "_current_frames", lambda: {threading.get_ident(): None})
        patch.setattr(forked_call, "run", lambda function: (children.append(1), run(function))[1])
        yield children


def test_known_code_is_counted_here_and_other_code_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_threads(monkeypatch) as children:
        here = profile(known(), (3, 8, 8), batch=2)
        assert not children
        there = profile(known().append(Own()), (3, 8, 8), batch=2)
        assert children == [1]
        profile(known(), (3, 8, 8), inputs=(torch.ones(1, 3, 8, 8),))
        assert children == [1, 1]
    assert here.cost == there.cost and here.ops == there.ops and here.kernels == there.kernels
    assert here.cost.madds == 2 * (8 * 8 * 4 * 3 * 9 + 256 * 5)


def test_another_thread_could_meet_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    children: list[int] = []
    run = forked_call.run
    monkeypatch.setattr(forked_call, "run", lambda function: (children.append(1), run(function))[1])
    try:
        cost = profile(known(), (3, 8, 8)).cost
    finally:
        done.set()
        other.join()
    assert children == [1] and cost.status == "complete"


def count_under_ctrl_c() -> None:
    network, seen, enter = known(), [], Tracer._enter

    def pressed(tracer: Any, module: nn.Module, args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append(module)
        enter(tracer, module, args)

    # A shell starts what runs in its background with an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracer, "_enter", pressed)
        with no_threads(patch) as children, unchanged(network), pytest.raises(KeyboardInterrupt):
            profile(network, (3, 8, 8))
    assert len(seen) == 1 + len(network) and not children
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_answered_when_all_is_put_back() -> None:
    """In a process of its own: twice a test process of xdist ended here without a word, and with it the whole run."""
    code = "import test_known_code; test_known_code.count_under_ctrl_c(); print('put back')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANGS_S
    )
    assert (done.returncode, done.stdout) == (0, "put back\n"), done


@pytest.mark.parametrize("counted", [profile, count])
def test_a_network_that_was_counted_here_is_not_held(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = known()
    left = weakref.ref(network)
    with no_threads(monkeypatch) as children:
        counted(network, (3, 8, 8))
    del network
    gc.collect()
    assert left() is None and not children


COMPILED = """
import torch
from torch import nn

import effbench

effbench.profile(nn.Linear(8, 8), (8,))
compiled = torch.compile(lambda x: x + x.get_device(), backend="eager")
with torch.device("cpu"):
    print(compiled(torch.ones(2)).tolist())
"""


def test_torch_compiles_after_the_first_count_of_a_process(tmp_path: Path) -> None:
    """torch's compiler looks at torch.Tensor once, as it is imported. Then it must be torch's own."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[0.0, 0.0]\n"), done.stderr
