"""Define Xception for 299x299 images, and the light form of ShuffleNetV2's full-model table at 224x224.

No paper prints the light form's unit and widths. Ours are those of Xception39 (arXiv:1808.00897, authors' code: stem 8,
stages 64, 128, 256, three separable convolutions per unit), with the stages widened 2, 3 and 4 times after the stem of
24 that Table 7 of arXiv:1711.07264 prints. That gives 40, 145, 305 and 525 M multiply-adds, the four figures of
ShuffleNetV2's Table 8, and the receptive field of 7 that its text mentions. The stages of that Table 7 itself (144,
288, 576 for 145 M) would cost this unit 179 M; no unit that we tried met all four figures with them.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import check_choice, conv_norm_act, global_pool, init_for_timing
from effbench.zoo._registry import register

# input and output channels, number of separable convolutions, stride, whether the first convolution changes the number
# of channels (else the last); Figure 5 of arXiv:1610.02357
BLOCKS = (
    (64, 128, 2, 2, True),
    (128, 256, 2, 2, True),
    (256, 728, 2, 2, True),
    *((728, 728, 3, 1, True),) * 8,
    (728, 1024, 2, 2, False),
)
# width: channels of the stem and of the three stages
LIGHT_CHANNELS = {
    0.5: (8, 64, 128, 256),
    1.0: (24, 128, 256, 512),
    1.5: (24, 192, 384, 768),
    2.0: (24, 256, 512, 1024),
}
LIGHT_REPEATS = (4, 8, 4)


def separable(
    in_channels: int, out_channels: int, stride: int = 1, activation: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return a 3x3 depthwise and a 1x1 convolution with nothing between them, then norm and, unless None, an
    activation.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        conv_norm_act(in_channels, out_channels, activation=activation),
    )


class Block(nn.Module):
    """shortcut(x) + branch(relu(x)): two or three separable convolutions and, at stride 2, max pooling."""

    def __init__(
        self, in_channels: int, out_channels: int, repeat: int, stride: int, widens_first: bool, activated: bool = True
    ) -> None:
        super().__init__()
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same_shape else conv_norm_act(in_channels, out_channels, 1, stride, activation=None)
        )
        # Not in place: the shortcut reads the same x.
        layers: list[nn.Module] = [nn.ReLU()] if activated else []
        inner = out_channels if widens_first else in_channels
        widths = (in_channels, *(inner,) * (repeat - 1), out_channels)
        for position in range(repeat):
            last = position == repeat - 1
            layers.append(separable(widths[position], widths[position + 1], activation=None if last else nn.ReLU))
        if stride == 2:
            layers.append(nn.MaxPool2d(3, 2, 1))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.branch(x)
        return y


class Xception(nn.Module):
    """Two unpadded 3x3 convolutions, twelve blocks, two separable convolutions, global average pooling, classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm_act(in_channels, 32, 3, 2, padded=False), conv_norm_act(32, 64, 3, padded=False)
        )
        # The first block's input is already activated by the stem.
        self.blocks = nn.Sequential(*(Block(*block, activated=at > 0) for at, block in enumerate(BLOCKS)))
        self.head = nn.Sequential(separable(1024, 1536), separable(1536, 2048))
        self.fc = nn.Linear(2048, num_classes)
        # There is no activation between depthwise and 1x1 that would halve the variance.
        init_for_timing(self, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.head(self.blocks(self.stem(x)))))
        return x


class LightUnit(nn.Module):
    """relu(shortcut(x) + branch(x)), where branch is three separable convolutions to 1/4, 1/4 and all output
    channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.branch = nn.Sequential(
            separable(in_channels, inner, stride),
            separable(inner, inner),
            separable(inner, out_channels, activation=None),
        )
        self.shortcut = (
            nn.Identity() if stride == 1 else conv_norm_act(in_channels, out_channels, 1, stride, activation=None)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.shortcut(x) + self.branch(x))
        return x


class LightXception(nn.Module):
    """3x3 stem, max pooling, three stages of units, global average pooling, linear classifier."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        previous, *stages = LIGHT_CHANNELS[width]
        self.stem = conv_norm_act(in_channels, previous, 3, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        units = []
        for channels, repeat in zip(stages, LIGHT_REPEATS, strict=True):
            for position in range(repeat):
                units.append(LightUnit(previous, channels, 2 if position == 0 else 1))
                previous = channels
        self.stages = nn.Sequential(*units)
        self.fc = nn.Linear(previous, num_classes)
        init_for_timing(self, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.stages(self.pool(self.stem(x)))))
        return x


@register(
    "xception",
    params=22_855_952,
    madds_million=8357,
    published="Xception",
    input_shape=(3, 299, 299),
    source="Table 3 of the paper (parameters)",
    paper="arXiv:1610.02357",
)
def xception(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build Chollet's Xception."""
    return Xception(num_classes, in_channels)


@register(
    "xception_light_x{width}",
    source="no layout published for this width",
    paper="arXiv:1807.11164",
)
@register(
    "xception_light_x0_5",
    arguments={"width": 0.5},
    params=554_648,
    madds_million=40,
    source="Table 8 of arXiv:1807.11164, widths reconstructed",
    paper="arXiv:1807.11164",
)
@register(
    "xception_light_x1_0",
    aliases=("xception_light",),
    arguments={"width": 1.0},
    params=1_631_352,
    madds_million=145,
    published="Xception (Light-Head R-CNN variant) 1x",
    source="Table 8 of arXiv:1807.11164, widths reconstructed",
    paper="arXiv:1807.11164",
)
@register(
    "xception_light_x1_5",
    arguments={"width": 1.5},
    params=3_226_360,
    madds_million=305,
    source="Table 8 of arXiv:1807.11164, widths reconstructed",
    paper="arXiv:1807.11164",
)
@register(
    "xception_light_x2_0",
    arguments={"width": 2.0},
    params=5_341_560,
    madds_million=525,
    source="Table 8 of arXiv:1807.11164, widths reconstructed",
    paper="arXiv:1807.11164",
)
def xception_light(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build the light Xception, whose layout is reconstructed (see the top of this file).

    Raises InvalidValue for a width outside of ShuffleNetV2's table.
    """
    check_choice("width", width, tuple(LIGHT_CHANNELS))
    return LightXception(width, num_classes, in_channels)
