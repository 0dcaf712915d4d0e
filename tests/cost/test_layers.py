"""Multiply-adds of every kind of layer against closed forms worked out here, on meta and on real tensors alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as imported_attention

from effbench.cost import profile


class Run(nn.Module):
    """A module around a function, for functional calls."""

    def __init__(self, function: Callable[..., Any], **parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


class OwnConv(nn.Conv2d):
    """A subclass, as timm's padding and weight-standardising layers are."""

    def forward(self, x: Any) -> Any:
        return functional.conv2d(x, self.weight * 2, self.bias, padding=1)


class Direct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Any) -> Any:
        return self.conv.forward(x)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        return x @ weight


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 5), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.used(x)


def shared() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.ReLU(), conv)


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


class Case(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    shapes: Any
    madds: int
    activations: int
    params: int
    batch: int = 1


def encoder(d: int, tokens: int, hidden: int) -> int:
    """Four d x d projections and two products with the token matrix, then the two linear layers."""
    return 4 * tokens * d * d + 2 * tokens * tokens * d + 2 * tokens * d * hidden


ATTENTION = 2 * 5 * 7 * 4 * 2  # two products of 5 queries with 7 keys of width 4, in 2 heads
QKV = ((2, 5, 4), (2, 7, 4), (2, 7, 4))
CASES = [
    Case("conv3x3", lambda: nn.Conv2d(3, 8, 3, bias=False), (3, 6, 6), 16 * 8 * 27, 128, 216),
    Case("conv3x3 bias", lambda: nn.Conv2d(3, 8, 3), (3, 6, 6), 16 * 8 * 27, 128, 224),
    Case("conv grouped", lambda: nn.Conv2d(8, 12, 3, groups=4), (8, 6, 6), 16 * 12 * 18, 192, 228),
    Case("depthwise", lambda: nn.Conv2d(6, 6, 3, groups=6), (6, 5, 5), 9 * 6 * 9, 54, 60),
    Case("depthwise multiplier", lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 5, 5), 9 * 12 * 9, 108, 120),
    Case("stride and dilation", lambda: nn.Conv2d(3, 4, 3, stride=2, dilation=2), (3, 11, 11), 16 * 4 * 27, 64, 112),
    Case("padding same", lambda: nn.Conv2d(3, 4, 3, padding="same"), (3, 7, 7), 49 * 4 * 27, 196, 112),
    Case("padding same, even", lambda: nn.Conv2d(3, 4, 4, padding="same"), (3, 7, 7), 49 * 4 * 48, 196, 196),
    Case("transposed", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 25 * 4 * 6 * 9, 6 * 121, 222),
    Case("transposed grouped", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 25 * 4 * 3 * 9, 6 * 49, 114),
    Case("conv1d", lambda: nn.Conv1d(3, 4, 5), (3, 12), 8 * 4 * 15, 32, 64),
    Case("conv3d", lambda: nn.Conv3d(2, 3, 3), (2, 5, 5, 5), 27 * 3 * 54, 81, 165),
    Case("conv subclass", lambda: OwnConv(3, 4, 3), (3, 5, 5), 25 * 4 * 27, 100, 112),
    Case("functional", lambda: Run(lambda m, x: functional.conv2d(x, m.w), w=(4, 3, 3, 3)), (3, 5, 5), 972, 36, 108),
    Case("linear", lambda: nn.Linear(6, 5), (6,), 30, 5, 35),
    Case("linear tokens", lambda: nn.Linear(6, 5), (7, 6), 7 * 30, 35, 35),
    Case("linear NHWC", lambda: nn.Linear(6, 5), (3, 4, 6), 12 * 30, 60, 35),
    Case("functional linear", lambda: Run(lambda m, x: functional.linear(x, m.w), w=(5, 6)), (7, 6), 7 * 30, 35, 30),
    Case("matmul", lambda: Run(lambda m, x, y: x @ y), ((3, 4), (4, 5)), 60, 15, 0),
    Case("bmm", lambda: Run(lambda m, x, y: torch.bmm(x, y)), ((3, 4), (4, 5)), 4 * 60, 60, 0, batch=4),
    Case("baddbmm", lambda: Run(lambda m, x, y, z: torch.baddbmm(z, x, y)), ((3, 4), (4, 5), (3, 5)), 60, 15, 0),
    Case("addbmm", lambda: Run(lambda m, x, y: torch.addbmm(m.w, x, y), w=(3, 5)), ((3, 4), (4, 5)), 120, 15, 15, 2),
    Case("einsum", lambda: Run(lambda m, x, y: torch.einsum("bhn,bmn->bhm", x, y)), ((3, 4), (5, 4)), 60, 15, 0),
    Case("matrix vector", lambda: Run(lambda m, x: x[0] @ m.w, w=(6,)), (5, 6), 30, 5, 6),
    Case("bilinear", lambda: nn.Bilinear(3, 4, 5, bias=False), ((3,), (4,)), 60, 5, 60),
    Case("attention", lambda: Run(lambda m, *x: functional.scaled_dot_product_attention(*x)), QKV, ATTENTION, 40, 0),
    Case("attention by another name", lambda: Run(lambda m, *x: imported_attention(*x)), QKV, ATTENTION, 40, 0),
    Case(
        "attention mask",
        lambda: Run(lambda m, q, k, v, mask: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)),
        (*QKV, (1, 5, 7)),
        ATTENTION,
        40,
        0,
    ),
    Case(
        "attention causal",
        lambda: Run(lambda m, *x: functional.scaled_dot_product_attention(*x, is_causal=True)),
        QKV,
        ATTENTION,
        40,
        0,
    ),
    Case(
        "grouped query attention",
        lambda: Run(lambda m, *x: functional.scaled_dot_product_attention(*x, enable_gqa=True)),
        ((4, 5, 4), (2, 7, 4), (2, 7, 4)),
        2 * ATTENTION,
        80,
        0,
    ),
    Case(
        "MultiheadAttention without weights",
        lambda: Run(lambda m, x: m.attention(x, x, x, need_weights=False)[0]),
        (5, 8),
        4 * 5 * 64 + 2 * 25 * 8,
        4 * 40 + 40,
        288,
    ),
    Case(
        "MultiheadAttention",
        lambda: Run(lambda m, x: m.attention(x, x, x)[0]),
        (5, 8),
        4 * 5 * 64 + 2 * 25 * 8,
        4 * 40 + 40 + 2 * 25,
        288,
    ),
    Case(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (5, 8),
        encoder(8, 5, 16),
        4 * 40 + 40 + 80 + 40,
        288 + 280 + 32,
    ),
    Case("LSTM", lambda: nn.LSTM(6, 5, batch_first=True), (7, 6), 7 * 20 * (6 + 5), 35, 20 * 11 + 40),
    Case("GRU", lambda: nn.GRU(6, 5, batch_first=True), (7, 6), 7 * 15 * (6 + 5), 35, 15 * 11 + 30),
    Case("LSTM projected", lambda: nn.LSTM(6, 5, proj_size=3, batch_first=True), (7, 6), 7 * (20 * 9 + 15), 21, 235),
    Case("LSTMCell", lambda: nn.LSTMCell(6, 5), (6,), 20 * 11, 40, 20 * 11 + 40),
    Case("shared conv", shared, (4, 5, 5), 2 * 25 * 4 * 36, 200, 144),
    Case("tied linear", tied, (6,), 72, 12, 36),
    Case("unused module", Unused, (6,), 30, 5, 56),
    Case("autograd.Function", lambda: Run(lambda m, x: Product.apply(x, m.w), w=(6, 5)), (6,), 30, 5, 30),
    Case("direct forward", Direct, (3, 5, 5), 9 * 8 * 27, 72, 224),
    Case("relu only", nn.ReLU, (3, 5, 5), 0, 0, 0),
    Case("batch 4", lambda: nn.Conv2d(3, 8, 3), (3, 6, 6), 4 * 16 * 8 * 27, 512, 224, batch=4),
    Case("in place", lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), (3, 6, 6), 3456, 128, 224),
]  # fmt: skip


