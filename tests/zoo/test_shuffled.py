"""Shuffled, interleaved and searched networks: the papers' tables, closed forms, and timm's large forms."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from functools import cache

import networks
import pytest
import torch
from networks import quick_noise, run_and_count, shapes_only
from torch import nn

from effbench import paper, zoo
from effbench.core.errors import InvalidValue
from effbench.cost import count
from effbench.zoo import load_model
from effbench.zoo._blocks import channel_shuffle

pytestmark = pytest.mark.bulk


on_meta = cache(networks.on_meta)


def madds(network: nn.Module, *shape: int) -> int:
    return run_and_count(network, torch.empty(1, *shape, device="meta"))[1]


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- Table 8 and Table 6 of arXiv:1807.11164 ----------------------------------------------------------

# Our name: its row of Table 8 and our million multiply-adds over the printed ones, where the rounding is not all of it.
TABLE_8 = {
    "igcv2_x0_25": ("IGCV2-0.25", 1),
    "igcv2_x0_5": ("IGCV2-0.5", 1),
    "igcv2_x1_0": ("IGCV2-1.0", 565.9 / 564),
    "igcv3_x0_7": ("IGCV3-D (0.7)", 174.6 / 210),
    "igcv3_x1_0": ("IGCV3-D", 313.0 / 318),
    "igcv3_x1_4": ("IGCV3-D (1.4)", 590.0 / 610),
    "condensenet_74_g8": ("CondenseNet (G=C=8)", 261.5 / 274),
    "condensenet_74_g4": ("CondenseNet (G=C=4)", 516.6 / 529),
    "se_shufflenet_v2_x2_0": ("ShuffleNet v2 2x (ours, with SE)", 586.2 / 597),
    "nasnet_a": ("NASNet-A (4 @ 1056, our impl.)", 1),
    "pnasnet5_mobile": ("PNASNet-5 (our impl.)", 587.3 / 588),
}


@pytest.mark.parametrize("name", TABLE_8)
def test_the_distance_to_table_8_is_the_documented_one(name: str):
    row, ratio = TABLE_8[name]
    (printed,) = (
        float(cell["value"])
        for cell in paper.table("full_models")
        if cell["model"] == row and cell["metric"] == "complexity"
    )
    ours = madds(on_meta(name), 3, 224, 224) / 1e6
    if ratio == 1:
        assert round(ours) == printed
    else:
        assert ours / printed == pytest.approx(ratio, abs=2e-4)
        assert round(ours) != printed


@pytest.mark.parametrize(
    ("word", "pixels", "million"),
    [
        ("mobilenet_v2_x0_15", 224, 30.6),
        ("mobilenet_v2_x0_4", 160, 41.8),
        ("mobilenet_v2_x0_6", 224, 151.0),
        ("mobilenet_v2_x0_75", 192, 153.9),
    ],
)
def test_the_authors_mobilenet_v2_widths_build_by_name(word: str, pixels: int, million: float):
    """Derived from the layer table, channels rounded to 8; the paper's own 39, 43, 141 and 145 M fit no rounding."""
    assert round(madds(on_meta(word), 3, pixels, pixels) / 1e6, 1) == million


