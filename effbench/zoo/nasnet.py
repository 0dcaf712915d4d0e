"""Define NASNet-A: two searched cells, stacked. The table of the cells is the whole architecture.

The mobile form, 4 @ 1056, has four normal cells per stage and 1056 channels at the end. Convolutions are padded evenly
on both sides, while the authors' TensorFlow code pads even sizes on the right only; shapes and multiply-adds are the
same. In the authors' large form the cell after a reduction gets an input that is one cell older, at the same cost; here
it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from effbench.core.errors import InvalidValue
from effbench.zoo._blocks import global_pool, init_for_timing
from effbench.zoo._registry import register

# The five sums of a cell, each of two operations on earlier states: 0 the cell's input, 1 the input of the cell before,
# 2 to 6 the sums. "separable" is followed by its kernel. Figure 4 of arXiv:1707.07012, ordered as in the authors' code.
Sums = tuple[tuple[tuple[str, int], tuple[str, int]], ...]
NORMAL: Sums = (
    (("separable5", 0), ("separable3", 1)),
    (("separable5", 1), ("separable3", 1)),
    (("average", 0), ("same", 1)),
    (("average", 1), ("average", 1)),
    (("separable3", 0), ("same", 0)),
)
REDUCTION: Sums = (
    (("separable5", 0), ("separable7", 1)),
    (("largest", 0), ("separable7", 1)),
    (("average", 0), ("separable5", 1)),
    (("same", 3), ("average", 2)),
    (("separable3", 2), ("largest", 0)),
)
NORM_EPS = 1e-3


def pointwise(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return ReLU, 1x1 convolution and norm. The ReLU is not in place, because several operations read the states of a
    cell.
    """
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels, NORM_EPS),
    )


def separable(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Return ReLU, depthwise, 1x1 and norm, twice. The first depthwise convolution has the stride."""
    layers: list[nn.Module] = []
    for channels, step in ((in_channels, stride), (out_channels, 1)):
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, step, kernel // 2, groups=channels, bias=False),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, NORM_EPS),
        ]
    return nn.Sequential(*layers)


def operation(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return one side of a sum: (n, in, h, w) to (n, out, ceil(h / stride), ceil(w / stride))."""
    if name.startswith("separable"):
        return separable(in_channels, out_channels, int(name.removeprefix("separable")), stride)
    if name == "same":
        unchanged = stride == 1 and in_channels == out_channels
        return nn.Identity() if unchanged else pointwise(in_channels, out_channels, stride)
    pool: nn.Module = (
        nn.MaxPool2d(3, stride, 1) if name == "largest" else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    )
    if in_channels == out_channels:
        return pool
    norm = nn.BatchNorm2d(out_channels, NORM_EPS)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


class FactorizedReduction(nn.Module):
    """Two 1x1 convolutions on every second pixel, one shifted by a pixel, each to half of the channels. Halves h
    and w.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        halves = [nn.functional.avg_pool2d(state, 1, 2) for state in (x, shifted)]
        y: Tensor = self.norm(torch.cat((self.even(halves[0]), self.odd(halves[1])), dim=1))
        return y


class Kind(NamedTuple):
    """A kind of cell: its sums, the states that it concatenates, the channels of each, and its stride."""

    sums: Sums
    outputs: tuple[int, ...]
    channels: int
    stride: int


class Cell(nn.Module):
    """Five sums over two inputs, some of them concatenated.

    `before` gives the channels of the second input and whether it is twice as large. None uses that input as it is,
    which only the first cell of a network does: both of its inputs are the same tensor.
    """

    def __init__(self, kind: Kind, in_channels: int, before: tuple[int, bool] | None) -> None:
        super().__init__()
        sums, self.outputs, channels, stride = kind
        self.sources = tuple((left, right) for (_, left), (_, right) in sums)
        self.current = pointwise(in_channels, channels)
        widths = [channels, channels]
        self.before: nn.Module
        if before is None:
            self.before = nn.Identity()
            widths[1] = in_channels
        else:
            self.before = (FactorizedReduction if before[1] else pointwise)(before[0], channels)
        operations = []
        for pair in sums:
            for name, source in pair:
                # Sums already have the new size.
                from_input = source < 2
                operations.append(
                    operation(name, widths[source] if from_input else channels, channels, stride if from_input else 1)
                )
        self.operations = nn.ModuleList(operations)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        states = [self.current(x), self.before(before)]
        for at, (left, right) in enumerate(self.sources):
            states.append(self.operations[2 * at](states[left]) + self.operations[2 * at + 1](states[right]))
        return torch.cat([states[at] for at in self.outputs], dim=1)


class SearchedNet(nn.Module):
    """3x3 stem, cells that each read the two outputs before them, ReLU, global average pooling, linear classifier."""

    def __init__(self, kinds: Sequence[Kind], stem_channels: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, 2, bias=False), nn.BatchNorm2d(stem_channels, NORM_EPS)
        )
        cells = []
        previous = stem_channels
        before: tuple[int, bool] | None = None
        for kind in kinds:
            cells.append(Cell(kind, previous, before))
            before = (previous, kind.stride == 2)
            previous = len(kind.outputs) * kind.channels
        self.cells = nn.ModuleList(cells)
        self.fc = nn.Linear(previous, num_classes)
        # A sum of two terms doubles the variance that a convolution without a ReLU before it keeps.
        init_for_timing(self, rectified=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        before = x
        for cell in self.cells:
            x, before = cell(x, before), x
        x = self.fc(global_pool(torch.relu(x)))
        return x


@register(
    "nasnet_a",
    aliases=("nasnet_a_4_1056",),
    arguments={"repeat": 4, "penultimate": 1056, "stem_channels": 32},
    params=5_289_978,
    madds_million=564,
    published="NASNet-A 4@1056",
    source="ShuffleNetV2 paper, Table 8",
    paper="arXiv:1707.07012",
)
def nasnet_a(
    repeat: int = 4, penultimate: int = 1056, stem_channels: int = 32, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """Build NASNet-A with `repeat` normal cells per stage and `penultimate` channels before the classifier.

    Raises InvalidValue if `penultimate` is not divisible by 96.
    """
    if penultimate <= 0 or penultimate % 96:
        near = max(96, round(penultimate / 96) * 96)
        raise InvalidValue(f"`penultimate` (={penultimate}) must be divisible by 96: use {near}")
    filters = penultimate // 24
    kinds = [Kind(REDUCTION, (3, 4, 5, 6), filters // part, 2) for part in (4, 2)]
    for scale in (1, 2, 4):
        if scale > 1:
            kinds.append(Kind(REDUCTION, (3, 4, 5, 6), filters * scale, 2))
        kinds += [Kind(NORMAL, (1, 2, 3, 4, 5, 6), filters * scale, 1)] * repeat
    return SearchedNet(kinds, stem_channels, num_classes, in_channels)
