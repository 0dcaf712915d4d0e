"""ShuffleNetV2 at the four published widths: channel split, concatenation, shuffle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import channel_shuffle, check_choice, conv_norm_act, global_pool, init_for_timing
from effbench.zoo._registry import register

# width: output channels of stages 2, 3, 4 and of conv5; Table 5 of arXiv:1807.11164
CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
REPEATS = (4, 8, 4)


class Unit(nn.Module):
    """Half the channels pass, half go through 1x1, 3x3 depthwise, 1x1; concatenate and shuffle. Figure 3 (c) of the
    paper.

    At stride 2 nothing is split: both branches see the whole input, the left one 3x3 depthwise and 1x1. Figure 3 (d).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        if stride == 2:
            self.left = nn.Sequential(
                conv_norm_act(in_channels, in_channels, 3, 2, groups=in_channels, activation=None),
                conv_norm_act(in_channels, half),
            )
        self.right = nn.Sequential(
            conv_norm_act(in_channels if stride == 2 else half, half),
            conv_norm_act(half, half, 3, stride, groups=half, activation=None),
            conv_norm_act(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            left, right = self.left(x), self.right(x)
        else:
            left, right = x.chunk(2, dim=1)
            right = self.right(right)
        return channel_shuffle(torch.cat((left, right), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """3x3 stem, max pooling, three stages of units, 1x1 head, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        *stages, head = CHANNELS[width]
        previous = 24
        self.stem = conv_norm_act(in_channels, previous, 3, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        units = []
        for channels, repeat in zip(stages, REPEATS, strict=True):
            for position in range(repeat):
                units.append(Unit(previous, channels, 2 if position == 0 else 1))
                previous = channels
        self.stages = nn.Sequential(*units)
        self.head = conv_norm_act(previous, head)
        self.fc = nn.Linear(head, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.head(self.stages(self.pool(self.stem(x))))))
        return x


@register("shufflenet_v2_x{width}", paper="arXiv:1807.11164", source="no stage widths published for this width")
@register(
    "shufflenet_v2_x0_5",
    arguments={"width": 0.5},
    params=1_366_792,
    madds_million=40,
    published="ShuffleNetV2 0.5x",
    source="torchvision",
    paper="arXiv:1807.11164",
)
@register(
    "shufflenet_v2_x1_0",
    aliases=("shufflenet_v2",),
    arguments={"width": 1.0},
    params=2_278_604,
    madds_million=145,
    published="ShuffleNetV2 1.0x",
    source="torchvision",
    paper="arXiv:1807.11164",
)
@register(
    "shufflenet_v2_x1_5",
    arguments={"width": 1.5},
    params=3_503_624,
    madds_million=296,
    published="ShuffleNetV2 1.5x",
    source="torchvision",
    paper="arXiv:1807.11164",
)
@register(
    "shufflenet_v2_x2_0",
    arguments={"width": 2.0},
    params=7_393_996,
    madds_million=583,
    published="ShuffleNetV2 2.0x",
    source="torchvision",
    paper="arXiv:1807.11164",
)
def shufflenet_v2(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """ShuffleNetV2. Raises InvalidValue for a width whose stage channels the paper does not give."""
    check_choice("width", width, tuple(CHANNELS))
    return ShuffleNetV2(width, num_classes, in_channels)
