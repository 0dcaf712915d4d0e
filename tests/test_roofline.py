"""Kernels per level against the totals, and the roofline bound against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from effbench import cost, zoo
from effbench.core import LEVELS, Traffic
from effbench.cost import Kernel, Profile, bound_s, bounds_s
from effbench.peaks import Peaks

PEAKS = Peaks(flops_per_s=1e11, bytes_per_s=2e10)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return zoo.resolve(name, {})


@pytest.fixture(scope="module", params=["shufflenet_v2", "shufflenet_v1", "mobilenet_v2", "resnet18"])
def found(request: pytest.FixtureRequest) -> Profile:
    return cost.profile(on_meta(request.param), (3, 96, 96), batch=2, device="meta")


def total(kernels: tuple[Kernel, ...]) -> Traffic:
    return sum((kernel.traffic for kernel in kernels), Traffic())


def test_kernels_add_up_to_the_network(found: Profile) -> None:
    assert set(found.kernels) == set(LEVELS)
    for level, kernels in found.kernels.items():
        assert total(kernels) == found.cost.memory_access_levels[level], level
        assert sum(kernel.madds for kernel in kernels) == found.cost.madds, level
    assert len(found.kernels["eager"]) == len(found.ops)
    assert len(found.kernels["epilogue"]) < len(found.kernels["pointwise"]) < len(found.kernels["eager"])


def test_one_kernel_a_convolution_once_everything_around_is_folded_in() -> None:
    """conv, norm and activation: three operators, two kernels for a compiler, one for a deployment runtime."""
    model = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    found = cost.profile(model, (8, 10, 10))
    assert [len(found.kernels[level]) for level in LEVELS] == [1, 3, 2, 1]
    (folded,) = found.kernels["epilogue"]
    madds, moved = 100 * 8 * 16, 100 * 8 + 100 * 16 + 8 * 16 + 16
    assert folded.madds == madds and folded.traffic.elements == moved
    # 12,800 multiply-adds at 50 G/s are 0.256 µs, 10.2 kB at 20 GB/s 0.508 µs: memory binds.
    assert bound_s([folded], PEAKS) == pytest.approx(4 * moved / 2e10, rel=1e-12)
    assert bounds_s(found.kernels, PEAKS)["layer"] == pytest.approx(4 * (moved - 16) / 2e10, rel=1e-12)


def test_bytes_follow_dtype_and_weights_are_read_once_a_batch() -> None:
    model = nn.Linear(300, 200, bias=False)
    for dtype, size in (("float32", 4), ("float16", 2), ("float64", 8)):
        (kernel,) = cost.profile(model, (300,), batch=7, dtype=dtype).kernels["eager"]
        assert kernel.traffic.bytes == size * (300 * 200 + 7 * 500)
        assert kernel.madds == 7 * 300 * 200


def test_a_bound_is_a_sum_of_maxima_and_not_a_maximum_of_sums() -> None:
    arithmetic, memory = Kernel(5 * 10**9, Traffic()), Kernel(0, Traffic(activation_bytes=2 * 10**9))
    assert bound_s([arithmetic], PEAKS) == pytest.approx(0.1)
    assert bound_s([memory], PEAKS) == pytest.approx(0.1)
    assert bound_s([arithmetic, memory], PEAKS) == pytest.approx(0.2)
    assert bound_s([Kernel(5 * 10**9, Traffic(activation_bytes=2 * 10**9))], PEAKS) == pytest.approx(0.1)
    assert bound_s([], PEAKS) == 0
    assert PEAKS.ridge == 5


kernels = st.builds(
    Kernel,
    st.integers(0, 10**12),
    st.builds(Traffic, weight_bytes=st.integers(0, 10**10), activation_bytes=st.integers(0, 10**10)),
)
rates = st.floats(1e6, 1e16)


@hypothesis_settings(deadline=None)
@given(st.lists(kernels, max_size=8), rates, rates, st.integers(1, 64))
def test_bounds_lie_between_the_larger_roof_and_both_together(
    found: list[Kernel], flops: float, moved: float, faster: int
) -> None:
    peaks = Peaks(flops, moved)
    bound = bound_s(found, peaks)
    arithmetic = 2 * sum(kernel.madds for kernel in found) / flops
    memory = sum(kernel.traffic.bytes for kernel in found) / moved
    assert max(arithmetic, memory) * (1 - 1e-9) <= bound <= (arithmetic + memory) * (1 + 1e-9)
    assert bound_s(found, Peaks(flops * faster, moved * faster)) == pytest.approx(bound / faster)
    assert bound_s(found, Peaks(flops * faster, moved)) <= bound * (1 + 1e-12)
    assert math.isfinite(bound)


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["conv", "norm", "relu", "pool", "add"]), st.integers(1, 8)), max_size=7),
)
def test_kernels_of_any_stack_add_up(batch: int, blocks: list[tuple[str, int]]) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.relu()

    width, layers = 3, list[nn.Module]()
    for kind, size in blocks:
        if kind == "conv":
            layers.append(nn.Conv2d(width, size, 3, padding=1))
            width = size
        else:
            layers.append(
                {"norm": nn.BatchNorm2d(width), "relu": nn.ReLU(), "pool": nn.AvgPool2d(3, 1, 1), "add": Twice()}[kind]
            )
    found = cost.profile(nn.Sequential(*layers), (3, 9, 9), batch=batch)
    for level, each in found.kernels.items():
        assert total(each) == found.cost.memory_access_levels[level]
        assert sum(kernel.madds for kernel in each) == found.cost.madds
