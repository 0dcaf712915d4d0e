"""Define five cells of a few milliseconds that every tool measures: G2's group convolutions, a depthwise one, two
networks.

This is an ordinary effbench study. The peers build the same cases from it.
"""

from __future__ import annotations

from effbench.core.study import Case, Experiment

CASES = (
    Case("probe_groups", (64, 56, 56), {"channels": 64, "groups": 1}, labels={"cell": "1 group"}),
    Case("probe_groups", (184, 56, 56), {"channels": 184, "groups": 8}, labels={"cell": "8 groups"}),
    Case("probe_groups", (256, 28, 28), {"channels": 256, "groups": 256, "blocks": 4}, labels={"cell": "depthwise"}),
    Case("mobilenet_v2_x0_35", (3, 128, 128), labels={"cell": "MobileNetV2"}),
    Case("shufflenet_v2_x0_5", (3, 96, 96), labels={"cell": "ShuffleNetV2"}),
)

EXPERIMENT = Experiment(
    name="peers",
    title="Cells that every tool measures",
    claim="How far does what a tool reports scatter from run to run?",
    factor="cell",
    levels=tuple(case.labels["cell"] for case in CASES),
    reference="1 group",
    cases=CASES,
)
