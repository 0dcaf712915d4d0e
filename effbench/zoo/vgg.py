"""Define VGG-11, 13, 16 and 19, with or without batch norm, and forms for 32x32 images with one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import check_choice, global_pool, init_for_timing
from effbench.zoo._registry import register

# depth: 3x3 convolutions in each of the five stages; Table 1 of arXiv:1409.1556, columns A, B, D, E
LAYOUTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def stages(depth: int, norm: bool, in_channels: int) -> nn.Sequential:
    """Return the convolutions, with bias, and a max pooling after each stage: (n, in_channels, h, w) to (n, 512, h/32,
    w/32).
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for channels, repeat in zip(CHANNELS, LAYOUTS[depth], strict=True):
        for _ in range(repeat):
            layers.append(nn.Conv2d(previous, channels, 3, padding=1))
            if norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
            previous = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Five stages and three linear layers.

    The average pooling to 7x7 does nothing at 224x224 and makes other sizes possible.
    """

    def __init__(self, depth: int, norm: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = stages(depth, norm, in_channels)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return x


class CifarVGG(nn.Module):
    """Five stages with norm, which reduce 32x32 to one pixel, and one linear layer."""

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = stages(depth, True, in_channels)
        self.fc = nn.Linear(512, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.features(x)))
        return x


@register(
    "vgg11",
    arguments={"depth": 11},
    params=132_863_336,
    madds_million=7609,
    published="VGG11",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg11_bn",
    arguments={"depth": 11, "norm": True},
    params=132_868_840,
    madds_million=7609,
    published="VGG11-BN",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg13",
    arguments={"depth": 13},
    params=133_047_848,
    madds_million=11308,
    published="VGG13",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg13_bn",
    arguments={"depth": 13, "norm": True},
    params=133_053_736,
    madds_million=11308,
    published="VGG13-BN",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg16",
    arguments={"depth": 16},
    params=138_357_544,
    madds_million=15470,
    published="VGG16",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg16_bn",
    arguments={"depth": 16, "norm": True},
    params=138_365_992,
    madds_million=15470,
    published="VGG16-BN",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg19",
    arguments={"depth": 19},
    params=143_667_240,
    madds_million=19632,
    published="VGG19",
    source="torchvision",
    paper="arXiv:1409.1556",
)
@register(
    "vgg19_bn",
    arguments={"depth": 19, "norm": True},
    params=143_678_248,
    madds_million=19632,
    published="VGG19-BN",
    source="torchvision",
    paper="arXiv:1409.1556",
)
def vgg(depth: int, norm: bool = False, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build a VGG of this depth. Raises InvalidValue for a depth without a published layout."""
    check_choice("depth", depth, tuple(LAYOUTS))
    return VGG(depth, norm, num_classes, in_channels)


@register(
    "vgg16_cifar",
    arguments={"depth": 16},
    params=14_728_266,
    madds_million=313,
    input_shape=(3, 32, 32),
    source="public tables of PyTorch CIFAR-10 networks, norms left out",
    paper="arXiv:1409.1556",
)
@register(
    "vgg19_cifar",
    arguments={"depth": 19},
    params=20_040_522,
    madds_million=398,
    input_shape=(3, 32, 32),
    source="public tables of PyTorch CIFAR-10 networks, norms left out",
    paper="arXiv:1409.1556",
)
def vgg_cifar(depth: int, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a VGG with norm for 32x32 images of CIFAR-10. Raises InvalidValue for a depth without a published
    layout.
    """
    check_choice("depth", depth, tuple(LAYOUTS))
    return CifarVGG(depth, num_classes, in_channels)
