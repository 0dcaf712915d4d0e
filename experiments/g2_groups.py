"""G2: do more groups slow a 1x1 convolution down, at equal multiply-adds?"""

from __future__ import annotations

import sys
from itertools import product

from effbench.core.study import Case, Claim, Experiment
from effbench.zoo import equal_cost

# Widths at x1 for 1, 2, 4 and 8 groups, Table 2 of arXiv:1807.11164; its 180 for 8 groups on ARM is a typo for 184.
WIDTHS = {"GPU": {1: 128, 2: 180, 4: 256, 8: 360}, "ARM": {1: 64, 2: 90, 4: 128, 8: 184}}
SCALES = {"x1": 1, "x2": 2, "x4": 4}
BLOCKS = 10


def case(channels: str, scale: str, groups: int, block: str, widths: str) -> Case:
    width = WIDTHS[channels][groups] * SCALES[scale]
    if widths == "equal":
        (width,) = equal_cost.groups(WIDTHS[channels][1] * SCALES[scale], groups).channels
    return Case(
        "probe_groups",
        (width, 56, 56),
        {"channels": width, "groups": groups, "blocks": BLOCKS, "block": block},
        labels={"channels": channels, "scale": scale, "groups": groups, "block": block, "widths": widths},
    )


EXPERIMENT = Experiment(
    name="g2_groups",
    title="G2: group convolution",
    claim="At equal multiply-adds, more groups run slower, because the wider feature maps move more memory.",
    factor="groups",
    levels=(1, 2, 4, 8),
    reference=1,
    cases=tuple(
        case(*labels) for labels in product(WIDTHS, SCALES, (1, 2, 4, 8), ("conv", "conv_bn_relu"), ("paper", "equal"))
    ),
    claims=(
        Claim(
            "groups are slower", "Every number of groups runs slower than 1.", ((2, 1), (4, 1), (8, 1)), headline=(8, 1)
        ),
        Claim(
            "time grows with groups",
            "Each doubling of the groups runs slower than the step before.",
            ((2, 1), (4, 2), (8, 4)),
            headline=(8, 1),
        ),
    ),
    defaults={"channels": {"cuda": "GPU", "cpu": "ARM"}, "block": "conv", "widths": "paper"},
    paper="g2_groups",
    notes=(
        "block=conv is the default: the paper's figures draw bare convolutions, and a fused framework folds the norms.",
        "widths=paper are the printed widths times the scale. On ARM the printed 180 for 8 groups is not divisible by "
        "8; an author calls it a typo for 184, which is used and costs 3.3 % more multiply-adds than 1 group. "
        "widths=equal takes, for each scale, the width whose multiply-adds are nearest to equal.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
