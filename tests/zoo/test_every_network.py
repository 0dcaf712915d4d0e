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
from functools import cache
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from networks import assert_ordered, fill
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
BUILDERS = tuple(dict.fromkeys((zoo.entry(name).family, zoo.entry(name).builder) for name in NETWORKS))
TEMPLATES = tuple(name for name in _registry.all_entries() if "{" in name)

# Our name: the name in published_costs.csv
PUBLISHED = {name: entry.published for name in NETWORKS if (entry := zoo.entry(name)).published}

# Our name: torchvision's, where they differ.
TORCHVISION_SPELLS = {f"mnasnet_x{width}": f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")}
TORCHVISION_ARGUMENTS = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}


@cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return zoo.build(name).eval()


def smallest(family: str) -> str:
    """The network of this family file with the fewest parameters."""
    kin = (name for name in NETWORKS if zoo.entry(name).family == family)
    return min(kin, key=lambda name: sum(parameter.numel() for parameter in on_meta(name).parameters()))


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


@cache
def count(name: str, pixels: int) -> tuple[int, float, float]:
    """Parameters, million multiply-adds, and those without the classifier, of one image of a batch of three: torch's
    own counter, on shapes.
    """
    network = on_meta(name)
    x = torch.empty(3, zoo.entry(name).input_shape[0], pixels, pixels, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = network(x)
    assert y.shape == (3, classes(name))
    classifier = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
    madds = counter.get_total_flops() / 2 / 3
    params = sum(parameter.numel() for parameter in network.parameters())
    return params, madds / 1e6, (madds - classifier) / 1e6


@cache
def ours(name: str, pixels: int) -> core.Cost:
    """In this process: a fork for each network is slow and shows nothing."""
    return cost.count(on_meta(name), (zoo.entry(name).input_shape[0], pixels, pixels)).cost


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_beside_the_code_are_exact(name: str):
    """Ours at batch 1, torch's at batch 3, and what is published: the same. And fusing never adds memory access."""
    entry = zoo.entry(name)
    params, madds, convolutions = count(name, entry.input_shape[-1])
    found = ours(name, entry.input_shape[-1])
    assert (found.status, found.traced_on) == ("complete", "meta")
    assert (found.params, found.madds) == (params, round(madds * 1e6))
    assert_ordered(found.memory_access_levels)
    assert entry.paper.startswith(("arXiv:", "doi:"))
    assert (entry.params is None) == (entry.madds_million is None) == entry.source.startswith("no count published")
    if entry.params is not None:
        assert entry.params == params
        decimals = len(str(entry.madds_million).partition(".")[2])
        assert entry.madds_million == round(convolutions if entry.counts == "conv" else madds, decimals)
    assert entry.source


@pytest.mark.parametrize("name", NETWORKS)
def test_its_code_is_known_to_keep_nothing(name: str):
    assert is_known_code(on_meta(name).modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_fvcore_counts_the_same(family: str):
    name = smallest(family)
    shape = (zoo.entry(name).input_shape[0], *small_size(name))
    theirs = FlopCountAnalysis(zoo.build(name).eval(), torch.randn(1, *shape)).unsupported_ops_warnings(False)
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as shallow:
        warnings.simplefilter("ignore")  # what tracing says about shapes
        # For every operator the tracer walks through the whole stack, which under pytest is deep.
        counted = shallow.submit(theirs.tracer_warnings("none").by_operator).result()
    products = sum(counted[op] for op in ("conv", "linear", "matmul", "addmm", "bmm", "einsum"))
    assert products == cost.count(on_meta(name), shape).cost.madds


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_row_is_met_or_its_difference_has_a_reason(name: str):
    rows = [row for row in paper.table("published_costs") if row["model"] == PUBLISHED[name]]
    assert rows
    met = 0
    for row in rows:
        params, madds, convolutions = count(name, int(row["input_px"]))
        model, source = row["model"], row["source"]
        ours = convolutions if source.startswith("ShuffleNet v1 paper, Table 1") else madds
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
        off = abs(ours(name, pixels).madds / 1e6 / paper.full_model(name, (3, pixels, pixels)).complexity - 1)
        allowed = next((known[start] for start in known if row.startswith(start)), 0.03)
        assert off <= allowed, (name, off)


def test_the_page_is_up_to_date():
    """docs/zoo.md says what the code says today."""
    if not (ROOT / "benchmarks" / "zoo_page.py").exists():
        pytest.skip("benchmarks/ is not here")
    page = runpy.run_path(str(ROOT / "benchmarks" / "zoo_page.py"))["page"]
    page.__globals__["count"] = lambda name, shape: (ours(name, shape[-1]).params, ours(name, shape[-1]).madds / 1e6)
    text = page()
    assert text == (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), "run python benchmarks/zoo_page.py"
    lines = text.splitlines()
    rows = [line for line in lines if line.count(" | ") >= 6 and not line.startswith("| network")]
    unexplained = [line for line in rows if line.endswith("|  |") and "| met |" not in line and "| – |" not in line]
    assert len(rows) > 200 and not unexplained


def shallowest_and_deepest(family: str, builder: str) -> set[str]:
    """Of what this function builds, the networks with the fewest and with the most layers; of several, the smallest."""

    def size(name: str) -> int:
        return sum(parameter.numel() for parameter in on_meta(name).parameters())

    kin = (name for name in NETWORKS if (zoo.entry(name).family, zoo.entry(name).builder) == (family, builder))
    layers = {name: sum(1 for _ in on_meta(name).modules()) for name in sorted(kin, key=size)}
    return {min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)}


@pytest.mark.parametrize(("family", "builder"), BUILDERS)
def test_a_network_takes_other_inputs_and_keeps_its_signal(family: str, builder: str):
    """Untrained activations neither vanish nor overflow half precision, which would change the speed.

    What does so does it with depth; the depths between and the other widths are built by the same code.
    """
    for name in shallowest_and_deepest(family, builder):
        signal_is_kept(name)


def signal_is_kept(name: str) -> None:
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
        y = network(x)
        again = network(x)
    assert y.shape == (2, 7), name
    assert torch.equal(y, again)
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
    network = zoo.build(name, num_classes=3)
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


@pytest.mark.parametrize(("name", "theirs"), [*shared_with_torchvision(), ("mobilenet_v2_x0_6", "mobilenet_v2")])
def test_logits_are_torchvisions_with_its_weights(name: str, theirs: str):
    """torchvision's state dict, loaded in order, makes ours the same function."""
    models = pytest.importorskip("torchvision").models
    arguments = {"width_mult": 0.6} if name.endswith("x0_6") else TORCHVISION_ARGUMENTS.get(theirs, {})
    with torch.device("meta"):
        reference = models.get_model(theirs, weights=None, **arguments).eval()
    reference = reference.to_empty(device="cpu")
    fill(reference)
    with torch.device("meta"):
        ours = zoo.build(name).eval()
    values = reference.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)), assign=True)
    x = torch.randn(2, 3, *(2 * [max(64, zoo.entry(name).min_pixels + 8)]))
    with torch.inference_mode():
        expected: Tensor = reference(x)
        assert float((expected[0] - expected[1]).abs().max()) > 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


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