@pytest.mark.parametrize(
    ("name", "row", "convolutions", "billion"),
    [
        ("shufflenet_v2_50", "ShuffleNet v2-50", 50, 2.3),
        ("se_shufflenet_v2_164", "SE-ShuffleNet v2-164", 163, 12.6),
    ],
)
def test_deep_forms_are_laid_out_as_in_the_appendix(name: str, row: str, convolutions: int, billion: float):
    """Depth counts convolutions in a row, and at 164 the classifier too. The paper prints 12.7 G; see the module."""
    network = networks.on_meta(name)
    cells = {cell["layer"]: cell for cell in paper.table("large_architectures") if cell["model"] == row}
    stem = [int(channels) for channels in re.findall(r"3x3, (\d+)", cells["conv1_x"]["definition"])]
    assert [layer.out_channels for layer in network.stem.modules() if isinstance(layer, nn.Conv2d)] == stem
    expected = [
        (int(cells[stage]["definition"].rpartition(" ")[2]), int(cells[stage]["output_px"]))
        for stage in ("conv2_x", "conv3_x", "conv4_x", "conv5_x")
        for _ in range(int(cells[stage]["repeat"]))
    ]
    shapes: list[tuple[int, int]] = []
    for unit in network.stages:
        unit.register_forward_hook(lambda _unit, _given, out: shapes.append((out.shape[1], out.shape[2])))
    total = madds(network, 3, 224, 224)
    assert shapes == expected
    assert len(stem) + 3 * len(expected) + 1 == convolutions
    assert round(total / 1e9, 1) == billion


# --- ShuffleNet ---------------------------------------------------------------------------------------


@cache
def of_small_image(name: str) -> float:
    return madds(on_meta(name), 3, 64, 64)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("width", ["0_25", "0_5", "1_0", "1_5", "2_0"])
def test_every_scale_of_shufflenet_v1_builds_by_name(groups: int, width: str):
    """Costs grow between linearly (depthwise) and quadratically (1x1) with the width."""
    wanted, whole = (of_small_image(f"shufflenet_v1_g{groups}_x{scale}") for scale in (width, "1_0"))
    scale = float(width.replace("_", "."))
    low, high = sorted((scale, scale**2))
    assert 0.85 * low <= wanted / whole <= 1.15 * high


