"""Define PNASNet-5 mobile: one searched cell, stacked as in NASNet-A, with stride 2 where the size halves.

The authors' stem has no padding, which gives 587.3 M multiply-adds. With padding it would be 587.6 M, which rounds to
the 588 that papers print.
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
    """Build PNASNet-5 with `repeat` cells per stage and `filters` channels per sum in the first stage.

    Raises InvalidValue for fewer than 4 filters.
    """
    if filters < 4:
        raise InvalidValue(f"`filters` (={filters}) must be at least 4: use 54")
    kinds = [Kind(CELL, OUTPUTS, filters // part, 2) for part in (4, 2)]
    for scale in (1, 2, 4):
        for position in range(repeat):
            kinds.append(Kind(CELL, OUTPUTS, filters * scale, 2 if scale > 1 and position == 0 else 1))
    return SearchedNet(kinds, stem_channels, num_classes, in_channels)
