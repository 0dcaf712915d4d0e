"""G1: does an unequal channel ratio slow a 1x1 convolution down, at equal multiply-adds?"""

from __future__ import annotations

import sys
from itertools import product

from effbench.core.study import Case, Claim, Experiment
from effbench.zoo import equal_cost

# c1 of the blocks c1 -> c2 -> c1 at x1, as Table 1 of arXiv:1807.11164 prints them; c2 is c1 times the ratio
C1 = {"GPU": {1: 128, 2: 90, 6: 52, 12: 36}, "ARM": {1: 32, 2: 22, 6: 13, 12: 9}}
SCALES = {"x1": 1, "x2": 2, "x4": 4}
BLOCKS = 10


def case(channels: str, scale: str, ratio: int, block: str, widths: str) -> Case:
    c1 = C1[channels][ratio] * SCALES[scale]
    if widths == "equal":
        c1, _ = equal_cost.channel_ratio(C1[channels][1] * SCALES[scale], ratio).channels
    return Case(
        "probe_channel_ratio",
        (c1, 56, 56),
        {"c1": c1, "c2": ratio * c1, "blocks": BLOCKS, "block": block},
        labels={"channels": channels, "scale": scale, "ratio": f"1:{ratio}", "block": block, "widths": widths},
    )


EXPERIMENT = Experiment(
    name="g1_channel_ratio",
    title="G1: input and output channels",
    claim="At equal multiply-adds, equal input and output channels run fastest, because they move the least memory.",
    factor="ratio",
    levels=("1:1", "1:2", "1:6", "1:12"),
    reference="1:1",
    cases=tuple(
        case(*labels) for labels in product(C1, SCALES, C1["GPU"], ("conv", "conv_bn_relu"), ("paper", "equal"))
    ),
    claims=(
        Claim(
            "unequal is slower",
            "Every unequal channel ratio runs slower than 1:1.",
            (("1:2", "1:1"), ("1:6", "1:1"), ("1:12", "1:1")),
            ("1:12", "1:1"),
        ),
        Claim(
            "time grows with the ratio",
            "Each step to a more unequal ratio runs slower than the step before.",
            (("1:2", "1:1"), ("1:6", "1:2"), ("1:12", "1:6")),
            ("1:12", "1:1"),
        ),
    ),
    defaults={"channels": {"cuda": "GPU", "cpu": "ARM"}, "block": "conv", "widths": "paper"},
    paper="g1_channel_ratio",
    notes=(
        "block=conv is the default: the paper's figures draw bare convolutions, and a fused framework folds the norms.",
        "widths=paper are the printed widths times the scale. Their multiply-adds are up to 5.5 % below those of 1:1 "
        "on ARM and 5.1 % on the GPU, in favour of the unequal ratios. widths=equal takes, for each scale, the widths "
        "whose multiply-adds are nearest to equal.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
