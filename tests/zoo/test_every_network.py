"""Every registered network: shapes, parameters, multiply-adds and signal, against every published row that we know,
against torch's and fvcore's counters, and against torchvision's networks of the same name.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networks
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from networks import assert_ordered, fill, quick_noise, run_and_count, shapes_only
from published_differences import (
    MADDS_DIFFER,
    NEVER_MET,
    NOT_BUILT,
    OUT_OF_ZOO,
    PARAMS_DIFFER,
    printed_like,
    reason,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from effbench import core, cost, paper, zoo
from effbench.core.errors import InvalidValue
from effbench.cost.known_code import is_known_code
from effbench.zoo import _registry, load_model

pytestmark = pytest.mark.bulk

ROOT = Path(__file__).parents[2]
NETWORKS = tuple(dict.fromkeys(zoo.entry(name).name for name in zoo.names()))
FAMILIES = tuple(dict.fromkeys(zoo.entry(name).family for name in NETWORKS))
TEMPLATES = tuple(name for name in _registry.all_entries() if "{" in name)

# Our name: the name in published_costs.csv
PUBLISHED = {name: entry.published for name in NETWORKS if (entry := zoo.entry(name)).published}

# Our name: torchvision's, where they differ.
TORCHVISION_SPELLS = {f"mnasnet_x{width}": f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")}
TORCHVISION_ARGUMENTS = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}


on_meta = cache(networks.on_meta)


def made_by(name: str) -> tuple[str, str]:
    """The family file and the function that build this network."""
    return zoo.entry(name).family, zoo.entry(name).builder


BUILDERS = tuple(dict.fromkeys(map(made_by, NETWORKS)))


def size(name: str) -> int:
    return sum(parameter.numel() for parameter in on_meta(name).parameters())


def number_of_layers(name: str) -> int:
    return sum(1 for _ in on_meta(name).modules())


def by_layers(family: str, builder: str) -> list[str]:
    """What this function builds, the network with the fewest layers first; of several, the smallest."""
    kin = (name for name in NETWORKS if made_by(name) == (family, builder))
    return sorted(kin, key=lambda name: (number_of_layers(name), size(name)))


def smallest(family: str) -> str:
    """The network of this family file with the fewest parameters."""
    return min((name for name in NETWORKS if zoo.entry(name).family == family), key=size)


def classes(name: str) -> int:
    """How many logits this name promises without further arguments."""
    entry = zoo.entry(name)
    builder = getattr(importlib.import_module(f"effbench.zoo.{entry.family}"), entry.builder)
    return int(
        {"num_classes": inspect.signature(builder).parameters["num_classes"].default, **entry.arguments}["num_classes"]
    )


def small_size(name: str) -> tuple[int, int]:
    """A legal height and width: unequal, unless the network's own size is also its smallest."""
    entry = zoo.entry(name)
    fixed = entry.min_pixels >= entry.input_shape[-1]
    return entry.input_shape[1:] if fixed else (entry.min_pixels + 8, entry.min_pixels)


@dataclass(frozen=True)
class Counted:
    """Our cost of one image, and beside it the products of each convolution and linear layer, written out here."""

    cost: core.Cost
    products: int
    logits: tuple[int, ...]
    classifier: int

    @property
    def million(self) -> float:
        return self.cost.madds / 1e6

    @property
    def million_of_convolutions(self) -> float:
        return (self.cost.madds - self.classifier) / 1e6


@cache
def count(name: str, pixels: int) -> Counted:
    """In this process: a fork for each network is slow and shows nothing."""
    network, products, logits = on_meta(name), [], []
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    hooks = [network.register_forward_hook(lambda _layer, _given, y: logits.append(tuple(y.shape)))]
    for layer in (*linear, *(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))):
        # Each output is the sum of as many products as one filter has weights.
        hooks.append(
            layer.register_forward_hook(lambda layer, _given, y: products.append(y.numel() * layer.weight[0].numel()))
        )
    found = cost.count(network, (zoo.entry(name).input_shape[0], pixels, pixels)).cost
    for hook in hooks:
        hook.remove()
    (shape,) = logits
    return Counted(found, sum(products), shape, sum(layer.weight.numel() for layer in linear))


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_beside_the_code_are_exact(name: str):
    """Ours, the sum over its layers, and what is published: the same. And fusing never adds memory access."""
    entry = zoo.entry(name)
    found = count(name, entry.input_shape[-1])
    assert (found.cost.status, found.cost.traced_on) == ("complete", "meta")
    assert (found.cost.params, found.cost.madds) == (size(name), found.products)
    assert found.logits == (1, classes(name))
    assert_ordered(found.cost.memory_access_levels)
    assert entry.paper.startswith(("arXiv:", "doi:"))
    assert (entry.params is None) == (entry.madds_million is None) == entry.source.startswith("no count published")
    if entry.params is not None:
        assert entry.params == found.cost.params
        decimals = len(str(entry.madds_million).partition(".")[2])
        million = found.million_of_convolutions if entry.counts == "conv" else found.million
        assert entry.madds_million == round(million, decimals)
    assert entry.source


