"""Fusion: the four levels keep their order for every network, kernels can run one after another, and time is linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from effbench.core import LEVELS, Traffic
from effbench.cost import profile

SIDE = 8


def float32(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def decomposed_rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def decomposed_softmax(x: Tensor) -> Tensor:
    exponential = torch.exp(x - x.amax(-1, keepdim=True))
    return exponential / exponential.sum(-1, keepdim=True)


def in_place(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y) if x.is_floating_point() else x.logical_or_(y > 0) if x.dtype is torch.bool else x


def partly_overwritten(x: Tensor, y: Tensor) -> Tensor:
    result = torch.empty_like(x)
    result[:, : SIDE // 2] = y[:, : SIDE // 2]
    result[:, SIDE // 2 :] = x[:, SIDE // 2 :]
    return result


def glu(m: Any, x: Tensor) -> Tensor:
    gate, up = m.wide(float32(x)).chunk(2, dim=-1)
    return functional.silu(gate) * up


# Each takes the network and two tensors of (batch, 8, 8), and returns another.
OPERATORS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "linear": lambda m, x, y: m.linear(float32(x)),
    "linear without bias": lambda m, x, y: m.plain(float32(x)),
    "half linear": lambda m, x, y: functional.linear(x.half(), m.plain.weight.half()),
    "double linear": lambda m, x, y: functional.linear(x.double(), m.plain.weight.double()),
    "conv": lambda m, x, y: m.conv(float32(x)),
    "depthwise": lambda m, x, y: m.depthwise(float32(x)),
    "batch norm": lambda m, x, y: m.norm(float32(x)),
    "conv norm relu": lambda m, x, y: functional.relu_(m.norm(m.conv(float32(x)))),
    "matmul": lambda m, x, y: float32(x) @ float32(y),
    "matmul with itself": lambda m, x, y: float32(x) @ float32(x),
    "matmul transposed": lambda m, x, y: float32(x) @ float32(x).mT,
    "baddbmm": lambda m, x, y: torch.baddbmm(float32(y), float32(x), float32(y)),
    "attention": lambda m, x, y: functional.scaled_dot_product_attention(float32(x), float32(y), float32(y)),
    "self-attention": lambda m, x, y: functional.scaled_dot_product_attention(*[float32(x)] * 3),
    "softmax attention": lambda m, x, y: torch.softmax(float32(x) @ float32(y).mT, -1) @ float32(y),
    "layer norm": lambda m, x, y: functional.layer_norm(float32(x), (SIDE,)),
    "rms norm": lambda m, x, y: functional.rms_norm(float32(x), (SIDE,)),
    "decomposed rms norm": lambda m, x, y: decomposed_rms_norm(float32(x)),
    "double rms norm": lambda m, x, y: decomposed_rms_norm(x.double()).to(x.dtype),
    "softmax": lambda m, x, y: torch.softmax(float32(x), -1),
    "decomposed softmax": lambda m, x, y: decomposed_softmax(float32(x)),
    "relu": lambda m, x, y: functional.relu(float32(x)),
    "silu": lambda m, x, y: functional.silu(float32(x)),
    "glu": lambda m, x, y: glu(m, x),
    "add": lambda m, x, y: x + y,
    "add in place": lambda m, x, y: in_place(x, y),
    "double itself": lambda m, x, y: x + x,
    "multiply": lambda m, x, y: x * y,
    "greater": lambda m, x, y: x > y,
    "where": lambda m, x, y: torch.where(x > 0, x, y),
    "byte": lambda m, x, y: x.to(torch.uint8),
    "half": lambda m, x, y: x.half(),
    "double": lambda m, x, y: x.double(),
    "concat": lambda m, x, y: torch.cat([x, y], 1)[:, ::2],
    "narrow": lambda m, x, y: m.narrow(torch.cat([float32(x), float32(y)], -1)),
    "stack": lambda m, x, y: torch.stack([x, y]).sum(0),
    "mean": lambda m, x, y: float32(x).mean(-1, keepdim=True).expand(-1, -1, SIDE),
    "gate": lambda m, x, y: x * torch.sigmoid(m.linear(float32(x).mean(1, keepdim=True))),
    "sum of all": lambda m, x, y: y + x.sum(),
    "largest": lambda m, x, y: x.argmax(-1, keepdim=True).expand(-1, -1, SIDE),
    "cumulated": lambda m, x, y: float32(x).cumsum(1),
    "gather": lambda m, x, y: x[:, m.order],
    "embedding": lambda m, x, y: m.table(x.long()),
    "sort": lambda m, x, y: float32(x).sort(-1).values,
    "transpose": lambda m, x, y: x.mT,
    "contiguous": lambda m, x, y: x.mT.contiguous(),
    "roll": lambda m, x, y: x.roll(1, 1),
    "pad": lambda m, x, y: functional.pad(float32(x), (1, 1))[..., 2:],
    "pool": lambda m, x, y: functional.max_pool1d(float32(x), 3, stride=1, padding=1),
    "constant": lambda m, x, y: x + torch.arange(SIDE, device=x.device).sin(),
    "zeros": lambda m, x, y: torch.zeros_like(x) + y,
    "overwrite": lambda m, x, y: partly_overwritten(x, y),
    "normed weight": lambda m, x, y: functional.linear(float32(x), functional.normalize(m.plain.weight)),
    "slices": lambda m, x, y: x[:, :1] * y[:, 1:2] + x,
}  # fmt: skip

Step = tuple[str, int, int]


class Program(nn.Module):
    """A random network: each step takes two of the tensors so far; what `returned` names leaves the network."""

    def __init__(self, steps: list[Step], returned: list[int]) -> None:
        super().__init__()
        self.steps, self.returned = steps, returned
        self.linear, self.plain = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE, bias=False)
        self.wide, self.narrow = nn.Linear(SIDE, 2 * SIDE), nn.Linear(2 * SIDE, SIDE)
        self.conv, self.norm = nn.Conv1d(SIDE, SIDE, 3, padding=1, bias=False), nn.BatchNorm1d(SIDE)
        self.depthwise = nn.Conv1d(SIDE, SIDE, 3, padding=1, groups=SIDE)
        self.table = nn.Embedding(10, 1)
        self.table.forward = lambda index: functional.embedding(index, self.table.weight)[..., 0]  # type: ignore
        self.register_buffer("order", torch.arange(SIDE).flip(0))

    def forward(self, x: Tensor) -> list[Tensor]:
        tensors = [x]
        for name, one, other in self.steps:
            tensors.append(OPERATORS[name](self, tensors[-1 - one % len(tensors)], tensors[-1 - other % len(tensors)]))
        return [tensors[-1 - place % len(tensors)] for place in self.returned]


# Near operands make chains, far ones residual connections.
places = st.integers(0, 2) | st.integers(0, 30)
programs = st.builds(
    Program,
    st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), places, places), min_size=1, max_size=20),
    st.lists(places, min_size=1, max_size=3),
)


def assert_ordered(levels: dict[str, Traffic]) -> None:
    for unit in ("elements", "bytes"):
        moved = [getattr(levels[level], unit) for level in ("layer", "epilogue", "pointwise", "eager")]
        assert moved == sorted(moved), (unit, moved)


@settings(deadline=None, max_examples=200)
@given(program=programs)
def test_the_levels_are_ordered_for_every_network(program: Program) -> None:
    found = profile(program, (SIDE, SIDE), device="meta")
    assert found.cost.status == "complete"
    assert_ordered(found.cost.memory_access_levels)
    for level in LEVELS:
        assert sum((kernel.traffic for kernel in found.kernels[level]), Traffic()) == found.cost.memory_access_levels[level]
        assert sum(kernel.madds for kernel in found.kernels[level]) == found.cost.madds
