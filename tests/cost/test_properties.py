"""Properties over random layers and networks: closed forms, the paper's bound, batch scaling, torch's own counter."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effbench.cost import Profile
from effbench.cost.profiler import count as profile  # in this process: a fork for each is slow and shows nothing

pytestmark = pytest.mark.bulk

few = settings(deadline=None, max_examples=25)
CONVS: dict[tuple[int, bool], Any] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


@few
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    c1=st.integers(1, 64),
    c2=st.integers(1, 64),
    g=st.sampled_from([1, 2, 4, 8]),
)
def test_pointwise_convolution_closed_forms_and_the_papers_bound(h: int, w: int, c1: int, c2: int, g: int) -> None:
    c1, c2 = c1 * g, c2 * g
    cost = profile(nn.Conv2d(c1, c2, 1, groups=g, bias=False), (c1, h, w)).cost
    madds = h * w * c1 * c2 // g
    assert cost.madds == madds
    assert cost.memory_access == h * w * (c1 + c2) + c1 * c2 // g
    if g == 1:  # equation 1 of arXiv 1807.11164, with equality at c1 = c2
        bound = 2 * sqrt(h * w * madds) + madds / (h * w)
        assert cost.memory_access >= bound * (1 - 1e-12)
        if c1 == c2:
            assert abs(cost.memory_access - bound) < 1e-6 * bound


@few
@given(data=st.data(), dimensions=st.integers(1, 3), transposed=st.booleans(), batch=st.integers(1, 3))
def test_convolutions_of_every_kind(data: st.DataObject, dimensions: int, transposed: bool, batch: int) -> None:
    sides = st.integers(1, 3)
    kernel = data.draw(st.tuples(*[sides] * dimensions))
    stride, dilation = (data.draw(st.tuples(*[st.integers(1, 2)] * dimensions)) for _ in range(2))
    padding: Any = data.draw(st.tuples(*[st.integers(0, 2)] * dimensions))
    if not transposed and data.draw(st.booleans()):
        padding, stride = "same", (1,) * dimensions
    groups = data.draw(st.sampled_from([1, 2, 3]))
    c1, c2 = (groups * data.draw(st.integers(1, 4)) for _ in range(2))
    size = data.draw(st.tuples(*[st.integers(5, 8)] * dimensions))
    layer = CONVS[dimensions, transposed](
        c1, c2, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    ahead = padding if padding != "same" else (0,) * dimensions
    if transposed:
        out = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(size, stride, ahead, dilation, kernel, strict=True)
        ]
        assume(min(out) > 0)
        madds = batch * prod(size) * c1 * (c2 // groups) * prod(kernel)
    else:
        out = [
            n if padding == "same" else (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, s, p, d, k in zip(size, stride, ahead, dilation, kernel, strict=True)
        ]
        madds = batch * prod(out) * c2 * (c1 // groups) * prod(kernel)
    cost = profile(layer, (c1, *size), batch=batch).cost
    assert cost.madds == madds
    assert cost.activations == batch * c2 * prod(out)
    assert cost.params == c1 * c2 // groups * prod(kernel)
    layer_level = cost.memory_access_levels["layer"]
    assert layer_level.weights == cost.params
    if padding != "same":  # an uneven "same" pads a copy first
        assert layer_level.activations == batch * (c1 * prod(size) + c2 * prod(out))
        assert cost.memory_access == layer_level.elements


class Net(nn.Module):
    """A random small network: plain, grouped, residual, concatenating and shuffling stages, then a linear layer."""

    def __init__(self, stages: list[tuple[str, int, int]], inplace: bool) -> None:
        super().__init__()
        self.kinds = [kind for kind, _, _ in stages]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = 4
        for kind, width, kernel in stages:
            out = channels if kind in ("residual", "shuffle") else width
            self.convs.append(
                nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=2 if kind == "grouped" else 1, bias=False)
            )
            self.norms.append(nn.BatchNorm2d(out))
            channels = channels + out if kind == "concat" else out
        self.act = nn.ReLU(inplace)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for kind, conv, norm in zip(self.kinds, self.convs, self.norms, strict=True):
            y = norm(conv(x))
            if kind == "residual":
                y = y + x
            y = self.act(y)
            if kind == "concat":
                y = torch.cat([x, y], 1)
            if kind == "shuffle":
                b, c, h, w = y.shape
                y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            x = y
        return self.head(x.mean((2, 3)))


stages = st.lists(
    st.tuples(
        st.sampled_from(["plain", "grouped", "residual", "concat", "shuffle"]),
        st.sampled_from([2, 4, 8]),
        st.sampled_from([1, 3]),
    ),
    min_size=1,
    max_size=5,
)


def counted(stages: list[tuple[str, int, int]], inplace: bool, size: int, **options: Any) -> Profile:
    return profile(Net(stages, inplace), (4, size, size), **options)


@few
@given(stages=stages, inplace=st.booleans(), size=st.integers(2, 9), batch=st.integers(1, 5))
def test_batch_scales_activations_and_nothing_else(
    stages: list[tuple[str, int, int]], inplace: bool, size: int, batch: int
) -> None:
    one, many = counted(stages, inplace, size), counted(stages, inplace, size, batch=batch)
    assert many.cost.madds == batch * one.cost.madds
    assert many.cost.activations == batch * one.cost.activations
    assert many.cost.elementwise == batch * one.cost.elementwise
    for level, traffic in one.cost.memory_access_levels.items():
        scaled = many.cost.memory_access_levels[level]
        assert (scaled.weights, scaled.weight_bytes) == (traffic.weights, traffic.weight_bytes)
        assert (scaled.activations, scaled.activation_bytes) == (
            batch * traffic.activations,
            batch * traffic.activation_bytes,
        )


@few
@given(stages=stages, inplace=st.booleans(), size=st.integers(2, 9))
def test_levels_modules_and_totals_agree(stages: list[tuple[str, int, int]], inplace: bool, size: int) -> None:
    found = counted(stages, inplace, size)
    levels = found.cost.memory_access_levels
    assert levels["epilogue"].elements <= levels["pointwise"].elements <= levels["eager"].elements
    assert levels["layer"].elements <= levels["eager"].elements
    whole, *rest = found.by_module(depth=1)
    assert (whole.module, whole.traffic, whole.madds) == ("", levels["eager"], found.cost.madds)
    own = [op for op in found.ops if not op.module]
    assert sum(part.madds for part in rest) + sum(op.madds for op in own) == found.cost.madds
    assert sum(part.traffic.elements for part in rest) + sum(op.memory_access for op in own) == levels["eager"].elements
    for op in found.ops:
        assert op.weights_read + op.activations_read + op.written == op.memory_access


@few
@given(stages=stages, inplace=st.booleans(), size=st.integers(2, 9), batch=st.integers(1, 3))
def test_equal_to_torchs_own_counter(stages: list[tuple[str, int, int]], inplace: bool, size: int, batch: int) -> None:
    model = Net(stages, inplace).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(batch, 4, size, size))
    assert 2 * profile(model, (4, size, size), batch=batch).cost.madds == counter.get_total_flops()


@few
@given(stages=stages, inplace=st.booleans(), size=st.integers(2, 9))
def test_meta_and_real_tensors_agree(stages: list[tuple[str, int, int]], inplace: bool, size: int) -> None:
    model = Net(stages, inplace)
    meta, real = (profile(model, (4, size, size), device=device) for device in ("meta", "real"))
    assert meta.ops == real.ops
    assert meta.cost.memory_access_levels == real.cost.memory_access_levels
