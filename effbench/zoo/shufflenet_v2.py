"""Define ShuffleNetV2 at four widths, with gates or residuals, and its two deep forms.

The widths are those of Table 5 of arXiv:1807.11164. The multiply-adds that it prints, 41, 146, 299 and 591 M, are 1 %
above those of the convolutions and the classifier, 40.5, 144.9, 295.8 and 583.3 M. The deep forms are those of the
appendix, table 2, where conv2_x keeps its size and "downsampling is performed by conv3_1, conv4_1 and conv5_1". Its
caption places the gate right before the residual's addition and gives it half as many neurons as the unit has channels,
which is the width of the gated branch. Counted this way, the 164 layers take 12.60 G and the gates of 2.0x add 3 M. The
paper prints 12.7 G and adds 6 M (597 for 591). Gates over all channels of a unit would give 12.66 G and 6 M, but they
lie outside of the branch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import (
    SqueezeExcite,
    channel_shuffle,
    check_choice,
    conv_norm_act,
    global_pool,
    init_for_timing,
)
from effbench.zoo._registry import register


@dataclass(frozen=True)
class Layout:
    """Channels of the stages, the 1x1 head and the stem's 3x3 convolutions; units per stage and their first stride."""

    stages: tuple[int, ...]
    head: int
    stem: tuple[int, ...] = (24,)
    repeats: tuple[int, ...] = (4, 8, 4)
    strides: tuple[int, ...] = (2, 2, 2)


WIDTHS = {
    0.5: Layout((48, 96, 192), 1024),
    1.0: Layout((116, 232, 464), 1024),
    1.5: Layout((176, 352, 704), 1024),
    2.0: Layout((244, 488, 976), 2048),
}
DEPTHS = {
    50: Layout((244, 488, 976, 1952), 2048, (64,), (3, 4, 6, 3), (1, 2, 2, 2)),
    164: Layout((340, 680, 1360, 2720), 2048, (64, 64, 128), (10, 10, 23, 10), (1, 2, 2, 2)),
}


class Unit(nn.Module):
    """Keep half of the channels, pass the other half through 1x1, 3x3 depthwise and 1x1, then concatenate and shuffle.

    Figure 3 (c) of the paper. If the shape changes, the channels are not split: both branches read the whole input, the
    left one with 3x3 depthwise and 1x1 (Figure 3 (d)). `gated` puts a squeeze-and-excitation on the right branch, and
    `residual` adds the branch's input to its output (the appendix's figure 2). Neither changes the other half.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, gated: bool, residual: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.splits = stride == 1 and in_channels == out_channels
        self.residual = residual and self.splits
        if not self.splits:
            self.left = nn.Sequential(
                conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels, activation=None),
                conv_norm_act(in_channels, half),
            )
        self.right = nn.Sequential(
            conv_norm_act(half if self.splits else in_channels, half),
            conv_norm_act(half, half, 3, stride, groups=half, activation=None),
            conv_norm_act(half, half, activation=None),
        )
        self.gate = SqueezeExcite(half, half) if gated else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.splits else (self.left(x), x)
        y = self.gate(self.right(right))
        y = self.relu(y + right if self.residual else y)
        return channel_shuffle(torch.cat((left, y), dim=1), 2)


def _init_small(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, std=0.5 * layer.in_channels**-0.5)


class ShuffleNetV2(nn.Module):
    """3x3 stem, max pooling, stages of units, 1x1 head, global average pooling, linear classifier."""

    def __init__(self, layout: Layout, gated: bool, residual: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        previous = in_channels
        stem: list[nn.Module] = []
        for channels in layout.stem:
            stem.append(conv_norm_act(previous, channels, 3, 1 if stem else 2))
            previous = channels
        self.stem = stem[0] if len(stem) == 1 else nn.Sequential(*stem)
        self.pool = nn.MaxPool2d(3, 2, 1)
        units = []
        for channels, repeat, first_stride in zip(layout.stages, layout.repeats, layout.strides, strict=True):
            for position in range(repeat):
                units.append(Unit(previous, channels, first_stride if position == 0 else 1, gated, residual))
                previous = channels
        self.stages = nn.Sequential(*units)
        self.head = conv_norm_act(previous, layout.head)
        self.fc = nn.Linear(layout.head, num_classes)
        init_for_timing(self)
        for unit in units:
            if unit.residual:
                # Fifty additions of equal magnitude would overflow half precision.
                unit.right[-1].apply(_init_small)

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
@register(
    "se_shufflenet_v2_x{width}",
    arguments={"gated": True},
    paper="arXiv:1807.11164",
    source="no count published for this form",
)
@register(
    "se_shufflenet_v2_x2_0",
    arguments={"gated": True, "width": 2.0},
    params=10_379_580,
    madds_million=586,
    source="ShuffleNetV2 paper, Table 8, which prints 597",
    paper="arXiv:1807.11164",
)
@register(
    "res_shufflenet_v2_x{width}",
    arguments={"residual": True},
    paper="arXiv:1807.11164",
    source="no count published for this form",
)
@register(
    "res_shufflenet_v2_x1_0",
    aliases=("res_shufflenet_v2",),
    arguments={"residual": True, "width": 1.0},
    paper="arXiv:1807.11164",
    source="no count published for this form",
)
@register(
    "se_res_shufflenet_v2_x{width}",
    arguments={"gated": True, "residual": True},
    paper="arXiv:1807.11164",
    source="no count published for this form",
)
def shufflenet_v2(
    width: float = 1.0, gated: bool = False, residual: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """Build ShuffleNetV2, optionally with squeeze-and-excitation gates or residuals in its units.

    Raises InvalidValue for a width whose stage channels the paper does not give.
    """
    check_choice("width", width, tuple(WIDTHS))
    return ShuffleNetV2(WIDTHS[width], gated, residual, num_classes, in_channels)


@register(
    "shufflenet_v2_50",
    arguments={"depth": 50},
    params=16_573_534,
    madds_million=2_304,
    source="ShuffleNetV2 paper, Table 6, which prints 2.3 G",
    paper="arXiv:1807.11164",
)
@register(
    "se_shufflenet_v2_164",
    arguments={"depth": 164, "gated": True, "residual": True},
    params=133_099_976,
    madds_million=12_599,
    source="ShuffleNetV2 paper, Table 6, which prints 12.7 G",
    paper="arXiv:1807.11164",
)
def shufflenet_v2_deep(
    depth: int, gated: bool = False, residual: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """Build the forms of the paper's Table 6 with 50 or 164 convolution layers. Raises InvalidValue for another
    depth.
    """
    check_choice("depth", depth, tuple(DEPTHS))
    return ShuffleNetV2(DEPTHS[depth], gated, residual, num_classes, in_channels)