@pytest.mark.parametrize(("family", "builder"), BUILDERS)
def test_torchs_counter_counts_the_same(family: str, builder: str):
    """Of three images three times as many."""
    name = by_layers(family, builder)[0]
    channels, pixels, _ = zoo.entry(name).input_shape
    y, total = run_and_count(on_meta(name), torch.empty(3, channels, pixels, pixels, device="meta"))
    assert y.shape == (3, classes(name))
    assert total == 3 * count(name, pixels).cost.madds


@pytest.mark.parametrize("name", NETWORKS)
def test_its_code_is_known_to_keep_nothing(name: str):
    assert is_known_code(on_meta(name).modules())


ONE_OF_EACH_CELL = {family: {"repeat": 1} for family in ("nasnet", "pnasnet")}
"""Arguments for what costs most where a repeated cell shows nothing new."""


@pytest.mark.parametrize("family", FAMILIES)
def test_fvcore_counts_the_same(family: str):
    name, arguments = smallest(family), ONE_OF_EACH_CELL.get(family, {})
    shape = (zoo.entry(name).input_shape[0], *small_size(name))
    with quick_noise():
        network = zoo.build(name, **arguments).eval()
    theirs = FlopCountAnalysis(network, torch.zeros(1, *shape)).unsupported_ops_warnings(False)
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as shallow:
        warnings.simplefilter("ignore")  # what tracing says about shapes
        # For every operator the tracer walks through the whole stack, which under pytest is deep.
        counted = shallow.submit(theirs.tracer_warnings("none").by_operator).result()
    products = sum(counted[op] for op in ("conv", "linear", "matmul", "addmm", "bmm", "einsum"))
    assert products == cost.count(networks.on_meta(name, **arguments), shape).cost.madds


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_row_is_met_or_its_difference_has_a_reason(name: str):
    rows = [row for row in paper.table("published_costs") if row["model"] == PUBLISHED[name]]
    assert rows
    met = 0
    for row in rows:
        found = count(name, int(row["input_px"]))
        params, model, source = found.cost.params, row["model"], row["source"]
        ours = found.million_of_convolutions if source.startswith("ShuffleNet v1 paper, Table 1") else found.million
        if row["mmadds_million"] and printed_like(ours, row["mmadds_million"]) == float(row["mmadds_million"]):
            met += 1
        elif row["mmadds_million"]:
            why = reason(MADDS_DIFFER, model, source)
            assert why, f"{source}: {row['mmadds_million']} M, we count {ours:.2f} M"
            assert why[1] <= float(row["mmadds_million"]) / ours <= why[2], (source, why, ours)
        if row["params"] and printed_like(params, row["params"]) != float(row["params"]):
            why = reason(PARAMS_DIFFER, model, source)
            assert why, f"{source}: {row['params']} parameters, we have {params}"
            assert why[1] <= float(row["params"]) / params <= why[2], (source, why, params)
    assert bool(met) != (PUBLISHED[name] in NEVER_MET), f"{met} published rows are met exactly"


def test_every_published_row_is_looked_at():
    known = {row["model"] for row in paper.table("published_costs")}
    elsewhere = {model for model in known if model.startswith(tuple(OUT_OF_ZOO))} | set(NOT_BUILT)
    assert not elsewhere & set(PUBLISHED.values())
    assert known == elsewhere | set(PUBLISHED.values())


def test_the_networks_of_table_8_are_those_of_the_zoo():
    """The printed complexity is within 3 % of what our network counts, so that the speeds are of the same network.

    Not so where the files of the zoo say why: the authors' own MobileNetV2 have unknown widths, IGCV3's authors counted
    in an unknown way, CondenseNet's counted activations and pooling too.
    """
    known = {
        "0.15 MobileNet v2": 0.22,
        "0.75 MobileNet v2": 0.07,
        "0.6 MobileNet v2": 0.08,
        "IGCV3-D": 0.17,
        "CondenseNet": 0.05,
    }
    for (name, pixels), row in paper._TABLE_8.items():
        off = abs(count(name, pixels).million / paper.full_model(name, (3, pixels, pixels)).complexity - 1)
        allowed = next((known[start] for start in known if row.startswith(start)), 0.03)
        assert off <= allowed, (name, off)