@pytest.mark.parametrize(("groups", "stage_2"), [(2, 200), (3, 240)])
def test_shufflenet_v1_for_small_images_by_hand(groups: int, stage_2: int):
    """Three stages of 4, 8 and 4 units at 16, 8 and 4 pixels behind a 3x3 stem of 24 channels at 32 pixels."""
    cost, size = 32 * 32 * 27 * 24, 27 * 24 + 2 * 24
    previous, pixels = 24, 32
    for stage, repeat in enumerate((4, 8, 4)):
        out = stage_2 * 2**stage
        inner = out // 4
        for position in range(repeat):
            halves = position == 0
            first_groups = 1 if stage == position == 0 else groups
            branch = out - previous if halves else out
            weights = (previous * inner // first_groups, 9 * inner, inner * branch // groups)
            after = pixels // 2 if halves else pixels
            cost += pixels**2 * weights[0] + after**2 * (weights[1] + weights[2])
            size += sum(weights) + 2 * (inner + inner + branch)
            previous, pixels = out, after
    cost, size = cost + 10 * previous, size + 10 * previous + 10
    network = on_meta(f"shufflenet_v1_g{groups}_cifar")
    assert madds(network, 3, 32, 32) == cost
    assert params(network) == size


def test_shufflenet_v1_for_small_images_has_the_published_million_parameters():
    """pytorch-cifar100 prints 1.0 M for its ShuffleNet, 3 groups and 100 classes."""
    assert round(params(on_meta("shufflenet_v1_g3_cifar", num_classes=100)) / 1e6, 1) == 1.0


def test_a_residual_unit_adds_to_the_right_half_only():
    from effbench.zoo.shufflenet_v2 import Unit

    unit = Unit(8, 8, 1, gated=False, residual=True).eval()
    nn.init.zeros_(unit.right[2][0].weight)
    x = torch.randn(2, 8, 5, 5)
    left, right = x.chunk(2, dim=1)
    with torch.no_grad():
        assert torch.equal(unit(x), channel_shuffle(torch.cat((left, right.relu()), dim=1), 2))
    halving = Unit(8, 16, 2, gated=False, residual=True)
    assert not halving.residual


def test_gates_of_shufflenet_v2_cost_the_square_of_a_units_half():
    """Each unit: c/2 to c/2 and back, with biases; the convolutions are those of the plain network."""
    channels = [c for c, repeat in zip((116, 232, 464), (4, 8, 4), strict=True) for _ in range(repeat)]
    plain, gated = on_meta("shufflenet_v2_x1_0"), on_meta("se_shufflenet_v2_x1_0")
    weights = sum(2 * (c // 2) ** 2 for c in channels)
    assert madds(gated, 3, 224, 224) - madds(plain, 3, 224, 224) == weights
    assert params(gated) - params(plain) == weights + sum(channels)


def test_residuals_cost_no_multiplication():
    plain, residual, both = (on_meta(f"{kind}shufflenet_v2_x0_5") for kind in ("", "res_", "se_res_"))
    assert params(plain) == params(residual) < params(both)
    assert madds(plain, 3, 224, 224) == madds(residual, 3, 224, 224)
    eager = [count(network, (3, 224, 224)).cost.memory_access for network in (plain, residual)]
    assert eager[0] < eager[1]


# --- interleaved --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "channels"), [("igcv3", (8, 8, 1, 6)), ("igcv2", (64, 64, 1)), ("igcv2", (64, 128, 1))]
)
def test_interleaved_groups_reach_every_output_from_every_input(family: str, channels: tuple[int, ...]):
    """The complementary condition of arXiv:1804.06202: a path from each input to each output."""
    unit = importlib.import_module(f"effbench.zoo.{family}").Unit(*channels).double().eval()
    for layer in unit.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.01, 0.02)
    x = torch.full((1, channels[0], 1, 1), 0.1, dtype=torch.double, requires_grad=True)
    y = unit(x).flatten()
    for output in y:
        (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
        assert bool((gradient > 0).all())


def test_the_second_shuffle_of_igcv3_undoes_the_first():
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(channel_shuffle(channel_shuffle(x, 2), 6), x)


def test_an_igcv3_unit_by_hand():
    """1x1 in two groups to six times the channels, depthwise, 1x1 in two groups back."""
    from effbench.zoo.igcv3 import Unit

    with torch.device("meta"):
        unit = Unit(24, 32, 2, 6).eval()
    expected = 28 * 28 * 24 * 144 // 2 + 14 * 14 * (9 * 144 + 144 * 32 // 2)
    assert madds(unit, 24, 28, 28) == expected


@pytest.mark.parametrize(("groups", "million"), [(4, 529), (8, 274)])
def test_condensenet_counted_as_its_authors_count(groups: int, million: int):
    """Their published 529 and 274 M have every input of a ReLU or a pooling and the biases. By hand, layer by layer."""
    channels, pixels = 16, 112
    total = pixels**2 * 27 * channels
    for block, (growth, repeat) in enumerate(((8, 4), (16, 6), (32, 8), (64, 10), (128, 8))):
        if block > 0:
            pixels //= 2
            total += 4 * channels * pixels**2
        for _ in range(repeat):
            inner = 4 * growth
            total += pixels**2 * ((channels * inner + 9 * inner * growth) // groups + channels + inner)
            channels += growth
    total += 2 * channels * pixels**2 + (channels // 2 + 1) * 1000
    assert round(total / 1e6) == million

    network = networks.on_meta(f"condensenet_74_g{groups}")
    extra = [network.fc.out_features]
    for layer in network.modules():
        if isinstance(layer, (nn.ReLU, nn.AvgPool2d)):
            layer.register_forward_hook(lambda _layer, given, _out: extra.append(given[0].numel()))
    network.select.register_forward_hook(lambda _layer, given, _out: extra.append(given[0].numel() * 49))
    assert madds(network, 3, 224, 224) + sum(extra) == total


def test_the_groups_of_condensenet_share_no_input_and_miss_none():
    for unit in (layer for layer in zoo.build("condensenet_74_g8").features if hasattr(layer, "learned")):
        kept = unit.select.kept
        assert sorted(kept.tolist()) == list(range(len(kept)))
        first = kept[: len(kept) // 8]
        assert set((first % 8).tolist()) == {0}


# --- searched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "theirs"),
    [
        ("nasnet_a", {"repeat": 6, "penultimate": 4032, "stem_channels": 96}, "nasnetalarge"),
        ("pnasnet5", {"filters": 216, "repeat": 4, "stem_channels": 96}, "pnasnet5large"),
    ],
)
def test_searched_cells_are_timms(name: str, arguments: dict, theirs: str):
    """The same cells at the papers' large size: equal weights, shape by shape, and equal multiply-adds."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    ours = on_meta(name, **arguments)
    with shapes_only():
        reference = load_model.load(f"timm:{theirs}").eval()
    shapes = [Counter(tuple(p.shape) for p in network.parameters()) for network in (ours, reference)]
    assert shapes[0] == shapes[1]
    assert madds(ours, 3, 331, 331) == madds(reference, 3, 331, 331)


def test_logits_of_the_searched_cell_are_timms_with_its_weights():
    """Sizes that stay odd until the last stage, where even padding is TensorFlow's: 35 pixels, then 17, 9, 5 and 3."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    with quick_noise():
        ours = zoo.build("pnasnet5", filters=216, repeat=4, stem_channels=96).eval()
    with shapes_only():
        reference = load_model.load("timm:pnasnet5large").eval()
    reference = reference.to_empty(device="cpu")

    def fill(target: nn.Module, *sources: nn.Module) -> None:
        there = [value for source in sources for value in source.state_dict().values()]
        for value, place in zip(target.state_dict().values(), there, strict=True):
            place.copy_(value)

    fill(ours.stem, reference.conv_0)
    fill(ours.fc, reference.last_linear)
    names = ("cell_stem_0", "cell_stem_1", *(f"cell_{at}" for at in range(12)))
    for cell, name in zip(ours.cells, names, strict=True):
        theirs = dict(getattr(reference, name).named_children())
        fill(cell.current, theirs["conv_1x1"])
        if name != "cell_stem_0":
            fill(cell.before, theirs["conv_prev_1x1"])
        for at, operation in enumerate(cell.operations):
            if len(operation.state_dict()):
                fill(operation, theirs[f"comb_iter_{at // 2}_{('left', 'right')[at % 2]}"])
    x = torch.randn(2, 3, 35, 35)
    with torch.inference_mode():
        expected = reference(x)
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)


def test_a_cell_halves_odd_and_even_sizes_alike():
    """Both paths of the halved input agree with the strided operations on every size."""
    network = zoo.build("nasnet_a", num_classes=3, repeat=1, penultimate=96, stem_channels=8).eval()
    for height, width in ((33, 40), (47, 64), (35, 37)):
        assert network(torch.randn(1, 3, height, width)).shape == (1, 3)


@pytest.mark.parametrize(
    ("word", "arguments", "message"),
    [
        ("nasnet_a", {"penultimate": 1000}, r"`penultimate` \(=1000\) must be divisible by 96: use 960"),
        ("nasnet_a", {"penultimate": 0}, "use 96"),
        ("pnasnet5", {"filters": 3}, r"`filters` \(=3\) must be at least 4: use 54"),
        ("condensenet", {"groups": 3}, r"`groups` \(=3\) must be one of 4, 8: use 4 or 8"),
        ("shufflenet_v2_50", {"depth": 101}, r"`depth` \(=101\) .*use 50 or 164"),
        ("se_shufflenet_v2_x0_7", {}, r"`width` \(=0.7\) .*use 0.5 or 1.0"),
        ("igcv3_x0_0", {}, r"`width` \(=0.0\) .*use 0.25"),
        ("shufflenet_v1_g3_cifar", {"groups": 5}, r"`groups` \(=5\) .*use 4 or 8|use 3 or 4"),
    ],
)
def test_impossible_sizes_name_the_nearest_possible(word: str, arguments: dict, message: str):
    with pytest.raises(InvalidValue, match=message) as raised:
        zoo.build(word, **arguments)
    assert "\n" not in str(raised.value)
