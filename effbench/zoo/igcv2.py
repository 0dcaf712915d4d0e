"""Define IGCV2 at any width: MobileNetV1's layers twice as wide, with each 1x1 convolution as a pair of group
convolutions.

This is a reconstruction. Only the block is certain: a depthwise 3x3 and several 1x1 group convolutions with
permutations between them, in place of MobileNetV1's pair (arXiv:1804.06202). The groups and widths of the ImageNet
networks could not be found, and the authors published no code. We tried MobileNetV1's strides with two or three group
convolutions of 1, 2, 4 or 8 groups and 1, 1.5 or 2 times the width. This variant comes nearest to Table 8 of
arXiv:1807.11164: 565.9, 156.1 and 46.3 M where it prints 564, 156 and 46.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import PooledClassifier, channel_shuffle, check_width, conv_norm_act, make_divisible
from effbench.zoo._registry import register
from effbench.zoo.mobilenet_v1 import LAYERS

GROUPS = 8
WIDTH_FACTOR = 2


class Unit(nn.Module):
    """3x3 depthwise, grouped linear 1x1, shuffle, grouped 1x1.

    Every output depends on every input if a group has at least as many channels as there are groups.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels)
        self.first = conv_norm_act(in_channels, in_channels, groups=GROUPS, activation=None)
        self.second = conv_norm_act(in_channels, out_channels, groups=GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(channel_shuffle(self.first(self.depthwise(x)), GROUPS))
        return x


class IGCV2(PooledClassifier):
    """3x3 stem, thirteen units, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        previous = make_divisible(32 * WIDTH_FACTOR * width, GROUPS)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2)]
        for channels, stride in LAYERS:
            scaled = make_divisible(channels * WIDTH_FACTOR * width, GROUPS)
            layers.append(Unit(previous, scaled, stride))
            previous = scaled
        super().__init__(layers, previous, num_classes)


@register("igcv2_x{width}", paper="arXiv:1804.06202", source="no count published for this width")
@register(
    "igcv2_x0_25",
    arguments={"width": 0.25},
    params=736_968,
    madds_million=46,
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1804.06202",
)
@register(
    "igcv2_x0_5",
    arguments={"width": 0.5},
    params=1_843_560,
    madds_million=156,
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1804.06202",
)
@register(
    "igcv2_x1_0",
    aliases=("igcv2",),
    arguments={"width": 1.0},
    params=5_168_616,
    madds_million=566,
    source="ShuffleNetV2 paper, Table 8, which prints 564",
    paper="arXiv:1804.06202",
)
def igcv2(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build IGCV2 with all channels times `width`, rounded to multiples of 8.

    Raises InvalidValue if `width` is not above 0 and at most 16.
    """
    check_width(width, (0.25, 0.5, 1.0))
    return IGCV2(width, num_classes, in_channels)
