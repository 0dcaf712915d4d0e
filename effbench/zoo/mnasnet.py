"""Define MnasNet at any width: the plain form B1, as in torchvision, and the gated form A1 of the paper's figure."""

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

# form: rows of expansion, output channels, repeats, first stride, kernel, gated.
# A1 is Figure 7 of arXiv:1807.11626, B1 the authors' search without gates.
FORMS = {
    "a1": (
        (1, 16, 1, 1, 3, False),
        (6, 24, 2, 2, 3, False),
        (3, 40, 3, 2, 5, True),
        (6, 80, 4, 2, 3, False),
        (6, 112, 2, 1, 3, True),
        (6, 160, 3, 2, 5, True),
        (6, 320, 1, 1, 3, False),
    ),
    "b1": (
        (1, 16, 1, 1, 3, False),
        (3, 24, 3, 2, 3, False),
        (3, 40, 3, 2, 5, False),
        (6, 80, 3, 2, 5, False),
        (6, 96, 2, 1, 3, False),
        (6, 192, 4, 2, 5, False),
        (6, 320, 1, 1, 3, False),
    ),
}


class MnasNet(nn.Module):
    """3x3 stem, seven rows of inverted residuals, 1x1 head, global average pooling, linear classifier."""

    def __init__(self, form: str, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        previous = make_divisible(32 * width)
        layers: list[nn.Module] = [conv_norm_act(in_channels, previous, 3, 2)]
        for expansion, channels, repeat, first_stride, kernel, gated in FORMS[form]:
            scaled = make_divisible(channels * width)
            for position in range(repeat):
                inner = previous * expansion
                # A quarter of the block's input channels, not of the expanded ones that the gate scales.
                gate = SqueezeExcite(inner, previous // 4) if gated else None
                stride = first_stride if position == 0 else 1
                layers.append(InvertedResidual(previous, inner, scaled, kernel, stride, nn.ReLU, gate))
                previous = scaled
        # The head keeps its 1280 channels at every width, above 1.0 too.
        layers.append(conv_norm_act(previous, 1280))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(1280, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.features(x)))
        return x


@register(
    "mnasnet_x{width}",
    arguments={"form": "b1"},
    source="no count published for this width",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_x0_5",
    arguments={"form": "b1", "width": 0.5},
    params=2_218_512,
    madds_million=104,
    published="MNASNet-B1 0.5",
    source="torchvision",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_x0_75",
    arguments={"form": "b1", "width": 0.75},
    params=3_170_208,
    madds_million=215,
    published="MNASNet-B1 0.75",
    source="torchvision",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_x1_0",
    aliases=("mnasnet",),
    arguments={"form": "b1", "width": 1.0},
    params=4_383_312,
    madds_million=314,
    published="MNASNet-B1 1.0",
    source="torchvision",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_x1_3",
    arguments={"form": "b1", "width": 1.3},
    params=6_282_256,
    madds_million=526,
    published="MNASNet-B1 1.3",
    source="torchvision",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x{width}",
    arguments={"form": "a1"},
    source="no count published for this width",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x0_35",
    arguments={"form": "a1", "width": 0.35},
    params=1_747_018,
    madds_million=62,
    published="MNASNet-A1 0.35",
    source="tensorflow/tpu",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x0_5",
    arguments={"form": "a1", "width": 0.5},
    params=2_082_006,
    madds_million=103,
    published="MNASNet-A1 0.5",
    source="tensorflow/tpu",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x0_75",
    arguments={"form": "a1", "width": 0.75},
    params=2_912_278,
    madds_million=223,
    published="MNASNet-A1 0.75",
    source="tensorflow/tpu",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x1_0",
    aliases=("mnasnet_a1",),
    arguments={"form": "a1", "width": 1.0},
    params=3_887_038,
    madds_million=312,
    published="MNASNet-A1 1.0",
    source="tensorflow/tpu",
    paper="arXiv:1807.11626",
)
@register(
    "mnasnet_a1_x1_4",
    arguments={"form": "a1", "width": 1.4},
    params=6_105_992,
    madds_million=586,
    published="MNASNet-A1 1.4",
    source="tensorflow/tpu",
    paper="arXiv:1807.11626",
)
def mnasnet(form: str, width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MnasNet "a1" or "b1" with the channels of its blocks times `width`, rounded to multiples of 8.

    Raises InvalidValue for a width of 0 or less or above 16.
    """
    check_width(width, (0.35, 0.5, 0.75, 1.0, 1.3, 1.4))
    return MnasNet(form, width, num_classes, in_channels)
