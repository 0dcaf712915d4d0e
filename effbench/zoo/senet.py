"""Define SE-ResNet for ImageNet, a ResNet with a gate at the end of each branch, and a pre-activation form for 32x32
images.

A bottleneck has its stride 2 in the 3x3 convolution, as in resnet; the paper's own counts have it in the first 1x1.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import SqueezeExcite, check_choice, global_pool, init_for_timing
from effbench.zoo._registry import register
from effbench.zoo.resnet import LAYOUTS, ResNet, Unit

REDUCTION = 16


class PreactivationUnit(nn.Module):
    """x + gate(branch(relu(norm(x)))), where branch is two 3x3 convolutions after their norms. Figure 4 (e) of
    arXiv:1603.05027.

    If the shape changes, a 1x1 convolution of relu(norm(x)) replaces x.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            SqueezeExcite(channels, channels // REDUCTION),
        )
        same_shape = stride == 1 and in_channels == channels
        self.project = None if same_shape else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.before(x)
        shortcut = x if self.project is None else self.project(ready)
        y: Tensor = shortcut + self.branch(ready)
        return y


class PreactivationSENet(nn.Module):
    """3x3 stem, four stages of two units, global average pooling, linear classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        units = []
        previous = 64
        for stage in range(4):
            channels = 64 * 2**stage
            for position in range(2):
                units.append(PreactivationUnit(previous, channels, 2 if stage > 0 and position == 0 else 1))
                previous = channels
        self.stages = nn.Sequential(*units)
        self.fc = nn.Linear(previous, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.stages(self.stem(x))))
        return x


@register(
    "se_resnet18",
    arguments={"depth": 18},
    params=11_778_592,
    madds_million=1814,
    published="SE-ResNet-18",
    source="imgclsmob (parameters); torchvision's ResNet plus the gates",
    paper="arXiv:1709.01507",
)
@register(
    "se_resnet34",
    arguments={"depth": 34},
    params=21_958_868,
    madds_million=3664,
    published="SE-ResNet-34",
    source="timm (parameters); torchvision's ResNet plus the gates",
    paper="arXiv:1709.01507",
)
@register(
    "se_resnet50",
    arguments={"depth": 50},
    params=28_088_024,
    madds_million=4092,
    published="SE-ResNet-50",
    source="imgclsmob (parameters); torchvision's ResNet plus the gates",
    paper="arXiv:1709.01507",
)
@register(
    "se_resnet101",
    arguments={"depth": 101},
    params=49_326_872,
    madds_million=7806,
    published="SE-ResNet-101",
    source="imgclsmob (parameters); torchvision's ResNet plus the gates",
    paper="arXiv:1709.01507",
)
@register(
    "se_resnet152",
    arguments={"depth": 152},
    params=66_821_848,
    madds_million=11520,
    published="SE-ResNet-152",
    source="imgclsmob (parameters); torchvision's ResNet plus the gates",
    paper="arXiv:1709.01507",
)
def se_resnet(depth: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build the ResNet of this depth with a squeeze-and-excitation gate, reduction 16, at the end of each branch.

    Raises InvalidValue for a depth without a published layout.
    """
    check_choice("depth", depth, tuple(LAYOUTS))
    network = ResNet(depth, num_classes, in_channels)
    for unit in [layer for layer in network.modules() if isinstance(layer, Unit)]:
        *_, norm = (layer for layer in unit.branch.modules() if isinstance(layer, nn.BatchNorm2d))
        unit.branch.append(SqueezeExcite(norm.num_features, norm.num_features // REDUCTION))
    return network


@register(
    "senet18_preact_cifar",
    params=11_260_354,
    madds_million=556,
    input_shape=(3, 32, 32),
    min_pixels=8,
    source="kuangliu/pytorch-cifar (parameters)",
    paper="arXiv:1709.01507",
)
def senet18_preact_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a pre-activation SE-ResNet-18 for 32x32 images."""
    return PreactivationSENet(num_classes, in_channels)
