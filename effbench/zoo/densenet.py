"""Define DenseNet-121, 161, 169 and 201: each layer reads all earlier outputs of its block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import check_choice, conv_norm_act, global_pool, init_for_timing
from effbench.zoo._registry import register

# depth: channels of the stem, growth rate, layers in each of the four blocks; Table 1 of arXiv:1608.06993
LAYOUTS = {
    121: (64, 32, (6, 12, 24, 16)),
    161: (96, 48, (6, 12, 36, 24)),
    169: (64, 32, (6, 12, 32, 32)),
    201: (64, 32, (6, 12, 48, 32)),
}


def norm_act_conv(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """Return batch norm, ReLU and a convolution without bias that keeps h and w."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
    )


class DenseLayer(nn.Module):
    """1x1 to four times the growth rate, 3x3 to the growth rate, concatenated: (n, c, h, w) to (n, c + growth, h,
    w).
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(norm_act_conv(in_channels, 4 * growth), norm_act_conv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.branch(x)), dim=1)


class DenseNet(nn.Module):
    """7x7 stem, max pooling, four dense blocks with transitions that halve h and w, norm, global pooling,
    classifier.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels, growth, repeats = LAYOUTS[depth]
        self.stem = conv_norm_act(in_channels, channels, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        layers: list[nn.Module] = []
        for block, repeat in enumerate(repeats):
            if block > 0:
                layers += [norm_act_conv(channels, channels // 2), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(repeat):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.blocks(self.pool(self.stem(x)))))
        return x


@register(
    "densenet121",
    arguments={"depth": 121},
    params=7_978_856,
    madds_million=2834,
    published="DenseNet-121",
    source="torchvision",
    paper="arXiv:1608.06993",
)
@register(
    "densenet161",
    arguments={"depth": 161},
    params=28_681_000,
    madds_million=7728,
    published="DenseNet-161",
    source="torchvision",
    paper="arXiv:1608.06993",
)
@register(
    "densenet169",
    arguments={"depth": 169},
    params=14_149_480,
    madds_million=3360,
    published="DenseNet-169",
    source="torchvision",
    paper="arXiv:1608.06993",
)
@register(
    "densenet201",
    arguments={"depth": 201},
    params=20_013_928,
    madds_million=4291,
    published="DenseNet-201",
    source="torchvision",
    paper="arXiv:1608.06993",
)
def densenet(depth: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build a DenseNet of this depth. Raises InvalidValue for a depth without a published layout."""
    check_choice("depth", depth, tuple(LAYOUTS))
    return DenseNet(depth, num_classes, in_channels)
