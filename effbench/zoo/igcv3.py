"""Define IGCV3-D at any width: MobileNetV2 twice as deep, with 1x1 convolutions in two groups and two shuffles per
unit.

Channels are rounded as in the authors' code, to the nearest even number. At 1.0 the parameters match every public
implementation. The ShuffleNetV2 paper's Table 8 repeats the authors' own 210, 318 and 610 M for 0.7, 1.0 and 1.4. These
are 20 %, 1.6 % and 3.4 % above a count of convolutions and classifier. How the authors counted is not published, and no
width fits all three. The large gap at 0.7 shows that their 0.7 is not a multiplier of 0.7 on every layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import PooledClassifier, channel_shuffle, check_width, conv_norm_act
from effbench.zoo._registry import register

# t, c, n, s: expansion, output channels, repeats, first stride, as in the authors' code
LAYERS = (
    (1, 16, 1, 1),
    (6, 24, 4, 2),
    (6, 32, 6, 2),
    (6, 64, 8, 2),
    (6, 96, 6, 1),
    (6, 160, 6, 2),
    (6, 320, 1, 1),
)
GROUPS = 2


def even(value: float) -> int:
    """Round to the nearest whole number, or up to the next one if that is odd; at least 2."""
    rounded = max(2, round(value))
    return rounded + rounded % 2


class Unit(nn.Module):
    """Grouped linear 1x1 expansion, shuffle, 3x3 depthwise, grouped linear 1x1, shuffle; a shortcut if the shape is
    unchanged.

    The first shuffle gives each group of the last convolution channels of both earlier groups. The second one restores
    the order.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = conv_norm_act(in_channels, inner, groups=GROUPS, activation=None)
        self.depthwise = conv_norm_act(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6)
        self.compress = conv_norm_act(inner, out_channels, groups=GROUPS, activation=None)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depthwise(channel_shuffle(self.expand(x), GROUPS))
        y = self.compress(y)
        y = channel_shuffle(y, y.shape[1] // GROUPS)
        return x + y if self.has_shortcut else y


class IGCV3(PooledClassifier):
    """3x3 stem, thirty-seven units, 1x1 head, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        previous = even(32 * width)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2, activation=nn.ReLU6)]
        for expansion, channels, repeat, first_stride in LAYERS:
            scaled = even(channels * width)
            for position in range(repeat):
                layers.append(Unit(previous, scaled, first_stride if position == 0 else 1, expansion))
                previous = scaled
        head = even(1280 * max(1.0, width))
        layers.append(conv_norm_act(previous, head, activation=nn.ReLU6))
        super().__init__(layers, head, num_classes)


@register("igcv3_x{width}", paper="arXiv:1806.00178", source="no count published for this width")
@register(
    "igcv3_x0_25",
    arguments={"width": 0.25},
    params=1_534_020,
    madds_million=34,
    source="imgclsmob, parameters only",
    paper="arXiv:1806.00178",
)
@register(
    "igcv3_x0_5",
    arguments={"width": 0.5},
    params=1_985_528,
    madds_million=97,
    source="imgclsmob, parameters only",
    paper="arXiv:1806.00178",
)
@register(
    "igcv3_x0_7",
    arguments={"width": 0.7},
    params=2_502_486,
    madds_million=175,
    source="ShuffleNetV2 paper, Table 8, which prints 210",
    paper="arXiv:1806.00178",
)
@register(
    "igcv3_x0_75",
    arguments={"width": 0.75},
    params=2_638_084,
    madds_million=190,
    source="imgclsmob, parameters only",
    paper="arXiv:1806.00178",
)
@register(
    "igcv3_x1_0",
    aliases=("igcv3",),
    arguments={"width": 1.0},
    params=3_491_688,
    madds_million=313,
    published="IGCV3-D 1.0",
    source="ShuffleNetV2 paper, Table 8, which prints 318",
    paper="arXiv:1806.00178",
)
@register(
    "igcv3_x1_4",
    arguments={"width": 1.4},
    params=6_023_004,
    madds_million=590,
    source="ShuffleNetV2 paper, Table 8, which prints 610",
    paper="arXiv:1806.00178",
)
def igcv3(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build IGCV3-D with all channels times `width`, rounded to even numbers.

    Raises InvalidValue if `width` is not above 0 and at most 16.
    """
    check_width(width, (0.25, 0.5, 0.7, 0.75, 1.0, 1.4))
    return IGCV3(width, num_classes, in_channels)
