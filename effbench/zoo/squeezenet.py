"""Define SqueezeNet 1.0 and 1.1: fire modules without norm, and a convolution as the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import check_choice, global_pool, init_for_timing
from effbench.zoo._registry import register

# version: stem channels and kernel, and the numbers of the fire modules that pooling follows; Table 1 of
# arXiv:1602.07360, and the authors' later 1.1, whose cheaper stem and earlier pooling save nearly 60 % of the
# multiply-adds
VERSIONS = {1.0: (96, 7, (3, 7)), 1.1: (64, 3, (2, 4))}
# squeezed channels; each of a fire module's two branches expands them four times
SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then parallel 1x1 and 3x3 convolutions, concatenated. Figure 1 of the
    paper.
    """

    def __init__(self, in_channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.left = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.right = nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat((self.relu(self.left(x)), self.relu(self.right(x))), dim=1)


class SqueezeNet(nn.Module):
    """Stem, eight fire modules, 1x1 convolution to the classes, global average pooling."""

    def __init__(self, version: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        previous, kernel, pooled_after = VERSIONS[version]
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, previous, kernel, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        ]
        for position, squeezed in enumerate(SQUEEZED, start=1):
            layers.append(Fire(previous, squeezed))
            previous = 8 * squeezed
            if position in pooled_after:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(previous, num_classes, 1), nn.ReLU(inplace=True))
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        return global_pool(self.classifier(self.features(x)))


@register(
    "squeezenet1_0",
    arguments={"version": 1.0},
    params=1_248_424,
    madds_million=819,
    published="SqueezeNet 1.0",
    source="torchvision",
    paper="arXiv:1602.07360",
)
@register(
    "squeezenet1_1",
    arguments={"version": 1.1},
    params=1_235_496,
    madds_million=349,
    published="SqueezeNet 1.1",
    source="torchvision",
    paper="arXiv:1602.07360",
)
def squeezenet(version: float, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build SqueezeNet 1.0 or 1.1. Raises InvalidValue for another version."""
    check_choice("version", version, tuple(VERSIONS))
    return SqueezeNet(version, num_classes, in_channels)
