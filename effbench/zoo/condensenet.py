"""Define CondenseNet-74 with 4 or 8 groups in inference form: learned groups are an index and a group convolution.

The authors' 529 and 274 M also count one operation per input of a ReLU or a pooling, and the classifier's biases: 12.7
M on top of 516.6 and 261.5 M multiply-adds. Counted their way, both figures are met to the digit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import channel_shuffle, check_choice, global_pool, init_for_timing
from effbench.zoo._registry import register

# growth rate, units of each dense block, as in the authors' code
BLOCKS = ((8, 4), (16, 6), (32, 8), (64, 10), (128, 8))
BOTTLENECK = 4


class Select(nn.Module):
    """Select the channels kept by training, in the order of their groups: (n, c, …) to (n, len(kept), …), one copy."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.kept)


def norm_relu_conv(in_channels: int, out_channels: int, kernel: int, groups: int) -> nn.Sequential:
    """Return batch norm, ReLU and a group convolution without bias that keeps h and w."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False),
    )


class Unit(nn.Module):
    """Learned 1x1 group convolution, shuffle and 3x3 group convolution, concatenated to the input.

    Figure 1 of arXiv:1711.09224, at test time. Untrained, each group takes every `groups`-th channel; a trained network
    differs only in the indices.
    """

    def __init__(self, in_channels: int, growth: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.select = Select(torch.arange(in_channels).view(-1, groups).t().flatten())
        self.learned = norm_relu_conv(in_channels, BOTTLENECK * growth, 1, groups)
        self.grow = norm_relu_conv(BOTTLENECK * growth, growth, 3, groups)

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(self.learned(self.select(x)), self.groups)
        return torch.cat((x, self.grow(y)), dim=1)


class CondenseNet(nn.Module):
    """3x3 stem, five dense blocks with pooling by 2 between, norm, global average pooling, linear on half of the
    channels.
    """

    def __init__(self, groups: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 2 * BLOCKS[0][0]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)]
        for growth, repeat in BLOCKS:
            if len(layers) > 1:
                layers.append(nn.AvgPool2d(2))
            for _ in range(repeat):
                layers.append(Unit(channels, growth, groups))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.select = Select(torch.arange(0, channels, 2))
        self.fc = nn.Linear(channels // 2, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.select(global_pool(self.features(x))))
        return x


@register(
    "condensenet_74_g4",
    aliases=("condensenet",),
    arguments={"groups": 4},
    params=4_773_944,
    madds_million=517,
    published="CondenseNet-74 (C=G=4)",
    source="the authors' repository, which prints 529",
    paper="arXiv:1711.09224",
)
@register(
    "condensenet_74_g8",
    arguments={"groups": 8},
    params=2_935_416,
    madds_million=262,
    published="CondenseNet-74 (C=G=8)",
    source="the authors' repository, which prints 274",
    paper="arXiv:1711.09224",
)
def condensenet_74(groups: int = 4, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build CondenseNet-74 in inference form, condensed by a factor of `groups`. Raises InvalidValue for other
    `groups`.
    """
    check_choice("groups", groups, (4, 8))
    return CondenseNet(groups, num_classes, in_channels)