def attention_modules(case: Case) -> nn.Module:
    model = case.build()
    if case.name.startswith("MultiheadAttention"):
        model.attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return model


@pytest.mark.parametrize("device", ["meta", "real"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_closed_forms(case: Case, device: Any) -> None:
    cost = profile(attention_modules(case), case.shapes, batch=case.batch, device=device).cost
    assert (cost.madds, cost.activations, cost.params) == (case.madds, case.activations, case.params)
    assert cost.status == "complete"
    assert cost.traced_on == ("meta" if device == "meta" else "cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_meta_and_real_agree_in_every_number(case: Case) -> None:
    model = attention_modules(case)
    costs = [profile(model, case.shapes, batch=case.batch, device=device).cost for device in ("meta", "real")]
    assert costs[0].elementwise == costs[1].elementwise
    assert costs[0].memory_access_levels == costs[1].memory_access_levels


def test_two_recurrent_layers_cost_as_much_as_two_modules() -> None:
    two = profile(nn.LSTM(6, 6, 2, bidirectional=False, batch_first=True), (7, 6)).cost
    one = profile(nn.LSTM(6, 6, batch_first=True), (7, 6)).cost
    assert two.madds == 2 * one.madds
    assert two.activations == 2 * one.activations
    assert two.memory_access == 2 * one.memory_access


def test_recurrent_layers_take_packed_sequences_and_keywords() -> None:
    lengths = torch.tensor([3, 2])

    def packed(m: Any, x: Any) -> Any:
        return m.lstm(input=nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data

    model = Run(packed)
    model.lstm = nn.LSTM(6, 5, batch_first=True)
    assert profile(model, (3, 6), batch=2).cost.madds == 5 * 20 * 11


def test_a_built_on_meta_model_is_counted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    assert profile(model, (3, 6, 6)).cost.madds == 16 * 8 * 27


def test_data_dependent_code_falls_back_to_real_tensors_and_says_so() -> None:
    model = Run(lambda m, x: x @ m.w if x.sum() > 1e9 or x.numel() == 6 else x, w=(6, 5))
    cost = profile(model, (6,)).cost
    assert (cost.madds, cost.traced_on) == (30, "cpu")


def test_scripted_modules_are_counted() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU()))
    model.train()
    assert profile(model, (6,)).cost.madds == 30
    assert model.training


def test_constants_made_in_forward_on_the_cpu() -> None:
    model = Run(lambda m, x: (x * torch.linspace(0, 1, 6)) @ m.w * torch.arange(3).max().item(), w=(6, 5))
    cost = profile(model, (6,)).cost
    assert (cost.madds, cost.traced_on) == (30, "meta")


def test_inference_mode_inside_the_model() -> None:
    @torch.inference_mode()
    def forward(m: Any, x: Any) -> Any:
        return functional.conv2d(x, m.w)

    assert profile(Run(forward, w=(4, 3, 3, 3)), (3, 5, 5)).cost.madds == 972