def test_the_page_is_up_to_date():
    """docs/zoo.md says what the code says today."""
    if not (ROOT / "benchmarks" / "zoo_page.py").exists():
        pytest.skip("benchmarks/ is not here")
    page = runpy.run_path(str(ROOT / "benchmarks" / "zoo_page.py"))["page"]
    page.__globals__["count"] = lambda name, shape: (count(name, shape[-1]).cost.params, count(name, shape[-1]).million)
    text = page()
    assert text == (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), "run python benchmarks/zoo_page.py"
    lines = text.splitlines()
    rows = [line for line in lines if line.count(" | ") >= 6 and not line.startswith("| network")]
    unexplained = [line for line in rows if line.endswith("|  |") and "| met |" not in line and "| – |" not in line]
    assert len(rows) > 200 and not unexplained


@pytest.mark.parametrize(("family", "builder"), BUILDERS)
def test_a_network_takes_other_inputs_and_keeps_its_signal(family: str, builder: str):
    """Untrained activations neither vanish nor overflow half precision, which would change the speed.

    What does so does it with depth; the depths between and the other widths are built by the same code.
    """
    shallowest, *_ = kin = by_layers(family, builder)
    deepest = next(name for name in kin if number_of_layers(name) == number_of_layers(kin[-1]))
    signal_is_kept(shallowest, calls=2)
    if deepest != shallowest:
        signal_is_kept(deepest)


def signal_is_kept(name: str, calls: int = 1) -> None:
    torch.default_generator.manual_seed(0)
    network = zoo.build(name, num_classes=7, in_channels=2).eval()
    levels: dict[str, float] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            layer.register_forward_hook(
                lambda _layer, _given, out, path=path: levels.update({path: float(out.square().mean().sqrt())})
            )
    x = torch.randn(2, 2, *small_size(name))
    kept = x.clone()
    with torch.inference_mode():
        y, *again = (network(x) for _ in range(calls))
    assert all(torch.equal(y, other) for other in again)
    assert y.shape == (2, 7), name
    assert torch.equal(x, kept)
    # Where biases drown the image, every image gets the same logits.
    assert float((y[0] - y[1]).abs().max()) > 1e-3 * float(y.abs().max())
    faint, loud = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
    assert levels[faint] > 1e-4, (name, faint)
    assert levels[loud] < 1e3, (name, loud)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_can_be_trained(family: str):
    """Nothing activated in place is needed by the gradient, and every parameter takes part."""
    name = smallest(family)
    torch.manual_seed(0)
    with quick_noise():
        network = zoo.build(name, num_classes=3, **ONE_OF_EACH_CELL.get(family, {}))
    network(torch.randn(2, zoo.entry(name).input_shape[0], *small_size(name))).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_impossible_width_or_group_names_the_nearest_possible_one(template: str):
    holes = re.findall(r"\{(\w+)\}", template)
    entry = _registry.all_entries()[template]
    kin = (other.arguments for other in _registry.all_entries().values() if other.builder == entry.builder)
    possible = next(arguments for arguments in kin if set(holes) <= set(arguments))
    for wrong in holes:
        word = template.format(**{**{key: str(possible[key]).replace(".", "_") for key in holes}, wrong: 99})
        refused = pytest.raises(InvalidValue, match=rf"`{wrong}` \(=99\) .*use \d")
        with torch.device("meta"), refused as raised:  # were it not refused, it might fill the memory
            zoo.build(word)
        assert "\n" not in str(raised.value)


# --- beside torchvision -------------------------------------------------------------------------------


def shared_with_torchvision() -> list[tuple[str, str]]:
    """Our name and torchvision's of every network that both have; empty without torchvision."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    load_model.load("torchvision:squeezenet1_1")  # mends the import beside a CPU build of torch
    from torchvision import models

    theirs = set(models.list_models(module=models))
    pairs = ((name, TORCHVISION_SPELLS.get(name, name)) for name in zoo.names())
    return [pair for pair in pairs if pair[1] in theirs]


SHARED = (*shared_with_torchvision(), ("mobilenet_v2_x0_6", "mobilenet_v2"))


def torchvisions(name: str, theirs: str) -> nn.Module:
    """torchvision's network on meta, in eval mode."""
    models = pytest.importorskip("torchvision").models
    arguments = {"width_mult": 0.6} if name.endswith("x0_6") else TORCHVISION_ARGUMENTS.get(theirs, {})
    with shapes_only():
        return models.get_model(theirs, weights=None, **arguments).eval()


