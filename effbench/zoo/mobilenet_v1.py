"""Define MobileNetV1 at any width: depthwise separable convolutions with ReLU."""

from __future__ import annotations

from torch import nn

from effbench.zoo._blocks import PooledClassifier, check_width, conv_norm_act, make_divisible
from effbench.zoo._registry import register

# (output channels, stride) of each separable convolution; Table 1 of arXiv:1704.04861, whose last stride 2 is a typo
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(PooledClassifier):
    """3x3 stem, thirteen pairs of 3x3 depthwise and 1x1 convolution, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        previous = make_divisible(32 * width)
        layers = [conv_norm_act(in_channels, previous, 3, 2)]
        for channels, stride in LAYERS:
            scaled = make_divisible(channels * width)
            layers.append(conv_norm_act(previous, previous, 3, stride, groups=previous))
            layers.append(conv_norm_act(previous, scaled))
            previous = scaled
        super().__init__(layers, previous, num_classes)


@register("mobilenet_v1_x{width}", paper="arXiv:1704.04861", source="no count published for this width")
@register(
    "mobilenet_v1_x0_25",
    arguments={"width": 0.25},
    params=470_072,
    madds_million=41,
    published="MobileNetV1 0.25",
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1704.04861",
)
@register(
    "mobilenet_v1_x0_5",
    arguments={"width": 0.5},
    params=1_331_592,
    madds_million=149,
    published="MobileNetV1 0.5",
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1704.04861",
)
@register(
    "mobilenet_v1_x0_75",
    arguments={"width": 0.75},
    params=2_585_560,
    madds_million=325,
    published="MobileNetV1 0.75",
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1704.04861",
)
@register(
    "mobilenet_v1_x1_0",
    aliases=("mobilenet_v1",),
    arguments={"width": 1.0},
    params=4_231_976,
    madds_million=569,
    published="MobileNetV1 1.0",
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1704.04861",
)
def mobilenet_v1(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MobileNetV1 with all channels times `width`, rounded to multiples of 8.

    Raises InvalidValue for a width of 0 or less or above 16.
    """
    check_width(width, (0.25, 0.5, 0.75, 1.0))
    return MobileNetV1(width, num_classes, in_channels)
