"""Define LeNet-5 with every C3 map connected to all S2 maps, as the network is built today.

The 1998 form connects C3 sparsely, scales its pooling and ends in radial basis functions, which no library has. Dense
connections give 61,706 parameters instead of its 60,000.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import init_for_timing
from effbench.zoo._registry import register


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with average pooling, a third one that reduces 32x32 to one pixel, and two linear
    layers.

    Section II B of doi:10.1109/5.726791.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 120, 5),
            nn.Tanh(),
        )
        self.classifier = nn.Sequential(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes))
        init_for_timing(self, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(torch.flatten(self.features(x), 1))
        return x


@register(
    "lenet5",
    params=61_706,
    madds_million=0.41652,
    published="LeNet-5 (dense C3, no trainable pooling)",
    input_shape=(1, 32, 32),
    source="sum over the paper's layers",
    paper="doi:10.1109/5.726791",
)
def lenet5(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build LeNet-5 for images of exactly 32x32 pixels, grey-scale by default."""
    return LeNet5(num_classes, in_channels)