def settings_of_layers(network: nn.Module) -> list[tuple[object, ...]]:
    """What the layers with weights compute, in the order of the state dict."""
    settings: dict[type[nn.Module], tuple[str, ...]] = {
        nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
        nn.BatchNorm2d: ("eps", "affine", "track_running_stats"),
        nn.Linear: (),
    }
    found = []
    for layer in network.modules():
        held = {**layer._parameters, **layer._buffers}
        if held:
            shapes = {key: None if value is None else tuple(value.shape) for key, value in held.items()}
            found.append((type(layer).__name__, shapes, *(getattr(layer, key) for key in settings[type(layer)])))
    return found


@pytest.mark.parametrize(("name", "theirs"), SHARED)
def test_layers_are_torchvisions(name: str, theirs: str):
    """Shapes, strides, padding, groups and epsilons, layer by layer: of every depth and width."""
    assert settings_of_layers(on_meta(name)) == settings_of_layers(torchvisions(name, theirs))


@pytest.mark.parametrize(("family", "builder"), dict.fromkeys(made_by(name) for name, _ in SHARED))
def test_logits_are_torchvisions_with_its_weights(family: str, builder: str):
    """torchvision's state dict, loaded in order, makes ours the same function.

    The depths between are built by the same code, of layers that the test above compares.
    """
    kin = {name: theirs for name, theirs in SHARED if made_by(name) == (family, builder)}
    layers = {name: number_of_layers(name) for name in kin}
    ends = (min(layers.values()), max(layers.values()))
    for name in kin:
        if layers[name] in ends:
            logits_are_the_same(name, torchvisions(name, kin[name]))


def logits_are_the_same(name: str, reference: nn.Module) -> None:
    reference = reference.to_empty(device="cpu")
    fill(reference)
    ours = networks.on_meta(name)
    values = reference.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)), assign=True)
    x = torch.randn(2, 3, *(2 * [max(64, zoo.entry(name).min_pixels + 8)]))
    with torch.inference_mode():
        expected: Tensor = reference(x)
        assert float((expected[0] - expected[1]).abs().max()) > 1e-3 * float(expected.abs().max()), name
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()), msg=name)


# --- one family at a time -----------------------------------------------------------------------------


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
        network = on_meta("shufflenet_v1", groups=int(row["groups"]), width=width)
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
    network = on_meta("shufflenet_v1_g8_x1_0")
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
        units = on_meta(f"resnet{depth}").stages
        return [at for at, unit in enumerate(units) if not isinstance(unit.shortcut, nn.Identity)]

    assert projections(18) == [2, 4, 6]
    assert projections(50) == [0, 3, 7, 13]


def test_mobilenet_v2_has_ten_shortcuts():
    """Table 2 of arXiv:1801.04381: each repeat of a row after its first keeps the shape."""
    blocks = [block for block in on_meta("mobilenet_v2").features if hasattr(block, "has_shortcut")]
    assert (len(blocks), sum(block.has_shortcut for block in blocks)) == (17, 10)


# Shapes of torchvision's state dicts in their order, written from its published modules: one row a layer.
def conv_norm(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [shape, (shape[0],), (shape[0],), (shape[0],), (shape[0],), ()]


def test_state_dict_order_is_torchvisions():
    """ShuffleNetV2: left branch (depthwise, 1x1) before right (1x1, depthwise, 1x1); ResNet: branch, projection."""
    shapes = [tuple(value.shape) for value in on_meta("shufflenet_v2").state_dict().values()]
    first = [(24, 3, 3, 3), (24, 1, 3, 3), (58, 24, 1, 1), (58, 24, 1, 1), (58, 1, 3, 3), (58, 58, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]
    assert shapes[-2:] == [(1000, 1024), (1000,)]
    shapes = [tuple(value.shape) for value in on_meta("resnet50").state_dict().values()]
    first = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (256, 64, 1, 1), (64, 256, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]
    shapes = [tuple(value.shape) for value in on_meta("mobilenet_v2").state_dict().values()]
    first = [(32, 3, 3, 3), (32, 1, 3, 3), (16, 32, 1, 1), (96, 16, 1, 1), (96, 1, 3, 3), (24, 96, 1, 1)]
    assert shapes[:36] == [part for shape in first for part in conv_norm(shape)]
