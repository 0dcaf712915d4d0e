"""Where does the time go: convolutions, element-wise operations, data, shuffles or the rest?"""

from __future__ import annotations

import sys

from effbench.core.study import Case, Experiment

# The two networks of Figure 2 of arXiv:1807.11164.
MODELS = ("shufflenet_v1_g3_x1_0", "mobilenet_v2")

EXPERIMENT = Experiment(
    name="runtime_breakdown",
    title="Run time by kind of operation",
    claim="Multiply-adds count only convolutions, which are only part of the run time.",
    factor="model",
    levels=MODELS,
    reference=MODELS[0],
    cases=tuple(Case(model, (3, 224, 224), labels={"model": model}) for model in MODELS),
    batch={"cuda": 8},
    breakdown="merged",
    notes=(
        "The batch of Figure 2 is not stated. 8 images on a GPU and 1 elsewhere are those of Figure 1 and Table 8.",
        "Nor is it stated whether the figure counts depthwise convolutions as Conv or Elemwise. Here they are "
        "convolutions; --depthwise shows them separately.",
        "Pooling counts as Other: in the figure ShuffleNet v1, which has four more pooling layers, has 8 to 10 % of "
        "Other, and MobileNet v2 at most 1 %.",
        "The paper's framework fuses tensors. Eager PyTorch does not, so batch norms, which are folded away there, are "
        "element-wise operations here.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
