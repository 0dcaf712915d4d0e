"""The G1-G4 stacks: closed-form costs, equality with plain functional code, and no write into what is still needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from effbench import zoo
from effbench.core.errors import InvalidValue

CHANNELS, BLOCKS = st.integers(1, 24), st.integers(1, 4)


def madds(network: nn.Module, channels: int, size: int = 5) -> int:
    x = torch.empty(1, channels, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = network.to("meta").eval()(x)
    assert y.shape == x.shape
    return counter.get_total_flops() // 2


@settings(deadline=None, max_examples=25)
@given(CHANNELS, CHANNELS, BLOCKS, st.sampled_from(("conv", "conv_bn_relu")))
def test_channel_ratio_costs_2_h_w_c1_c2_a_block(c1: int, c2: int, blocks: int, block: str):
    network = zoo.build("probe_channel_ratio", c1=c1, c2=c2, blocks=blocks, block=block)
    assert madds(network, c1) == blocks * 2 * 25 * c1 * c2


@settings(deadline=None, max_examples=25)
@given(CHANNELS, st.integers(1, 4), BLOCKS)
def test_groups_cost_h_w_c_c_over_g(width: int, groups: int, blocks: int):
    channels = width * groups
    network = zoo.build("probe_groups", channels=channels, groups=groups, blocks=blocks)
    assert madds(network, channels) == blocks * 25 * channels**2 // groups


@settings(deadline=None, max_examples=25)
@given(CHANNELS, st.sampled_from((2, 4)), BLOCKS)
def test_fragments_cost_the_same_in_series_and_in_parallel(width: int, fragments: int, blocks: int):
    channels = width * fragments
    expected = blocks * fragments * 25 * channels**2
    for arrangement in ("series", "parallel"):
        network = zoo.build(
            "probe_fragments", channels=channels, fragments=fragments, arrangement=arrangement, blocks=blocks
        )
        assert madds(network, channels) == expected
    network = zoo.build(
        "probe_fragments", channels=channels, fragments=fragments, arrangement="parallel", merge="concat", blocks=blocks
    )
    assert madds(network, channels) == expected // fragments


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_relu_and_shortcut_change_no_multiply_adds(relu: bool, shortcut: bool, norm: str):
    network = zoo.build("probe_bottleneck", channels=16, inner=4, relu=relu, shortcut=shortcut, blocks=3, norm=norm)
    assert madds(network, 16) == 3 * 25 * (16 * 4 + 9 * 4 * 4 + 4 * 16)


# --- the same function as plain code without modules or in-place operations -------------------------


def weights(network: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def run(network: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """An input and the output for it, after checking that the network wrote into neither input nor weights."""
    network.eval()
    x = torch.randn(2, channels, 6, 7)
    before = [x.clone(), *(weight.detach().clone() for weight in weights(network))]
    with torch.no_grad():
        y = network(x)
    assert all(torch.equal(old, new) for old, new in zip(before, [x, *weights(network)], strict=True))
    return x, y


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_bottleneck_is_the_plain_formula(relu: bool, shortcut: bool):
    network = zoo.build("probe_bottleneck", channels=8, inner=2, relu=relu, shortcut=shortcut, blocks=2)
    x, y = run(network, 8)
    act = torch.relu if relu else (lambda value: value)
    expected, parts = x, weights(network)
    for first, middle, last in (parts[:3], parts[3:]):
        branch = act(F.conv2d(act(F.conv2d(expected, first)), middle, padding=1))
        branch = F.conv2d(branch, last)
        expected = act(branch + expected if shortcut else branch)
    assert torch.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("merge", ["add", "concat"])
def test_parallel_fragments_are_a_sum_or_a_concatenation(merge: str):
    network = zoo.build("probe_fragments", channels=8, fragments=4, arrangement="parallel", merge=merge, blocks=2)
    x, y = run(network, 8)
    expected, parts = x, weights(network)
    for block in (parts[:4], parts[4:]):
        outputs = [F.conv2d(expected, weight) for weight in block]
        expected = torch.cat(outputs, dim=1) if merge == "concat" else sum(outputs)
    assert torch.allclose(y, expected, atol=1e-5)


def test_stacks_in_a_row_are_plain_convolutions():
    for name, arguments, groups in (
        ("probe_channel_ratio", {"c1": 4, "c2": 8}, 1),
        ("probe_groups", {"channels": 4, "groups": 2}, 2),
        ("probe_fragments", {"channels": 4, "fragments": 2, "arrangement": "series"}, 1),
        ("probe_fragments", {"channels": 4, "fragments": 1}, 1),
    ):
        network = zoo.build(name, **arguments, blocks=3)
        x, y = run(network, 4)
        for weight in weights(network):
            x = F.conv2d(x, weight, groups=groups)
        assert torch.allclose(x, y, atol=1e-5)
        assert not [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None]


def test_block_with_norm_and_relu_has_both_after_every_convolution():
    network = zoo.build(
        "probe_fragments", channels=4, fragments=2, arrangement="parallel", blocks=3, block="conv_bn_relu"
    )
    kinds = [type(layer).__name__ for layer in network.modules()]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == kinds.count("ReLU") == 6


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("probe_channel_ratio", {"c1": 32, "c2": 64}),
        ("probe_groups", {"channels": 64, "groups": 8}),
        ("probe_fragments", {"channels": 32, "fragments": 4, "arrangement": "series"}),
        ("probe_fragments", {"channels": 32, "fragments": 4, "arrangement": "parallel"}),
        *(
            ("probe_bottleneck", {"channels": 32, "inner": 8, "relu": relu, "shortcut": shortcut})
            for relu in (True, False)
            for shortcut in (True, False)
        ),
    ],
)
def test_the_signal_neither_vanishes_nor_overflows_half_precision(name: str, arguments: dict):
    torch.manual_seed(0)
    network = zoo.build(name, **arguments).eval()
    with torch.no_grad():
        y = network(torch.randn(1, arguments.get("channels", arguments.get("c1")), 14, 14))
    assert float(y.std()) > 1e-3
    assert float(y.abs().max()) < 65504


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("probe_channel_ratio", {"c1": 4, "c2": 4, "block": "bare"}),
        ("probe_groups", {"channels": 180, "groups": 8}),
        ("probe_fragments", {"channels": 4, "fragments": 2}),
        ("probe_fragments", {"channels": 4, "fragments": 2, "arrangement": "tree"}),
        ("probe_fragments", {"channels": 6, "fragments": 4, "arrangement": "parallel", "merge": "concat"}),
        ("probe_bottleneck", {"channels": 4, "inner": 1, "relu": True, "shortcut": True, "norm": "layer"}),
    ],
)
def test_wrong_arguments_are_refused_with_a_way_out(name: str, arguments: dict):
    with pytest.raises(InvalidValue, match=r"\(=.*use "):
        zoo.build(name, **arguments)
