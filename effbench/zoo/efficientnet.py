"""Define EfficientNet-B0 to B7: gated inverted residuals, scaled in depth and width, at the paper's image sizes.

torchvision prints B2's cost at 288x288; here its input is the paper's 260x260.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from effbench.zoo._blocks import (
    InvertedResidual,
    SqueezeExcite,
    check_choice,
    conv_norm_act,
    global_pool,
    init_for_timing,
    make_divisible,
)
from effbench.zoo._registry import register

# expansion, output channels, repeats, first stride, kernel: B0, Table 1 of arXiv:1905.11946
LAYERS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# width and depth coefficients of B0 to B7; the authors' code
COEFFICIENTS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


class EfficientNet(nn.Module):
    """3x3 stem, seven rows of inverted residuals, 1x1 head, global average pooling, linear classifier; SiLU."""

    def __init__(self, scale: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width, depth = COEFFICIENTS[scale]
        # As in torchvision: the authors' 1e-3 only for the large forms.
        eps = 1e-3 if scale >= 5 else 1e-5
        previous = make_divisible(32 * width)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2, activation=nn.SiLU, eps=eps)]
        for expansion, channels, repeat, first_stride, kernel in LAYERS:
            scaled = make_divisible(channels * width)
            for position in range(math.ceil(repeat * depth)):
                inner = previous * expansion
                # A quarter of the block's input channels, not of the expanded ones that the gate scales.
                gate = SqueezeExcite(inner, previous // 4, nn.SiLU)
                stride = first_stride if position == 0 else 1
                layers.append(InvertedResidual(previous, inner, scaled, kernel, stride, nn.SiLU, gate, eps))
                previous = scaled
        head = make_divisible(1280 * width)
        layers.append(conv_norm_act(previous, head, activation=nn.SiLU, eps=eps))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(head, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.features(x)))
        return x


@register(
    "efficientnet_b0",
    aliases=("efficientnet",),
    arguments={"scale": 0},
    params=5_288_548,
    madds_million=386,
    published="EfficientNet-B0",
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b1",
    arguments={"scale": 1},
    params=7_794_184,
    madds_million=687,
    published="EfficientNet-B1",
    input_shape=(3, 240, 240),
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b2",
    arguments={"scale": 2},
    params=9_109_994,
    madds_million=994,
    published="EfficientNet-B2",
    input_shape=(3, 260, 260),
    source="torchvision (1088 M at 288x288)",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b3",
    arguments={"scale": 3},
    params=12_233_232,
    madds_million=1827,
    published="EfficientNet-B3",
    input_shape=(3, 300, 300),
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b4",
    arguments={"scale": 4},
    params=19_341_616,
    madds_million=4394,
    published="EfficientNet-B4",
    input_shape=(3, 380, 380),
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b5",
    arguments={"scale": 5},
    params=30_389_784,
    madds_million=10266,
    published="EfficientNet-B5",
    input_shape=(3, 456, 456),
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b6",
    arguments={"scale": 6},
    params=43_040_704,
    madds_million=19068,
    published="EfficientNet-B6",
    input_shape=(3, 528, 528),
    source="torchvision",
    paper="arXiv:1905.11946",
)
@register(
    "efficientnet_b7",
    arguments={"scale": 7},
    params=66_347_960,
    madds_million=37746,
    published="EfficientNet-B7",
    input_shape=(3, 600, 600),
    source="torchvision",
    paper="arXiv:1905.11946",
)
def efficientnet(scale: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build EfficientNet-B`scale`. Raises InvalidValue for a scale that the paper does not have."""
    check_choice("scale", scale, tuple(range(len(COEFFICIENTS))))
    return EfficientNet(scale, num_classes, in_channels)
