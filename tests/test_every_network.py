"""Every registered network: shapes, parameters, multiply-adds and signal, against every published row that we know."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from published_differences import MADDS_DIFFER, PARAMS_DIFFER
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effbench import paper, zoo
from effbench.zoo import external

NETWORKS = tuple(dict.fromkeys(zoo.entry(name).name for name in zoo.names()))
COUNTED: dict[tuple[str, int], tuple[int, float, float]] = {}

# Our name: the name in published_costs.csv
PUBLISHED = {name: entry.published for name in NETWORKS if (entry := zoo.entry(name)).published}


def count(name: str, pixels: int = 224) -> tuple[int, float, float]:
    """Parameters, million multiply-adds, and those without the classifier, from torch's own counter on shapes alone."""
    if (name, pixels) not in COUNTED:
        with torch.device("meta"):
            network = zoo.build(name).eval()
            x = torch.empty(1, 3, pixels, pixels)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
        classifier = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
        madds = counter.get_total_flops() / 2
        params = sum(parameter.numel() for parameter in network.parameters())
        COUNTED[name, pixels] = params, madds / 1e6, (madds - classifier) / 1e6
    return COUNTED[name, pixels]


def printed_like(value: float, printed: str) -> float:
    """`value` rounded to the digits of `printed`, trailing zeros of a whole number being no digits."""
    whole, _, decimals = printed.partition(".")
    digits = len(decimals) if decimals else len(whole.rstrip("0")) - len(whole)
    return round(value, digits)


def reason(table: dict, model: str, source: str) -> tuple[str, float, float] | None:
    """The most particular reason for this row."""
    fitting = [key for key in table if (key[0] == "*" or model.startswith(key[0])) and source.startswith(key[1])]
    return table[max(fitting, key=lambda key: (key[0] != "*", len(key[0]), len(key[1])))] if fitting else None


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_beside_the_code_are_exact(name: str):
    entry = zoo.entry(name)
    params, madds, convolutions = count(name)
    assert entry.params == params
    assert entry.madds_million == round(convolutions if entry.counts == "conv" else madds)
    assert entry.source
    assert entry.paper.startswith("arXiv:")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_row_is_met_or_its_difference_has_a_reason(name: str):
    rows = [row for row in paper.table("published_costs") if row["model"] == PUBLISHED[name]]
    assert rows
    met = 0
    for row in rows:
        params, madds, convolutions = count(name, int(row["input_px"]))
        model, source = row["model"], row["source"]
        ours = convolutions if source.startswith("ShuffleNet v1 paper, Table 1") else madds
        if printed_like(ours, row["mmadds_million"]) == float(row["mmadds_million"]):
            met += 1
        else:
            why = reason(MADDS_DIFFER, model, source)
            assert why, f"{source}: {row['mmadds_million']} M, we count {ours:.2f} M"
            assert why[1] <= float(row["mmadds_million"]) / ours <= why[2], (source, why, ours)
        if row["params"] and printed_like(params, row["params"]) != float(row["params"]):
            why = reason(PARAMS_DIFFER, model, source)
            assert why, f"{source}: {row['params']} parameters, we have {params}"
            assert why[1] <= float(row["params"]) / params <= why[2], (source, why, params)
    assert met, "no published row is met exactly"


