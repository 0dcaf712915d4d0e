"""Unusual models: whatever runs in PyTorch is counted or its uncounted operators named, against values by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from networks import FunctionModule
from torch import nn
from torch.nn import functional

from effbench.core.errors import ModelError
from effbench.cost import count, profile
from effbench.pytest_plugin import assert_cost


def linear(function: Callable[..., Any], **parts: Any) -> FunctionModule:
    return FunctionModule(function, layer=nn.Linear(8, 8), **parts)


@dataclass(slots=True)
class Slots:
    y: torch.Tensor


class Named(NamedTuple):
    y: torch.Tensor
    z: Any = None


@pytest.mark.parametrize("make", [Slots, Named, lambda y: {"a": [y]}, lambda y: (y, {"b": Slots(y)})])
def test_results_of_any_make(make: Callable[[torch.Tensor], Any]) -> None:
    levels = profile(linear(lambda m, x: make(m.layer(x))), (8,)).cost.memory_access_levels
    assert {moved.elements for moved in levels.values()} == {8 + 64 + 8 + 8}


def test_a_dataclass_goes_in() -> None:
    model = linear(lambda m, x: m.layer(x.y))
    assert profile(model, (8,), inputs=(Slots(torch.ones(1, 8)),)).cost.madds == 64


# --- branches, loops and the like -------------------------------------------------------------------


def branch(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    return torch.cond((x * 0).sum() == 0, lambda x: model.layer(x), lambda x: model.layer(model.layer(x)), (x,))


def loop(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, model.layer(x)), (torch.tensor(0), x))[1]


def scan(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    from torch._higher_order_ops.scan import scan

    return scan(lambda carry, row: (carry + row, carry @ model.weight), torch.zeros(1, 8), x.transpose(0, 1), dim=0)[1]


def associative(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(torch.add, model.layer(x), dim=1, combine_mode="generic")


def mapped(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    from torch._higher_order_ops.map import map as over

    return over(lambda row: model.layer(row), x)


def checkpointed(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    return torch.utils.checkpoint.checkpoint(model.layer, x, use_reentrant=False)


def flexible(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(x[:, None], x[:, None], x[:, None], score_mod=lambda score, b, h, q, k: score + q)


ORDERS: list[tuple[Callable[..., Any], int]] = [
    (branch, 5 * 64),
    (loop, 3 * 5 * 64),
    (scan, 5 * 64),
    (associative, 5 * 64),
    (mapped, 5 * 64),
    (checkpointed, 5 * 64),
    (flexible, 5 * 5 * 16),
    (lambda m, x: torch.vmap(m.layer)(x), 5 * 64),
    (lambda m, x: torch.vmap(lambda q: functional.scaled_dot_product_attention(q, q, q))(x), 5 * 5 * 16),
    (lambda m, x: torch.func.functional_call(m.layer, dict(m.layer.named_parameters()), (x,)), 5 * 64),
    (lambda m, x: torch.func.grad(lambda y: m.layer(y).sum())(x), 2 * 5 * 64),
]


@pytest.mark.parametrize(("forward", "madds"), ORDERS)
def test_operators_that_take_functions(forward: Callable[..., Any], madds: int) -> None:
    cost = profile(linear(forward, weight=nn.Parameter(torch.eye(8))), (5, 8)).cost
    assert (cost.madds, cost.status) == (madds, "complete")


def test_one_without_a_rule_is_named() -> None:
    from torch._higher_order_ops.hints_wrap import hints_wrapper

    model = linear(lambda m, x: hints_wrapper(lambda y: (m.layer(y),), (x,), {}, hints={})[0])
    cost = profile(model, (8,)).cost
    assert cost.status == "partial" and "hints_wrapper" in cost.uncounted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradients_in_forward(mode: Any) -> None:
    """Forces: the gradient of the output by the input is one product more."""

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_(True)
        return torch.autograd.grad(model.layer(x).tanh().sum(), x)[0]

    with mode():
        assert profile(linear(forward), (8,)).cost.madds == 128


# --- layouts ----------------------------------------------------------------------------------------


def test_sparse_products_count_what_is_stored() -> None:
    model = linear(lambda m, x: torch.sparse.mm(m.graph, m.layer(x[0])))
    model.register_buffer("graph", torch.eye(5).to_sparse())
    cost = profile(model, (5, 8)).cost
    assert (cost.madds, cost.status) == (5 * 64 + 5 * 8, "complete")


def test_jagged_tensors() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        return model.layer(torch.nested.nested_tensor([x[0, :3], x[0, :5]], layout=torch.jagged)).values()

    assert profile(linear(forward), (5, 8)).cost.madds == (3 + 5) * 64


@pytest.mark.parametrize("freeze", [False, True])
def test_torchscript(freeze: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(8, 8)).eval())
        model = torch.jit.freeze(model) if freeze else model
    assert profile(model, (8,)).cost.madds == 64


# --- quantised --------------------------------------------------------------------------------------


def test_packed_weights_are_parameters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = nn.Sequential(nn.Linear(192, 1000))
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
        cost = profile(model, (192,)).cost
        assert (cost.params, cost.madds, cost.status) == (193_000, 192_000, "complete")
        assert cost.memory_access_levels["layer"].weight_bytes == 192_000 + 4 * 1000
        with pytest.raises(AssertionError, match="193 k"):
            assert_cost(model, (192,), max_params=100)


@pytest.mark.parametrize(("layer", "params"), [(nn.LSTM(8, 16), 4 * 16 * 26), (nn.GRU(8, 16), 3 * 16 * 26)])
def test_packed_cells_hold_each_bias_once(layer: nn.Module, params: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)}, dtype=torch.qint8)
        assert profile(model, (10, 8)).cost.params == params


def test_packed_weights_in_torchscript_are_parameters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 8)), {nn.Linear}, dtype=torch.qint8)
        assert profile(torch.jit.script(model), (16,)).cost.params == 16 * 8 + 8


def test_a_mask_counts_what_it_selects() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, torch.arange(100) < 10] = 0.0
        return y

    cost = profile(FunctionModule(forward), (100, 8)).cost
    assert cost.memory_access == count(FunctionModule(forward), (100, 8), device="real").cost.memory_access
    assert cost.memory_access < 1600 + 800


def test_a_mask_counts_what_it_selects_on_fake_tensors_too() -> None:
    """They are asked where the pass on shapes ends early, as at an input that is written into a constant."""

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(len(x), 100, 8)
        y[:] = x
        y[:, torch.arange(100) < 10] = 0.0
        return y

    cost = count(FunctionModule(forward), (100, 8)).cost
    assert cost.traced_on == "cpu"
    assert cost.memory_access == count(FunctionModule(forward), (100, 8), device="real").cost.memory_access


def test_a_mask_of_a_network_without_values_counts_as_if_it_selected_everything() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        y = model.layer(x)
        y[x > 0] = 0.0
        return y

    with torch.device("meta"):
        cost = count(linear(forward), (100, 8)).cost
    compared = 800 + 800
    assert cost.memory_access_levels["eager"].elements == 800 + 64 + 8 + 800 + compared + 800 + 800
    assert (cost.status, cost.traced_on) == ("complete", "meta")


def test_a_weight_is_read_as_it_is_held() -> None:
    """By hand what weight-only quantisation does: eight-bit weights, scaled to floats before the product."""

    class Int8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(32, 64, dtype=torch.int8))
            self.register_buffer("scale", torch.ones(32, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.weight.to(x.dtype) * self.scale)

    levels = count(Int8(), (64,)).cost.memory_access_levels
    assert levels["layer"].weight_bytes == 32 * 64 + 32 * 4
    assert levels["eager"].weight_bytes == 32 * 64 * (1 + 4 + 4 + 4 + 4) + 32 * 4


def test_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        cost = profile(model, (64,)).cost
    assert (cost.params, cost.madds) == (64 * 32, 64 * 32)
    assert 64 * 32 <= cost.memory_access_levels["layer"].weight_bytes <= 64 * 32 + 32 * 4


# --- refusals ---------------------------------------------------------------------------------------


def test_shapes_may_be_numpys() -> None:
    assert profile(nn.Linear(8, 8), tuple(np.array([5, 8]))).cost.madds == 5 * 64


def test_what_it_was_not_built_for_is_said_only_where_that_is_the_cause() -> None:
    with pytest.raises(ModelError, match=r"1x5.*features"):
        profile(nn.Linear(8, 8), (5,))

    def broken(model: FunctionModule, x: torch.Tensor) -> Any:
        raise AttributeError("no such thing")

    with pytest.raises(ModelError, match=r"AttributeError: no such thing; its own code raises this"):
        profile(linear(broken), (8,))


def test_a_refused_input_is_not_tried_on_gigabytes() -> None:
    """200 M weights of zeros, which take memory only once they are written or computed with."""
    ran: list[str] = []

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1).expand(200_000_000, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(type(x).__name__)
            return x @ torch.zeros(3, 3, device=x.device)

    with pytest.raises(ModelError, match="does not run on input 1x8"):
        count(Large(), (8,))
    assert len(ran) == 2 and "FakeTensor" in ran, "on shapes and on fake tensors, not on real ones"
