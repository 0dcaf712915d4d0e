"""G3: does splitting a block into several small convolutions slow it down, at equal multiply-adds?"""

from __future__ import annotations

import sys
from itertools import product

from effbench.core.study import Case, Claim, Experiment
from effbench.zoo import equal_cost

# Width of the one-fragment block at x1, Table 3 of arXiv:1807.11164. The paper prints no other widths, so the others
# are computed.
WIDTH = {"GPU": 128, "ARM": 64}
SCALES = {"x1": 1, "x2": 2, "x4": 4}
STRUCTURES = {
    "1-fragment": (1, "single"),
    "2-series": (2, "series"),
    "4-series": (4, "series"),
    "2-parallel": (2, "parallel"),
    "4-parallel": (4, "parallel"),
}
BLOCKS = 10


def case(channels: str, scale: str, structure: str, block: str, merge: str) -> Case:
    fragments, arrangement = STRUCTURES[structure]
    joined = merge if arrangement == "parallel" else "add"
    (width,) = equal_cost.fragments(WIDTH[channels] * SCALES[scale], fragments, joined).channels
    arguments = {"channels": width, "fragments": fragments, "arrangement": arrangement, "merge": joined}
    return Case(
        "probe_fragments",
        (width, 56, 56),
        {**arguments, "blocks": BLOCKS, "block": block},
        labels={"channels": channels, "scale": scale, "structure": structure, "block": block, "merge": merge},
    )


def claims(arrangement: str) -> tuple[Claim, Claim]:
    two, four = f"2-{arrangement}", f"4-{arrangement}"
    return (
        Claim(
            f"{arrangement} fragments are slower",
            f"Two and four fragments in {arrangement} each run slower than one.",
            ((two, "1-fragment"), (four, "1-fragment")),
            headline=(four, "1-fragment"),
        ),
        Claim(
            f"time grows with {arrangement} fragments",
            f"Each doubling of the fragments in {arrangement} runs slower than the step before.",
            ((two, "1-fragment"), (four, two)),
            headline=(four, "1-fragment"),
        ),
    )


EXPERIMENT = Experiment(
    name="g3_fragmentation",
    title="G3: network fragmentation",
    claim="At equal multiply-adds, a block of several small convolutions runs slower than one large convolution.",
    factor="structure",
    levels=tuple(STRUCTURES),
    reference="1-fragment",
    cases=tuple(
        case(*labels) for labels in product(WIDTH, SCALES, STRUCTURES, ("conv", "conv_bn_relu"), ("add", "concat"))
    ),
    claims=(*claims("series"), *claims("parallel")),
    defaults={"channels": {"cuda": "GPU", "cpu": "ARM"}, "block": "conv", "merge": "add"},
    paper="g3_fragmentation",
    notes=(
        "block=conv and merge=add are the defaults: the paper's appendix figure draws bare convolutions whose parallel "
        "branches are added. merge=concat keeps the width and splits the output channels among the branches.",
        "The widths of two and four fragments are not printed; c/sqrt(2) and c/2, rounded, keep the multiply-adds "
        "within 1.2 %.",
        "The paper's own times do not grow everywhere: 4-series is faster than 2-series on the GPU at x4 and on ARM at "
        "x4, 4-parallel is faster than 2-parallel on ARM at x1.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
