"""Define AlexNet in one tower, as in torchvision: 64 to 384 channels, no groups, no response normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import init_for_timing
from effbench.zoo._registry import register


def conv_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel, stride, padding), nn.ReLU(inplace=True)]


class AlexNet(nn.Module):
    """Five convolutions with max pooling after the first, second and fifth, then three linear layers. Section 3.5 of
    the paper.

    The average pooling to 6x6 does nothing at 224x224 and makes other sizes possible.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_relu(in_channels, 64, 11, 4, 2),
            nn.MaxPool2d(3, 2),
            *conv_relu(64, 192, 5, 1, 2),
            nn.MaxPool2d(3, 2),
            *conv_relu(192, 384, 3),
            *conv_relu(384, 256, 3),
            *conv_relu(256, 256, 3),
            nn.MaxPool2d(3, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return x


@register(
    "alexnet",
    params=61_100_840,
    madds_million=714,
    published="AlexNet",
    min_pixels=63,
    source="torchvision",
    paper="arXiv:1404.5997",
)
def alexnet(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """AlexNet in one tower."""
    return AlexNet(num_classes, in_channels)
