"""Classic networks, LeNet to Inception v3, and CIFAR forms: layouts, sums over layers, and published counts that count
more than convolutions and classifier, made up exactly from the parts.
"""

from __future__ import annotations

from functools import cache

import networks
import pytest
import torch
from torch import nn

from effbench import paper, zoo
from effbench.core.errors import InvalidValue, ModelError
from effbench.cost import count as profile  # in this process: a fork for each is slow and shows nothing
from effbench.zoo import googlenet, vgg

CLASSIC = ("lenet", "alexnet", "vgg", "googlenet", "inception", "nin", "squeezenet", "resnet")
NETWORKS = tuple(dict.fromkeys(name for name in zoo.names() if zoo.entry(name).family in CLASSIC))


on_meta = cache(networks.on_meta)


def outputs(network: nn.Module, shape: tuple[int, ...], kind: type | tuple[type, ...]) -> list[tuple[int, ...]]:
    """Output shapes of every layer of these types, in order of execution, at batch 1."""
    shapes: list[tuple[int, ...]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, kind)]
    hooks = [
        layer.register_forward_hook(lambda _layer, _given, out: shapes.append(tuple(out.shape))) for layer in layers
    ]
    with torch.no_grad():
        network(torch.empty(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return shapes


def elements(network: nn.Module, shape: tuple[int, ...], kind: type) -> int:
    return sum(torch.Size(out).numel() for out in outputs(network, shape, kind))


# --- sums over layers ---------------------------------------------------------------------------------


def test_lenet_is_the_published_sum_of_its_layers():
    """Section II B of the paper, each C3 map seeing all six S2 maps; on colour images 62,006, as CIFAR tables print."""
    network = on_meta("lenet5")
    sizes = [sum(parameter.numel() for parameter in layer.parameters(False)) for layer in network.modules()]
    assert [size for size in sizes if size] == [156, 2416, 48120, 10164, 850]
    by_hand = 28 * 28 * 25 * 6 + 10 * 10 * 25 * 6 * 16 + 25 * 16 * 120 + 120 * 84 + 84 * 10
    assert profile(network, (1, 32, 32)).cost.madds == by_hand == 416_520
    coloured = on_meta("lenet5", in_channels=3)
    assert sum(parameter.numel() for parameter in coloured.parameters()) == 62_006


def test_lenet_at_another_size_gets_one_line():
    with pytest.raises(ModelError, match="1x28x28") as raised:
        profile(on_meta("lenet5"), (1, 28, 28))
    assert "\n" not in str(raised.value)


def test_nin_maps_are_caffes():
    """Caffe's pooling rounds up: 54, 27, 13, 6, and the last mean is over 6x6. Rounding down would cost 969 M."""
    shapes = outputs(on_meta("nin"), (3, 224, 224), nn.Conv2d)
    assert [shape[2] for shape in shapes] == [54] * 3 + [27] * 3 + [13] * 3 + [6] * 3
    assert [shape[1] for shape in shapes] == [96] * 3 + [256] * 3 + [384] * 3 + [1024, 1024, 1000]
    assert not [layer for layer in on_meta("nin").modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
def test_vgg_has_as_many_layers_as_its_name_says(depth: int, convolutions: int):
    """Table 1 of arXiv:1409.1556; Table 2 there: 133, 133, 138, 144 million parameters."""
    network = on_meta(f"vgg{depth}")
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert (len(layers), len(outputs(network, (3, 224, 224), nn.Conv2d))) == (depth, convolutions)
    millions = {11: 133, 13: 133, 16: 138, 19: 144}
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions[depth]


def test_squeezenet_1_1_does_the_work_of_1_0_in_less_than_half():
    """Its authors: 2.4 times less computation, slightly fewer parameters."""
    old, new = (profile(on_meta(f"squeezenet1_{minor}"), (3, 224, 224)).cost for minor in (0, 1))
    assert 2.3 < old.madds / new.madds < 2.45
    assert new.params < old.params


def test_resnet_for_cifar_keeps_the_image_until_the_stages():
    """32, 16, 8, 4 pixels; the multiply-adds of ResNet-152 summed by hand over its bottlenecks."""
    network = on_meta("resnet152_cifar")
    by_hand = 32 * 32 * 27 * 64 + 2048 * 10
    previous = 64
    for pixels, channels, repeat in ((32, 64, 3), (16, 128, 8), (8, 256, 36), (4, 512, 3)):
        entered = pixels if channels == 64 else 2 * pixels  # the first 1x1 comes before the stride
        by_hand += entered**2 * previous * channels + pixels**2 * previous * 4 * channels
        by_hand += (repeat - 1) * pixels**2 * 4 * channels * channels
        by_hand += repeat * pixels**2 * (9 * channels * channels + channels * 4 * channels)
        previous = 4 * channels
    assert profile(network, (3, 32, 32)).cost.madds == by_hand
    assert sorted({shape[2] for shape in outputs(network, (3, 32, 32), nn.Conv2d)}) == [4, 8, 16, 32]


# --- published counts, made up from their parts -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "millions", "operations", "pooled_at_the_end"),
    [
        ("vgg16_cifar", 14_728_266, 314.03, 3, 512 * 2),
        ("vgg19_cifar", 20_040_522, 399.05, 3, 512 * 2),
        ("resnet18_cifar", 11_173_962, 556.65, 2, 0),
        ("googlenet_cifar", 6_166_250, 1529.43, 3, 1024 * 9),
    ],
)
def test_cifar_forms_are_those_of_public_tables(
    name: str, params: int, millions: float, operations: int, pooled_at_the_end: int
):
    """Those tables add two operations a normed element, one a rectified one where that is a layer, and the mean."""
    network = on_meta(name)
    cost = profile(network, (3, 32, 32)).cost
    assert cost.params == params
    normed = elements(network, (3, 32, 32), nn.BatchNorm2d)
    assert round((cost.madds + operations * normed + pooled_at_the_end) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alexnet", "AlexNet-b"),
        *((f"vgg{depth}", f"VGG-{depth}") for depth in (11, 13, 16, 19)),
        *((f"vgg{depth}_bn", f"BN-VGG-{depth}b") for depth in (11, 13, 16, 19)),
        ("squeezenet1_0", "SqueezeNet v1.0"),
        ("squeezenet1_1", "SqueezeNet v1.1"),
        ("nin_cifar", "NIN"),
    ],
)
def test_a_source_that_counts_norms_and_activations_too_is_met_exactly(name: str, row: str):
    """imgclsmob: half of two operations a multiply-add, one an activation, four a norm, k² a pooled element."""
    entry, network = zoo.entry(name), on_meta(name)
    printed = {item["source"]: item["mmadds_million"] for item in paper.table("published_costs")}
    halves = elements(network, entry.input_shape, nn.ReLU) + 4 * elements(network, entry.input_shape, nn.BatchNorm2d)
    for layer in network.modules():
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            halves += layer.kernel_size**2 * pooled_elements(network, entry.input_shape, layer)
    if not any(isinstance(layer, nn.Linear) for layer in network.modules()):
        halves += torch.Size(outputs(network, entry.input_shape, nn.Conv2d)[-1]).numel()  # the mean at the end
    madds = profile(network, entry.input_shape).cost.madds
    assert round((madds + halves / 2) / 1e6, 2) == float(printed[f"imgclsmob README ({row})"])


def pooled_elements(network: nn.Module, shape: tuple[int, ...], layer: nn.Module) -> int:
    seen: list[int] = []
    hook = layer.register_forward_hook(lambda _layer, _given, out: seen.append(out.numel()))
    network(torch.empty(1, *shape, device="meta"))
    hook.remove()
    return sum(seen)


def test_googlenet_with_the_papers_5x5_costs_what_is_published_for_it():
    """A compilation of Caffe networks prints 7.0 M parameters and 1.6 G: 5x5 in the third branch, biases, no norms."""
    network = on_meta("googlenet")
    params = network.fc.weight.numel() + network.fc.bias.numel()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            params += layer.weight.numel() + layer.out_channels
    madds = profile(network, (3, 224, 224)).cost.madds
    maps = iter([28] * 2 + [14] * 5 + [7] * 2)
    for widths in filter(None, googlenet.LAYERS):
        more = (25 - 9) * widths[3] * widths[4]
        params += more
        madds += next(maps) ** 2 * more
    assert params == 6_998_552
    assert round(madds / 1e8) == 16


def test_inception_lacks_exactly_the_auxiliary_head_of_torchvisions_count():
    head = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 768 * 1000 + 1000
    assert sum(parameter.numel() for parameter in on_meta("inception_v3").parameters()) + head == 27_161_264


def test_alexnets_other_published_form_is_wider():
    """62,378,344 parameters: the channels of both towers, 96, 256, 384, 384, 256, without groups."""
    widths, kernels = (3, 96, 256, 384, 384, 256), (11, 5, 3, 3, 3)
    layers = zip(widths, widths[1:], kernels, strict=False)
    params = sum(c * out * kernel**2 + out for c, out, kernel in layers)
    params += 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    rows = [row["params"] for row in paper.table("published_costs") if row["model"] == "AlexNet"]
    assert str(params) in rows


# --- wrong words, sizes, builds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vgg16?depth=17", r"`depth` \(=17\) .*use 16 or 19"),
        ("vgg16_cifar?depth=12", r"`depth` \(=12\) .*use 11 or 13"),
        ("resnet18_cifar?depth=20", r"`depth` \(=20\) .*use 18 or 34"),
        ("squeezenet1_0?version=1.2", r"`version` \(=1.2\) .*use 1.0 or 1.1"),
    ],
)
def test_impossible_layouts_name_the_nearest(word: str, message: str):
    with pytest.raises(InvalidValue, match=message) as raised:
        zoo.resolve(word)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["alexnet", "inception_v3", "nin"])
def test_the_smallest_image_is_the_smallest(name: str):
    network, smallest = on_meta(name), zoo.entry(name).min_pixels
    profile(network, (3, smallest, smallest))
    with pytest.raises(ModelError):
        profile(network, (3, smallest - 1, smallest - 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_not_probabilities(name: str):
    """No Softmax at the end, and dropout does nothing in eval mode."""
    assert not [layer for layer in on_meta(name).modules() if isinstance(layer, (nn.Softmax, nn.LogSoftmax))]
    ops = profile(on_meta(name), zoo.entry(name).input_shape).ops
    assert not [op.op for op in ops if "softmax" in op.op or "dropout" in op.op or "bernoulli" in op.op]


def test_vgg_stages_are_shared_by_both_forms():
    for depth in vgg.LAYOUTS:
        large, small = on_meta(f"vgg{depth}_bn"), on_meta("vgg16_cifar", depth=depth)
        assert str(large.features) == str(small.features)
