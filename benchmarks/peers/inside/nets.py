"""Define twelve small networks of a user, each able to do real extra work in its forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXTRA: dict[str, int] = {}


class Net(nn.Module):
    """Convolutions that keep the shape, followed by `extra` small additions.

    (n, width, 28, 28) to the same shape.
    """

    small: Tensor

    def __init__(self, width: int, kernel: int, groups: int, layers: int, extra: int = 0) -> None:
        super().__init__()
        convolutions = [
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False) for _ in range(layers)
        ]
        self.layers = nn.Sequential(*convolutions)
        self.extra = extra
        self.register_buffer("small", torch.ones(256))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        total = self.small
        for _ in range(self.extra):
            total = torch.add(total, 1.0)
        return y


NETS = {
    "dense_a": (64, 1, 1, 16),
    "dense_b": (96, 1, 1, 8),
    "dense_c": (128, 1, 1, 6),
    "wide_a": (32, 3, 1, 6),
    "wide_b": (64, 3, 1, 2),
    "wide_c": (48, 5, 1, 1),
    "grouped_a": (64, 1, 4, 16),
    "grouped_b": (128, 1, 8, 8),
    "grouped_c": (64, 3, 4, 3),
    "depthwise_a": (128, 3, 128, 8),
    "depthwise_b": (256, 3, 256, 4),
    "depthwise_c": (64, 5, 64, 8),
}


def build(name: str = "dense_a") -> Net:
    return Net(*NETS[name], extra=EXTRA.get(name, 0))
