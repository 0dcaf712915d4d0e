"""Define ShuffleNetV1 with 1, 2, 3, 4 or 8 groups at any width, and a form for 32x32 images.

The shuffle precedes the depthwise convolution, as in Figure 2 of the paper. The authors' code shuffles after it. Both
compute the same function up to the order of channels, with the same multiply-adds. Table 1 of the paper counts
convolutions only: without the classifier all five of its figures are met to the digit.

ShuffleNetV1-50 of the ShuffleNetV2 paper's Table 6 is left out. Its 64 stem channels leave 296 of the first unit's 360
channels to three groups, which do not divide 296. The inner widths in its caption give 1.15 G, half of what it prints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import channel_shuffle, check_choice, check_width, conv_norm_act, global_pool, make_divisible
from effbench.zoo._registry import register

# groups: output channels of stage 2 at 1.0x, doubled in stages 3 and 4; Table 1 of arXiv:1707.01083
STAGE_2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
REPEATS = (4, 8, 4)


class Unit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added to the input or, at stride 2, concatenated to its average
    pool.

    The inner width is a quarter of the unit's output. `first_groups` is 1 in the first unit of stage 2, whose input has
    too few channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inner = out_channels // 4
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        self.groups = groups
        self.compress = conv_norm_act(in_channels, inner, groups=first_groups)
        self.depthwise = conv_norm_act(inner, inner, 3, stride, groups=inner, activation=None)
        self.expand = conv_norm_act(inner, branch_channels, groups=groups, activation=None)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.compress(x)
        if self.groups > 1:
            y = channel_shuffle(y, self.groups)
        y = self.expand(self.depthwise(y))
        y = x + y if self.pool is None else torch.cat((self.pool(x), y), dim=1)
        y = self.relu(y)
        return y


class ShuffleNetV1(nn.Module):
    """3x3 stem, max pooling, three stages of units, global average pooling, linear classifier.

    With `small_images` the stem has stride 1 and is not followed by pooling.
    """

    def __init__(self, groups: int, width: float, small_images: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        # Stem widths of the authors' code: 12 or 16 at 0.5, 24 at 1.0 and at 1.5, 48 at 2.0.
        stem = 24 * width if width < 1 else 24 * int(width)
        previous = -(-int(stem) // groups) * groups
        # The inner width, a quarter of it, is grouped. Only 2 and 4 groups at fractional widths need the rounding.
        channels = make_divisible(STAGE_2[groups] * width, 4 * groups)
        self.stem = conv_norm_act(in_channels, previous, 3, 1 if small_images else 2)
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        units: list[nn.Module] = []
        for repeat in REPEATS:
            for position in range(repeat):
                stride = 2 if position == 0 else 1
                units.append(Unit(previous, channels, stride, groups, groups if units else 1))
                previous = channels
            channels *= 2
        self.stages = nn.Sequential(*units)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.stages(self.pool(self.stem(x)))))
        return x


@register("shufflenet_v1_g{groups}_x{width}", paper="arXiv:1707.01083", source="no count published for this form")
@register(
    "shufflenet_v1_g{groups}",
    arguments={"width": 1.0},
    paper="arXiv:1707.01083",
    source="no count published for this form",
)
@register(
    "shufflenet_v1_x{width}",
    arguments={"groups": 3},
    paper="arXiv:1707.01083",
    source="no count published for this form",
)
@register(
    "shufflenet_v1_g1_x0_25",
    arguments={"groups": 1, "width": 0.25},
    params=209_746,
    madds_million=11,
    source="imgclsmob, parameters only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g1_x0_5",
    arguments={"groups": 1, "width": 0.5},
    params=534_484,
    madds_million=39,
    source="imgclsmob, parameters only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g1_x1_0",
    arguments={"groups": 1, "width": 1.0},
    params=1_531_936,
    madds_million=143,
    published="ShuffleNetV1 1.0x g=1",
    counts="conv",
    source="ShuffleNetV1 paper, Table 1, convolutions only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g2_x1_0",
    arguments={"groups": 2, "width": 1.0},
    params=1_733_848,
    madds_million=140,
    published="ShuffleNetV1 1.0x g=2",
    counts="conv",
    source="ShuffleNetV1 paper, Table 1, convolutions only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_x0_25",
    arguments={"groups": 3, "width": 0.25},
    params=305_902,
    madds_million=11,
    source="imgclsmob, parameters only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_x0_5",
    arguments={"groups": 3, "width": 0.5},
    params=718_324,
    madds_million=38,
    published="ShuffleNetV1 0.5x g=3",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_x1_0",
    aliases=("shufflenet_v1",),
    arguments={"groups": 3, "width": 1.0},
    params=1_865_728,
    madds_million=137,
    published="ShuffleNetV1 1.0x g=3",
    counts="conv",
    source="ShuffleNetV1 paper, Table 1, convolutions only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_x1_5",
    arguments={"groups": 3, "width": 1.5},
    params=3_442_168,
    madds_million=292,
    published="ShuffleNetV1 1.5x g=3",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_x2_0",
    arguments={"groups": 3, "width": 2.0},
    params=5_450_776,
    madds_million=524,
    published="ShuffleNetV1 2.0x g=3",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g4_x1_0",
    arguments={"groups": 4, "width": 1.0},
    params=1_968_344,
    madds_million=133,
    published="ShuffleNetV1 1.0x g=4",
    counts="conv",
    source="ShuffleNetV1 paper, Table 1, convolutions only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g8_x0_5",
    arguments={"groups": 8, "width": 0.5},
    params=1_011_448,
    madds_million=40,
    published="ShuffleNetV1 0.5x g=8",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g8_x1_0",
    arguments={"groups": 8, "width": 1.0},
    params=2_434_768,
    madds_million=137,
    published="ShuffleNetV1 1.0x g=8",
    counts="conv",
    source="ShuffleNetV1 paper, Table 1, convolutions only",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g8_x1_5",
    arguments={"groups": 8, "width": 1.5},
    params=4_269_952,
    madds_million=290,
    published="ShuffleNetV1 1.5x g=8",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g8_x2_0",
    arguments={"groups": 8, "width": 2.0},
    params=6_522_232,
    madds_million=522,
    published="ShuffleNetV1 2.0x g=8",
    source="the authors' repository",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g2_cifar",
    arguments={"groups": 2, "small_images": True, "num_classes": 10},
    input_shape=(3, 32, 32),
    source="no count published for this form",
    paper="arXiv:1707.01083",
)
@register(
    "shufflenet_v1_g3_cifar",
    aliases=("shufflenet_v1_cifar",),
    arguments={"groups": 3, "small_images": True, "num_classes": 10},
    params=914_338,
    madds_million=43,
    input_shape=(3, 32, 32),
    source="pytorch-cifar100, parameters only: 1.0 M with 100 classes",
    paper="arXiv:1707.01083",
)
def shufflenet_v1(
    groups: int = 3, width: float = 1.0, small_images: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """Build ShuffleNetV1 with channels times `width`, rounded to what `groups` divides; `small_images` builds the CIFAR
    form.

    Raises InvalidValue for other `groups`, or a width of 0 or less or above 16.
    """
    check_choice("groups", groups, tuple(STAGE_2))
    check_width(width, (0.25, 0.5, 1.0, 1.5, 2.0))
    return ShuffleNetV1(groups, width, small_images, num_classes, in_channels)
