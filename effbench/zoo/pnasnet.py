"""PNASNet-5 for phones: one searched cell, stacked as in NASNet-A, at stride 2 where the size halves.

With the authors' stem, which pads nothing, it takes 587.3 M multiply-adds; a padded one would take 587.6, which rounds
to the 588 that papers print.
"""

from __future__ import annotations

from torch import nn

from effbench.core.errors import InvalidValue
from effbench.zoo._registry import register
from effbench.zoo.nasnet import Kind, SearchedNet, Sums

# Figure 1 of arXiv:1712.00559, in the order of the authors' code
CELL: Sums = (
    (("separable5", 1), ("largest", 1)),
    (("separable7", 0), ("largest", 0)),
    (("separable5", 0), ("separable3", 0)),
    (("separable3", 4), ("largest", 0)),
    (("separable3", 1), ("same", 0)),
)
OUTPUTS = (2, 3, 4, 5, 6)


@register(
    "pnasnet5_mobile",
    aliases=("pnasnet5",),
    arguments={"filters": 54, "repeat": 3, "stem_channels": 32},
    params=5_064_487,
    madds_million=587,
    published="PNASNet-5 mobile",
    source="ShuffleNetV2 paper, Table 8, which prints 588",
    paper="arXiv:1712.00559",
)
def pnasnet5(
    filters: int = 54, repeat: int = 3, stem_channels: int = 32, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """PNASNet-5 of `repeat` cells a stage, the first stage's of `filters` channels a sum.

    Raises InvalidValue for fewer than 4.
    """
    if filters < 4:
        raise InvalidValue(f"`filters` (={filters}) must be at least 4: use 54")
    kinds = [Kind(CELL, OUTPUTS, filters // part, 2) for part in (4, 2)]
    for scale in (1, 2, 4):
        for position in range(repeat):
            kinds.append(Kind(CELL, OUTPUTS, filters * scale, 2 if scale > 1 and position == 0 else 1))
    return SearchedNet(kinds, stem_channels, num_classes, in_channels)
