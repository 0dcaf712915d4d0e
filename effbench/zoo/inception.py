"""Define Inception v3 without its auxiliary head: 5x5 and 7x7 convolutions are factorised into smaller ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from effbench.zoo._blocks import conv_norm_act, global_pool, init_for_timing
from effbench.zoo._registry import register

unit = partial(conv_norm_act, eps=0.001)
shrink = partial(unit, kernel=3, stride=2, padded=False)


class Branches(nn.Module):
    """Parallel branches on one input, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    return chain(nn.AvgPool2d(3, 1, 1), unit(in_channels, out_channels))


def fine(c: int, pool_channels: int) -> tuple[Branches, int]:
    """Return a module with two 3x3 in place of a 5x5 and its output channels. Figure 5 of arXiv:1512.00567."""
    module = Branches(
        unit(c, 64),
        chain(unit(c, 48), unit(48, 64, 5)),
        chain(unit(c, 64), unit(64, 96, 3), unit(96, 96, 3)),
        pooled(c, pool_channels),
    )
    return module, 64 + 64 + 96 + pool_channels


def fine_to_middle(c: int) -> tuple[Branches, int]:
    """Return a module that halves h and w, by strides in two branches and max pooling in the third. Figure 10."""
    module = Branches(
        shrink(c, 384),
        chain(unit(c, 64), unit(64, 96, 3), shrink(96, 96)),
        nn.MaxPool2d(3, 2),
    )
    return module, 384 + 96 + c


def middle(c: int, m: int) -> tuple[Branches, int]:
    """Return a module with 1x7 and 7x1 in place of 7x7 and `m` inner channels. Figure 6."""
    module = Branches(
        unit(c, 192),
        chain(unit(c, m), unit(m, m, (1, 7)), unit(m, 192, (7, 1))),
        chain(unit(c, m), unit(m, m, (7, 1)), unit(m, m, (1, 7)), unit(m, m, (7, 1)), unit(m, 192, (1, 7))),
        pooled(c, 192),
    )
    return module, 4 * 192


def middle_to_coarse(c: int) -> tuple[Branches, int]:
    """Return a module that halves h and w as `fine_to_middle` does."""
    module = Branches(
        chain(unit(c, 192), shrink(192, 320)),
        chain(unit(c, 192), unit(192, 192, (1, 7)), unit(192, 192, (7, 1)), shrink(192, 192)),
        nn.MaxPool2d(3, 2),
    )
    return module, 320 + 192 + c


def coarse(c: int) -> tuple[Branches, int]:
    """Return a module with parallel 1x3 and 3x1 in place of a 3x3. Figure 7."""

    def cross() -> Branches:
        return Branches(unit(384, 384, (1, 3)), unit(384, 384, (3, 1)))

    module = Branches(
        unit(c, 320),
        chain(unit(c, 384), cross()),
        chain(unit(c, 448), unit(448, 384, 3), cross()),
        pooled(c, 192),
    )
    return module, 320 + 2 * 384 + 2 * 384 + 192


class InceptionV3(nn.Module):
    """Stem of six convolutions, eleven inception modules, global average pooling, linear classifier. Table 1."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = chain(
            shrink(in_channels, 32),
            unit(32, 32, 3, padded=False),
            unit(32, 64, 3),
            nn.MaxPool2d(3, 2),
            unit(64, 80),
            unit(80, 192, 3, padded=False),
            nn.MaxPool2d(3, 2),
        )
        layers: list[nn.Module] = []
        c = 192
        builders: tuple[Callable[[int], tuple[Branches, int]], ...] = (
            *(partial(fine, pool_channels=channels) for channels in (32, 64, 64)),
            fine_to_middle,
            *(partial(middle, m=channels) for channels in (128, 160, 160, 192)),
            middle_to_coarse,
            coarse,
            coarse,
        )
        for build in builders:
            module, c = build(c)
            layers.append(module)
        self.layers = chain(*layers)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(c, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.dropout(global_pool(self.layers(self.stem(x)))))
        return x


@register(
    "inception_v3",
    params=23_834_568,
    madds_million=5713,
    published="Inception v3",
    input_shape=(3, 299, 299),
    min_pixels=75,
    source="torchvision, its auxiliary head left out of the parameters",
    paper="arXiv:1512.00567",
)
def inception_v3(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build Inception v3 for images of 299x299 pixels; any size from 75x75 works."""
    return InceptionV3(num_classes, in_channels)
