"""SE-ResNet, DenseNet, EfficientNet, MobileNetV3, MnasNet and Xception against their papers' layouts, closed forms and
timm's networks.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from functools import cache

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import fill, run_and_count, shapes_only
from torch import nn

from effbench import paper, zoo
from effbench.core.errors import InvalidValue
from effbench.zoo import efficientnet, load_model, xception
from effbench.zoo._blocks import InvertedResidual, SqueezeExcite, make_divisible

on_meta = cache(networks.on_meta)


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def madds(network: nn.Module, pixels: int = 224) -> int:
    return run_and_count(network, torch.empty(1, 3, pixels, pixels, device="meta"))[1]


def blocks(network: nn.Module) -> list[InvertedResidual]:
    return [layer for layer in network.modules() if isinstance(layer, InvertedResidual)]


# --- SE-ResNet ----------------------------------------------------------------------------------------


def test_a_gate_scales_channels_by_what_the_means_say():
    """Equations 2 to 4 of arXiv:1709.01507, written with matrix products."""
    gate = SqueezeExcite(8, 2)
    x = torch.randn(3, 8, 5, 4)
    hidden = (x.mean((2, 3)) @ gate.reduce.weight.flatten(1).T + gate.reduce.bias).relu()
    scale = torch.sigmoid(hidden @ gate.expand.weight.flatten(1).T + gate.expand.bias)
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_gates_of_se_resnet_cost_what_the_paper_writes(depth: int):
    """Equation 5 of arXiv:1709.01507: 2/16 of the sum of c squared over all units; we have biases besides."""
    widening, repeats = (
        (4 if depth >= 50 else 1),
        {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}.get(
            depth, (3, 4, 23, 3) if depth == 101 else (3, 8, 36, 3)
        ),
    )
    channels = [64 * 2**stage * widening for stage, repeat in enumerate(repeats) for _ in range(repeat)]
    products = sum(2 * c * c // 16 for c in channels)
    gated, plain = on_meta(f"se_resnet{depth}"), on_meta(f"resnet{depth}")
    assert params(gated) - params(plain) == products + sum(c + c // 16 for c in channels)
    assert madds(gated) - madds(plain) == products


def test_the_gate_of_se_resnet_comes_last_in_its_branch():
    unit = on_meta("se_resnet50").stages[0]
    assert isinstance(unit.branch[-1], SqueezeExcite)
    assert [unit.branch[-1].reduce.in_channels, unit.branch[-1].reduce.out_channels] == [256, 16]


def test_senet18_preact_cifar_by_hand():
    """Convolutions of ResNet-18 behind a 3x3 stem, three bare projections, one norm a convolution, gates."""
    widths = (64, 128, 256, 512)
    expected = 27 * 64 + 2 * 64 + 512 * 10 + 10
    for previous, c in zip((64, *widths), widths, strict=False):
        expected += 9 * previous * c + 3 * 9 * c * c + (previous * c if previous != c else 0)
        expected += 2 * previous + 3 * 2 * c + 2 * (2 * c * c // 16 + c + c // 16)
    network = zoo.build("senet18_preact_cifar")
    assert params(network) == expected == 11_260_354
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# --- DenseNet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "stem", "growth", "ends"),
    [
        (121, 64, 32, (256, 512, 1024, 1024)),
        (161, 96, 48, (384, 768, 2112, 2208)),
        (169, 64, 32, (256, 512, 1280, 1664)),
        (201, 64, 32, (256, 512, 1792, 1920)),
    ],
)
def test_densenet_grows_and_halves(depth: int, stem: int, growth: int, ends: tuple[int, ...]):
    """Channels at the ends of the four blocks; every depth is 2 a layer, 1 a transition, stem and classifier."""
    from effbench.zoo.densenet import DenseLayer

    network = networks.on_meta(f"densenet{depth}")
    seen: list[tuple[int, int]] = []
    for layer in network.modules():
        if isinstance(layer, DenseLayer):
            layer.register_forward_hook(lambda _layer, given, out: seen.append((given[0].shape[1], out.shape[1])))
    madds(network, 64)
    assert 2 * len(seen) + 5 == depth
    assert seen[0][0] == stem
    assert {after - before for before, after in seen} == {growth}
    finished = [after for (_, after), (nxt, _) in zip(seen, [*seen[1:], (0, 0)], strict=True) if nxt != after]
    assert tuple(finished) == ends
    assert network.fc.in_features == ends[-1]


def test_a_dense_layer_passes_its_input_on_unchanged():
    from effbench.zoo.densenet import DenseLayer

    x = torch.randn(2, 6, 5, 5)
    y = DenseLayer(6, 4).eval()(x)
    assert y.shape == (2, 10, 5, 5)
    assert torch.equal(y[:, :6], x)


# --- EfficientNet, MnasNet, MobileNetV3 ---------------------------------------------------------------


def test_efficientnet_scales_widths_and_depths_together():
    """Equation 3 of arXiv:1905.11946: depth 1.2^phi and width 1.1^phi, rounded as its authors please."""
    counts = [len(blocks(on_meta(f"efficientnet_b{scale}"))) for scale in range(8)]
    assert counts == [16, 23, 23, 26, 32, 39, 45, 55]
    heads = [on_meta(f"efficientnet_b{scale}").fc.in_features for scale in range(8)]
    assert heads == [1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560]
    for width, depth in efficientnet.COEFFICIENTS[2:]:
        # Whatever phi is: the ratio of the logarithms is that of 1.2 and 1.1.
        assert math.log(depth) / math.log(width) == pytest.approx(math.log(1.2) / math.log(1.1), rel=0.20)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mnasnet_a1"])
def test_a_gate_squeezes_to_a_quarter_of_the_blocks_input(name: str):
    gated = [block for block in blocks(on_meta(name)) if any(isinstance(part, SqueezeExcite) for part in block.branch)]
    assert len(gated) == {"efficientnet_b0": 16, "mnasnet_a1": 8}[name]
    for block in gated:
        gate = next(part for part in block.branch if isinstance(part, SqueezeExcite))
        assert gate.reduce.out_channels == block.branch[0][0].in_channels // 4


@pytest.mark.parametrize(
    ("name", "squeezed"),
    [
        ("mobilenet_v3_large", [24, 32, 32, 120, 168, 168, 240, 240]),
        ("mobilenet_v3_small", [8, 24, 64, 64, 32, 40, 72, 144, 144]),
    ],
)
def test_mobilenet_v3_squeezes_to_a_quarter_of_the_inner_width_rounded_to_8(name: str, squeezed: list[int]):
    gates = [layer for layer in on_meta(name).modules() if isinstance(layer, SqueezeExcite)]
    assert [gate.reduce.out_channels for gate in gates] == squeezed
    assert all(isinstance(gate.gate, nn.Hardsigmoid) for gate in gates)


def test_no_convolution_before_a_norm_has_a_bias():
    for name in ("efficientnet_b0", "mobilenet_v3_large", "mobilenet_v3_small", "mnasnet", "densenet121", "xception"):
        layers = list(on_meta(name).modules())
        for before, after in itertools.pairwise(layers):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                assert before.bias is None


def test_mobilenet_v3_small_of_tensorflow_slim_has_1280_hidden_units():
    """The reason beside its rows, 2.9 M and 2.4 M parameters: the hidden layer alone makes the difference."""
    for width, published in ((1.0, 2.9), (0.75, 2.4)):
        network = on_meta("mobilenet_v3_small", width=width)
        first, _, second = network.classifier
        wider = params(network) + (1280 - 1024) * (first.in_features + 1 + second.out_features)
        assert round(wider / 1e6, 1) == published


FAMILIES_OF_ANY_WIDTH = ("mobilenet_v3_large", "mobilenet_v3_small", "mnasnet", "mnasnet_a1")


@settings(deadline=None, max_examples=12)
@given(name=st.sampled_from(FAMILIES_OF_ANY_WIDTH), hundredths=st.integers(10, 300))
def test_any_width_builds_and_rounds_its_channels_to_8(name: str, hundredths: int):
    network = networks.on_meta(f"{name}_x{hundredths // 100}_{hundredths % 100:02}")
    for block in blocks(network):
        out = block.branch[-1][0].out_channels
        assert out % 8 == 0
    assert network.features[0][0].out_channels == make_divisible((32 if "mnasnet" in name else 16) * hundredths / 100)
    assert run_and_count(network, torch.empty(1, 3, 33, 47, device="meta"))[0].shape == (1, 1000)


@pytest.mark.parametrize("name", ["efficientnet_b8", "se_resnet19", "densenet120"])
def test_a_size_that_nobody_published_is_no_name(name: str):
    from effbench.core.errors import UnknownName

    with pytest.raises(UnknownName, match="Did you mean"):
        zoo.build(name)


@pytest.mark.parametrize(
    ("name", "arguments", "advice"),
    [
        ("efficientnet_b0", {"scale": 9}, "use 6 or 7"),
        ("se_resnet18", {"depth": 20}, "use 18 or 34"),
        ("densenet121", {"depth": 130}, "use 121 or 161"),
        ("xception_light_x0_75", {}, "use 0.5 or 1.0"),
        ("mobilenet_v3_large_x0", {}, "use 0.75"),
        ("mnasnet_x99", {}, "use 1.4"),
    ],
)
def test_impossible_sizes_name_the_nearest(name: str, arguments: dict, advice: str):
    with pytest.raises(InvalidValue, match=advice):
        zoo.build(name, **arguments)


# --- Xception -----------------------------------------------------------------------------------------


def separable_cost(in_channels: int, out_channels: int, side: int) -> int:
    return side * side * (9 * in_channels + in_channels * out_channels)


def test_xception_costs_what_figure_5_of_its_paper_draws():
    """Sides at 299 pixels: 149, 147, then 74, 37, 19, 10 behind the poolings; each shortcut strides by itself."""
    cost = 149**2 * 27 * 32 + 147**2 * 9 * 32 * 64
    for previous, c, side, after in ((64, 128, 147, 74), (128, 256, 74, 37), (256, 728, 37, 19)):
        cost += separable_cost(previous, c, side) + separable_cost(c, c, side) + after**2 * previous * c
    cost += 24 * separable_cost(728, 728, 19)
    cost += separable_cost(728, 728, 19) + separable_cost(728, 1024, 19) + 10**2 * 728 * 1024
    cost += separable_cost(1024, 1536, 10) + separable_cost(1536, 2048, 10) + 2048 * 1000
    network = on_meta("xception")
    assert madds(network, 299) == cost
    assert params(network) == 22_855_952


@pytest.mark.parametrize("width", list(xception.LIGHT_CHANNELS))
def test_light_xception_costs_what_table_8_prints(width: float):
    """By hand and as printed: 40, 145, 305, 525 M. No two of the four share a stage width, and one rule gives all."""
    stem, *stages = xception.LIGHT_CHANNELS[width]
    cost, side, previous = 112**2 * 27 * stem, 56, stem
    for channels, repeat in zip(stages, (4, 8, 4), strict=True):
        side, inner = side // 2, channels // 4
        cost += separable_cost(previous, inner, side) + side * side * previous * channels
        cost += (repeat - 1) * separable_cost(channels, inner, side)
        cost += repeat * (separable_cost(inner, inner, side) + separable_cost(inner, channels, side))
        previous = channels
    cost += previous * 1000
    assert madds(on_meta("xception_light", width=width)) == cost
    (printed,) = (
        row["value"]
        for row in paper.table("full_models")
        if row["metric"] == "complexity" and row["model"].startswith(f"Xception {width:g}x")
    )
    assert round(cost / 1e6) == int(printed)


def test_a_light_unit_sees_seven_pixels():
    """ShuffleNetV2's text: a receptive field of 7 for an Xception unit."""
    unit = xception.LightUnit(16, 16, 1).eval()
    for weight in unit.parameters():
        weight.data.abs_()  # no activation is cut off, which would hide a pixel
    x = torch.rand(1, 16, 15, 15).requires_grad_()
    unit.branch(x)[0, :, 7, 7].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    assert touched.min(0).values.tolist() == [4, 4]
    assert touched.max(0).values.tolist() == [10, 10]


# --- beside timm --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "timms"),
    [
        ("se_resnet50", "seresnet50"),
        ("xception", "legacy_xception"),
        ("mnasnet_a1_x0_5", "semnasnet_050"),
        ("mobilenet_v3_large_x0_75", "mobilenetv3_large_075"),
        ("mobilenet_v3_small_x0_75", "mobilenetv3_small_075"),
    ],
)
def test_logits_are_timms_with_its_weights(name: str, timms: str):
    """What torchvision lacks: timm's state dict, loaded in order, makes ours the same function."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with shapes_only():
        reference = load_model.load(f"timm:{timms}").eval()
    fill(reference.to_empty(device="cpu"))
    ours = networks.on_meta(name)
    if name.startswith("mobilenet_v3"):
        for layer in ours.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 1e-5
    pairs = zip(ours.state_dict().items(), reference.state_dict().values(), strict=True)
    # timm's hidden layer of MobileNetV3 is a 1x1 convolution.
    ours.load_state_dict(
        {key: theirs.flatten(1) if mine.dim() == 2 else theirs for (key, mine), theirs in pairs}, assign=True
    )
    x = torch.randn(2, 3, 72, 64)
    with torch.inference_mode():
        expected = reference(x)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
