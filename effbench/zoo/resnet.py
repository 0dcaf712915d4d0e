"""Define ResNet-18, 34, 50, 101 and 152 for ImageNet, and forms for 32x32 images.

A bottleneck has its stride 2 in the 3x3 convolution, as in torchvision, which gives ResNet-50 its 4.09 G multiply-adds.
The paper's own 3.8 G has it in the first 1x1.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import check_choice, conv_norm_act, global_pool
from effbench.zoo._registry import register

# depth: (bottleneck, units in each of the four stages); Table 1 of arXiv:1512.03385
LAYOUTS = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}


class Unit(nn.Module):
    """relu(branch(x) + shortcut(x)), where branch is two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the
    channels.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out_channels = 4 * channels if bottleneck else channels
        if bottleneck:
            self.branch = nn.Sequential(
                conv_norm_act(in_channels, channels),
                conv_norm_act(channels, channels, 3, stride),
                conv_norm_act(channels, out_channels, activation=None),
            )
        else:
            self.branch = nn.Sequential(
                conv_norm_act(in_channels, channels, 3, stride),
                conv_norm_act(channels, out_channels, 3, activation=None),
            )
        # The shortcut is a projection if and only if the shape changes.
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same_shape else conv_norm_act(in_channels, out_channels, 1, stride, activation=None)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.branch(x) + self.shortcut(x))
        return x


class ResNet(nn.Module):
    """7x7 stem, max pooling, four stages of units, global average pooling, linear classifier.

    With `small_images` the stem is 3x3 at stride 1, without pooling.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, small_images: bool = False) -> None:
        super().__init__()
        bottleneck, repeats = LAYOUTS[depth]
        self.stem = conv_norm_act(in_channels, 64, 3) if small_images else conv_norm_act(in_channels, 64, 7, 2)
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        units = []
        previous = 64
        for stage, repeat in enumerate(repeats):
            channels = 64 * 2**stage
            for position in range(repeat):
                units.append(Unit(previous, channels, 2 if stage > 0 and position == 0 else 1, bottleneck))
                previous = 4 * channels if bottleneck else channels
        self.stages = nn.Sequential(*units)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.stages(self.pool(self.stem(x)))))
        return x


@register(
    "resnet18",
    arguments={"depth": 18},
    params=11_689_512,
    madds_million=1814,
    published="ResNet-18",
    source="torchvision",
    paper="arXiv:1512.03385",
)
@register(
    "resnet34",
    arguments={"depth": 34},
    params=21_797_672,
    madds_million=3664,
    published="ResNet-34",
    source="torchvision",
    paper="arXiv:1512.03385",
)
@register(
    "resnet50",
    arguments={"depth": 50},
    params=25_557_032,
    madds_million=4089,
    published="ResNet-50",
    source="torchvision",
    paper="arXiv:1512.03385",
)
@register(
    "resnet101",
    arguments={"depth": 101},
    params=44_549_160,
    madds_million=7801,
    published="ResNet-101",
    source="torchvision",
    paper="arXiv:1512.03385",
)
@register(
    "resnet152",
    arguments={"depth": 152},
    params=60_192_808,
    madds_million=11514,
    published="ResNet-152",
    source="torchvision",
    paper="arXiv:1512.03385",
)
def resnet(depth: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build a ResNet of this depth. Raises InvalidValue for a depth without a published layout."""
    check_choice("depth", depth, tuple(LAYOUTS))
    return ResNet(depth, num_classes, in_channels)


@register(
    "resnet18_cifar",
    arguments={"depth": 18},
    params=11_173_962,
    madds_million=555,
    input_shape=(3, 32, 32),
    source="public tables of PyTorch CIFAR-10 networks, norms left out",
    paper="arXiv:1512.03385",
)
@register(
    "resnet152_cifar",
    arguments={"depth": 152},
    params=58_156_618,
    madds_million=3722,
    input_shape=(3, 32, 32),
    source="public tables of PyTorch CIFAR-10 networks; multiply-adds summed over the layout",
    paper="arXiv:1512.03385",
)
def resnet_cifar(depth: int, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a ResNet of this ImageNet layout for the 32x32 images of CIFAR-10 (not the paper's own narrow CIFAR
    networks).

    Raises InvalidValue for a depth without a published layout.
    """
    check_choice("depth", depth, tuple(LAYOUTS))
    return ResNet(depth, num_classes, in_channels, small_images=True)
