"""Define GoogLeNet as in torchvision, with norms and without auxiliary heads, and a form for 32x32 images.

The paper's third branch is 5x5. torchvision's is 3x3, as in the TensorFlow port that its weights come from. Public
CIFAR forms use two 3x3 convolutions, with the same receptive field as one 5x5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import conv_norm_act, global_pool, init_for_timing
from effbench.zoo._registry import register

# Output channels: 1x1; 1x1 and 3x3; 1x1 and the third branch; 1x1 after pooling. None is max pooling at stride 2.
# Table 1 of arXiv:1409.4842
LAYERS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


Unit = Callable[[int, int, int], nn.Module]
"""Creates a convolution with norm and activation from input channels, output channels and kernel."""


class Inception(nn.Module):
    """Four parallel branches, concatenated: 1x1; 1x1 and 3x3; 1x1 and `third_branch_convs` times 3x3; 3x3 max pooling
    and 1x1.

    Figure 2 (b) of the paper.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], unit: Unit, third_branch_convs: int) -> None:
        super().__init__()
        one, to_three, three, to_far, last, pooled = widths
        third = [unit(in_channels, to_far, 1), unit(to_far, last, 3)] + [
            unit(last, last, 3) for _ in range(third_branch_convs - 1)
        ]
        self.branches = nn.ModuleList(
            (
                unit(in_channels, one, 1),
                nn.Sequential(unit(in_channels, to_three, 1), unit(to_three, three, 3)),
                nn.Sequential(*third),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(in_channels, pooled, 1)),
            )
        )
        self.out_channels = one + three + last + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class GoogLeNet(nn.Module):
    """A stem of 192 channels, nine inception modules, global average pooling and a linear classifier.

    Pooling precedes the third and the eighth module.
    """

    def __init__(
        self, stem: nn.Module, pools: Iterable[nn.Module], unit: Unit, third_branch_convs: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        previous = 192
        layers: list[nn.Module] = []
        following = iter(pools)
        for widths in LAYERS:
            if widths is None:
                layers.append(next(following))
            else:
                layers.append(module := Inception(previous, widths, unit, third_branch_convs))
                previous = module.out_channels
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(previous, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.dropout(global_pool(self.layers(self.stem(x)))))
        return x


@register(
    "googlenet",
    params=6_624_904,
    madds_million=1498,
    published="GoogLeNet",
    source="torchvision",
    paper="arXiv:1409.4842",
)
def googlenet(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build GoogLeNet for ImageNet. Its pooling keeps the last odd column, as in Caffe."""
    unit = partial(conv_norm_act, eps=0.001)
    stem = nn.Sequential(
        unit(in_channels, 64, 7, stride=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        unit(64, 64),
        unit(64, 192, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    pools = (nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True))
    return GoogLeNet(stem, pools, unit, 1, num_classes)


@register(
    "googlenet_cifar",
    params=6_166_250,
    madds_million=1522,
    input_shape=(3, 32, 32),
    source="public tables of PyTorch CIFAR-10 networks, norms left out",
    paper="arXiv:1409.4842",
)
def googlenet_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build GoogLeNet for 32x32 images of CIFAR-10: the stem is one 3x3 convolution, and convolutions have biases."""
    pools = (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1))
    return GoogLeNet(biased_unit(in_channels, 192, 3), pools, biased_unit, 2, num_classes)


def biased_unit(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
