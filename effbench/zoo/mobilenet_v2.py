"""Define MobileNetV2 at any width: inverted residuals with linear bottlenecks and ReLU6."""

from __future__ import annotations

from torch import nn

from effbench.zoo._blocks import InvertedResidual, PooledClassifier, check_width, conv_norm_act, make_divisible
from effbench.zoo._registry import register

# t, c, n, s: expansion, output channels, repeats, first stride; Table 2 of arXiv:1801.04381
LAYERS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(PooledClassifier):
    """3x3 stem, seventeen inverted residuals, 1x1 head, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        previous = make_divisible(32 * width)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2, activation=nn.ReLU6)]
        for expansion, channels, repeat, first_stride in LAYERS:
            scaled = make_divisible(channels * width)
            for position in range(repeat):
                stride = first_stride if position == 0 else 1
                layers.append(InvertedResidual(previous, previous * expansion, scaled, 3, stride, nn.ReLU6))
                previous = scaled
        # Narrow networks keep the full head: section 6.1 of the paper scales it only above 1.0.
        head = make_divisible(1280 * max(1.0, width))
        layers.append(conv_norm_act(previous, head, activation=nn.ReLU6))
        super().__init__(layers, head, num_classes)


@register("mobilenet_v2_x{width}", paper="arXiv:1801.04381", source="no count published for this width")
@register(
    "mobilenet_v2_x0_35",
    arguments={"width": 0.35},
    params=1_677_128,
    madds_million=59,
    published="MobileNetV2 0.35",
    source="TensorFlow slim",
    paper="arXiv:1801.04381",
)
@register(
    "mobilenet_v2_x0_5",
    arguments={"width": 0.5},
    params=1_968_680,
    madds_million=97,
    published="MobileNetV2 0.5",
    source="TensorFlow slim",
    paper="arXiv:1801.04381",
)
@register(
    "mobilenet_v2_x0_75",
    arguments={"width": 0.75},
    params=2_636_424,
    madds_million=209,
    published="MobileNetV2 0.75",
    source="TensorFlow slim",
    paper="arXiv:1801.04381",
)
@register(
    "mobilenet_v2_x1_0",
    aliases=("mobilenet_v2",),
    arguments={"width": 1.0},
    params=3_504_872,
    madds_million=301,
    published="MobileNetV2 1.0",
    source="torchvision",
    paper="arXiv:1801.04381",
)
@register(
    "mobilenet_v2_x1_4",
    arguments={"width": 1.4},
    params=6_108_776,
    madds_million=582,
    published="MobileNetV2 1.4",
    source="TensorFlow slim",
    paper="arXiv:1801.04381",
)
def mobilenet_v2(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MobileNetV2 with all channels times `width`, rounded to multiples of 8.

    Raises InvalidValue for a width of 0 or less or above 16.
    """
    check_width(width, (0.35, 0.5, 0.75, 1.0, 1.4))
    return MobileNetV2(width, num_classes, in_channels)