def test_every_published_row_of_our_families_is_looked_at():
    families = ("ResNet-", "MobileNetV1", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")
    known = {row["model"] for row in paper.table("published_costs") if row["model"].startswith(families)}
    assert known == set(PUBLISHED.values())
    assert set(PUBLISHED) >= set(NETWORKS)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_shufflenet_v1_units_cost_what_the_paper_writes(groups: int):
    """Section 3.2 of arXiv:1707.01083: hw(2cm/g + 9m); at stride 2 the shortcut leaves 4m - c to expand."""
    from effbench.zoo.shufflenet_v1 import STAGE_2, Unit

    c, h = STAGE_2[groups], 28
    for stride, out in ((1, c), (2, 2 * c)):
        m = out // 4
        expected = h * h * (2 * c * m // groups + 9 * m)
        if stride == 2:
            expected = h * h * c * m // groups + (h // 2) ** 2 * (9 * m + m * (4 * m - c) // groups)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            y = Unit(c, out, stride, groups, groups).eval()(torch.empty(1, c, h, h))
        assert counter.get_total_flops() == 2 * expected
        assert y.shape == (1, out, h // stride, h // stride)


def test_shufflenet_v1_widths_are_those_of_the_papers_table_and_the_authors_code():
    for row in paper.table("shufflenet_v1_architecture"):
        if row["unit"] != "output channels" or row["layer"] not in ("Conv1", "Stage2", "Stage3", "Stage4"):
            continue
        width = {"0.5x": 0.5, "1x": 1.0, "1.5x": 1.5, "2x": 2.0}[row["width"]]
        with torch.device("meta"):
            network = zoo.build("shufflenet_v1", groups=int(row["groups"]), width=width)
        units = list(network.stages)
        first, last = (
            {"Stage2": (0, 3), "Stage3": (4, 11), "Stage4": (12, 15)}[row["layer"]]
            if row["layer"] != "Conv1"
            else (0, 0)
        )
        channels = network.stem[0].out_channels
        if row["layer"] != "Conv1":
            assert units[first].pool is not None
            channels = units[last].expand[0].out_channels
        assert channels == int(row["value"]), row


def test_the_first_layer_of_stage_2_of_shufflenet_v1_is_not_grouped():
    network = zoo.build("shufflenet_v1_g8_x1_0")
    assert [unit.compress[0].groups for unit in network.stages] == [1] + [8] * 15


def test_shuffle_interleaves_the_groups():
    from effbench.zoo._blocks import channel_shuffle

    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(channel_shuffle(x, 3), nn.functional.channel_shuffle(x, 3))


def test_shuffling_before_or_after_the_depthwise_step_is_the_same_function():
    """The paper draws it before, the authors' code has it after: a permutation of the depthwise filters apart."""
    from effbench.zoo._blocks import channel_shuffle

    x, weight = torch.randn(2, 12, 7, 7), torch.randn(12, 1, 3, 3)
    permuted = channel_shuffle(weight.view(1, 12, 3, 3), 3).view(12, 1, 3, 3)
    before = nn.functional.conv2d(channel_shuffle(x, 3), permuted, padding=1, groups=12)
    after = channel_shuffle(nn.functional.conv2d(x, weight, padding=1, groups=12), 3)
    assert torch.allclose(before, after, atol=1e-6)


def test_resnet_projects_when_and_only_when_the_shape_changes():
    def projections(depth: int) -> list[int]:
        units = zoo.build(f"resnet{depth}").stages
        return [at for at, unit in enumerate(units) if not isinstance(unit.shortcut, nn.Identity)]

    assert projections(18) == [2, 4, 6]
    assert projections(50) == [0, 3, 7, 13]


def test_mobilenet_v2_has_ten_shortcuts():
    """Table 2 of arXiv:1801.04381: each repeat of a row after its first keeps the shape."""
    blocks = [block for block in zoo.build("mobilenet_v2").features if hasattr(block, "has_shortcut")]
    assert (len(blocks), sum(block.has_shortcut for block in blocks)) == (17, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_other_inputs_and_keeps_its_signal(name: str):
    """Untrained activations neither vanish nor overflow half precision, which would change the speed."""
    torch.manual_seed(0)
    network = zoo.build(name, num_classes=7, in_channels=2).eval()
    spreads: list[float] = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _layer, _given, out: spreads.append(float(out.std())))
    x = torch.randn(2, 2, 48, 40)
    kept = x.clone()
    with torch.inference_mode():
        y = network(x)
        again = network(x)
    assert y.shape == (2, 7)
    assert torch.equal(y, again)
    assert torch.equal(x, kept)
    assert min(spreads) > 1e-4
    assert max(spreads) < 1e3


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"])
def test_a_network_can_be_trained(name: str):
    """Nothing activated in place is needed by the gradient."""
    network = zoo.build(name, num_classes=3)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# Shapes of torchvision's state dicts in their order, written from its published modules: one row a layer.
def conv_norm(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [shape, (shape[0],), (shape[0],), (shape[0],), (shape[0],), ()]


def test_state_dict_order_is_torchvisions():
    """ShuffleNetV2: left branch (depthwise, 1x1) before right (1x1, depthwise, 1x1); ResNet: branch, projection."""
    shapes = [tuple(value.shape) for value in zoo.build("shufflenet_v2").state_dict().values()]
    first = [(24, 3, 3, 3), (24, 1, 3, 3), (58, 24, 1, 1), (58, 24, 1, 1), (58, 1, 3, 3), (58, 58, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]
    assert shapes[-2:] == [(1000, 1024), (1000,)]
    shapes = [tuple(value.shape) for value in zoo.build("resnet50").state_dict().values()]
    first = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (256, 64, 1, 1), (64, 256, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]
    shapes = [tuple(value.shape) for value in zoo.build("mobilenet_v2").state_dict().values()]
    first = [(32, 3, 3, 3), (32, 1, 3, 3), (16, 32, 1, 1), (96, 16, 1, 1), (96, 1, 3, 3), (24, 96, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]


@pytest.mark.parametrize(
    ("name", "theirs", "arguments"),
    [
        ("resnet18", "resnet18", {}),
        ("resnet50", "resnet50", {}),
        ("mobilenet_v2", "mobilenet_v2", {}),
        ("mobilenet_v2_x0_6", "mobilenet_v2", {"width_mult": 0.6}),
        *((f"shufflenet_v2_x{width}",) * 2 + ({},) for width in ("0_5", "1_0", "1_5", "2_0")),
    ],
)
def test_logits_are_torchvisions_with_its_weights(name: str, theirs: str, arguments: dict):
    """Where torchvision is installed: its state dict, loaded in order, makes ours the same function."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    external.load("torchvision:resnet18")  # mends the import beside a CPU build of torch
    from torchvision import models

    reference = models.get_model(theirs, weights=None, **arguments).eval()
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    ours = zoo.build(name).eval()
    values = reference.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), reference(x))
