"""Define Network in Network: mlpconv blocks, and average pooling in place of linear layers, for ImageNet and
CIFAR-10.
"""

from __future__ import annotations

from torch import Tensor, nn

from effbench.zoo._blocks import global_pool, init_for_timing
from effbench.zoo._registry import register


def mlpconv(in_channels: int, widths: tuple[int, int, int], kernel: int, stride: int = 1) -> list[nn.Module]:
    """Return a convolution and two 1x1 convolutions, a small perceptron at each position. Section 3.1 of
    arXiv:1312.4400.

    Keeps h and w at stride 1; a strided first layer is not padded.
    """
    padding = kernel // 2 if stride == 1 else 0
    first, second, third = widths
    return [
        nn.Conv2d(in_channels, first, kernel, stride, padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, third, 1),
        nn.ReLU(inplace=True),
    ]


class NiN(nn.Module):
    """mlpconv blocks with pooling between, then global average pooling of the last block, which has one map per
    class.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        return global_pool(self.features(x))


@register(
    "nin",
    params=7_595_176,
    madds_million=1100.2,
    published="NiN (ImageNet, Caffe)",
    min_pixels=39,
    source="the authors' Caffe definition",
    paper="arXiv:1312.4400",
)
def nin(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build the four blocks of the authors' Caffe definition for ImageNet. Caffe's pooling keeps the last odd
    column.
    """
    return NiN(
        *mlpconv(in_channels, (96, 96, 96), 11, 4),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *mlpconv(96, (256, 256, 256), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *mlpconv(256, (384, 384, 384), 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(),
        *mlpconv(384, (1024, 1024, num_classes), 3),
    )


@register(
    "nin_cifar",
    params=966_986,
    madds_million=222,
    published="NiN (CIFAR-10)",
    input_shape=(3, 32, 32),
    source="imgclsmob (parameters)",
    paper="arXiv:1312.4400",
)
def nin_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build the three blocks of the authors' Caffe definition for CIFAR-10."""
    return NiN(
        *mlpconv(in_channels, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(),
        *mlpconv(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(),
        *mlpconv(192, (192, 192, num_classes), 3),
    )
