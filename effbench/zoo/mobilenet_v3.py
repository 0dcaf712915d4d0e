"""Define MobileNetV3 Large and Small at any width: gated inverted residuals found by search, with hard-swish."""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import (
    InvertedResidual,
    SqueezeExcite,
    check_width,
    conv_norm_act,
    global_pool,
    init_for_timing,
    make_divisible,
)
from effbench.zoo._registry import register

# kernel, inner and output channels, gated, hard-swish (else ReLU), stride; Tables 1 and 2 of arXiv:1905.02244
LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
# form: its blocks, channels of the last convolution, of the hidden linear layer
FORMS = {"large": (LARGE, 960, 1280), "small": (SMALL, 576, 1024)}
EPS = 1e-3


class MobileNetV3(nn.Module):
    """3x3 stem, inverted residuals, 1x1 head, global average pooling, two linear layers."""

    def __init__(self, form: str, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks, last, hidden = FORMS[form]
        unscaled, previous = 16, make_divisible(16 * width)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2, activation=nn.Hardswish, eps=EPS)]
        for kernel, inner, channels, gated, hard_swish, stride in blocks:
            # The expansion is a factor of the rounded input, as in the authors' code.
            inner = make_divisible(previous * inner / unscaled)
            gate = SqueezeExcite(inner, make_divisible(inner / 4), gate=nn.Hardsigmoid) if gated else None
            scaled = make_divisible(channels * width)
            activation = nn.Hardswish if hard_swish else nn.ReLU
            layers.append(InvertedResidual(previous, inner, scaled, kernel, stride, activation, gate, EPS))
            unscaled, previous = channels, scaled
        head = make_divisible(last * width)
        layers.append(conv_norm_act(previous, head, activation=nn.Hardswish, eps=EPS))
        self.features = nn.Sequential(*layers)
        # The hidden layer keeps its size at every width; the published parameters are met only then.
        self.classifier = nn.Sequential(
            nn.Linear(head, hidden), nn.Hardswish(inplace=True), nn.Linear(hidden, num_classes)
        )
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(global_pool(self.features(x)))
        return x


@register(
    "mobilenet_v3_large_x{width}",
    arguments={"form": "large"},
    source="no count published for this width",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_large_x0_75",
    arguments={"form": "large", "width": 0.75},
    params=3_993_528,
    madds_million=155,
    published="MobileNetV3-Large 0.75",
    source="TensorFlow slim",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_large_x1_0",
    aliases=("mobilenet_v3_large",),
    arguments={"form": "large", "width": 1.0},
    params=5_483_032,
    madds_million=217,
    published="MobileNetV3-Large 1.0",
    source="torchvision",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_large_x1_25",
    arguments={"form": "large", "width": 1.25},
    params=7_551_976,
    madds_million=355,
    published="MobileNetV3-Large 1.25",
    source="TensorFlow slim",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_small_x{width}",
    arguments={"form": "small"},
    source="no count published for this width",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_small_x0_75",
    arguments={"form": "small", "width": 0.75},
    params=2_041_872,
    madds_million=43,
    published="MobileNetV3-Small 0.75",
    source="TensorFlow slim",
    paper="arXiv:1905.02244",
)
@register(
    "mobilenet_v3_small_x1_0",
    aliases=("mobilenet_v3_small",),
    arguments={"form": "small", "width": 1.0},
    params=2_542_856,
    madds_million=57,
    published="MobileNetV3-Small 1.0",
    source="torchvision",
    paper="arXiv:1905.02244",
)
def mobilenet_v3(form: str, width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MobileNetV3 "large" or "small" with all channels times `width`, rounded to multiples of 8.

    Raises InvalidValue for a width of 0 or less or above 16.
    """
    check_width(width, (0.75, 1.0, 1.25))
    return MobileNetV3(form, width, num_classes, in_channels)
