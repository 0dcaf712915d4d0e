"""Networks of known code alone are counted in this process; everything else in a child, and the counts are the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from effbench.cost import child, profile
from effbench.cost.familiar import keeps_nothing


def known() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize(
    "network", [known(), nn.LSTM(3, 4), nn.MultiheadAttention(8, 2), nn.ModuleDict({"a": nn.Embedding(3, 4)})]
)
def test_layers_of_torch_are_known(network: nn.Module) -> None:
    assert keeps_nothing(network.modules())


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnLinear(nn.Linear):
    """Of a class of torch's, and yet not."""


class OwnParameter(nn.Parameter):
    pass


def with_hook(name: str) -> Callable[[nn.Sequential], None]:
    return lambda network: getattr(network[0], name)(lambda *_: None)


def with_attribute(name: str, value: Any) -> Callable[[nn.Sequential], None]:
    return lambda network: setattr(network[2], name, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.append(Own()),
        lambda network: network.append(OwnLinear(5, 5)),
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
    assert keeps_nothing(network.modules())
    change(network)
    assert not keeps_nothing(network.modules())


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_method_put_into_a_class_is_unknown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(nn.Linear, name)

    def own(*args: Any) -> Any:
        return original(*args)

    monkeypatch.setattr(nn.Linear, name, own)
    assert not keeps_nothing(known().modules())
    assert keeps_nothing(known()[:4].modules())


def test_a_global_hook_is_unknown() -> None:
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert not keeps_nothing(known().modules())
        handle.remove()
    assert keeps_nothing(known().modules())


# --- where it is counted ----------------------------------------------------------------------------


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As in a process that has this thread alone, whatever runs the tests. Yields an item for each child."""
    children: list[int] = []
    run = child.run
    with monkeypatch.context() as patch:
        patch.setattr(sys, "_current_frames", lambda: {threading.get_ident(): None})
        patch.setattr(child, "run", lambda function: (children.append(1), run(function))[1])
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
    run = child.run
    monkeypatch.setattr(child, "run", lambda function: (children.append(1), run(function))[1])
    try:
        cost = profile(known(), (3, 8, 8)).cost
    finally:
        done.set()
        other.join()
    assert children == [1] and cost.status == "complete"
