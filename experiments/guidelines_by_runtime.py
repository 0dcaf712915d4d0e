"""G1 to G4 under every runtime that is installed: which guideline survives fusion and graph capture?"""

from __future__ import annotations

import sys
from dataclasses import replace

from effbench.core.study import Claim, Experiment
from effbench.studies import catalog

# Guideline: its study, and those of the study's claims that are tested here.
STUDIES = {
    "G1": ("g1_channel_ratio", {"unequal is slower": "G1: unequal channels are slower"}),
    "G2": ("g2_groups", {"groups are slower": "G2: groups are slower"}),
    "G3": (
        "g3_fragmentation",
        {
            "series fragments are slower": "G3: series fragments are slower",
            "parallel fragments are slower": "G3: parallel fragments are slower",
        },
    ),
    "G4": ("g4_elementwise", {"ReLU and shortcut cost time": "G4: ReLU and shortcut cost time"}),
}
VARIANT = {"block": ("conv", "conv_bn_relu"), "widths": ("equal",), "merge": ("add",), "unit": ("outer_56",)}
LOADED = {guideline: (catalog.load(name), claims) for guideline, (name, claims) in STUDIES.items()}

CASES, CLAIMS = [], []
for guideline, (study, claims) in LOADED.items():
    for case in study.cases:
        is_selected = all(case.labels[label] in values for label, values in VARIANT.items() if label in case.labels)
        # G4 is about the ReLU itself, so its unit has no other variant here.
        if is_selected and case.labels.get("norm", "none") == "none":
            block = case.labels.get("block", "conv")
            shared = {"guideline": guideline, "channels": case.labels["channels"], "scale": case.labels["scale"]}
            CASES.append(replace(case, labels={**shared, "block": block, "variant": case.labels[study.factor]}))
    for claim in study.claims:
        if claim.name in claims:
            CLAIMS.append(Claim(claims[claim.name], claim.text, claim.pairs, claim.headline))

EXPERIMENT = Experiment(
    name="guidelines_by_runtime",
    title="G1 to G4 by runtime",
    claim="What slows a network down in eager PyTorch slows it down under the runtimes that are deployed.",
    factor="variant",
    levels=tuple(dict.fromkeys(level for study, _ in LOADED.values() for level in study.levels)),
    reference="1:1",
    cases=tuple(CASES),
    claims=tuple(CLAIMS),
    defaults={"channels": {"cuda": "GPU", "cpu": "ARM"}, "scale": "x1", "block": "conv"},
    sampling=replace(LOADED["G1"][0].sampling, budget_s=300.0),
    paper="guidelines_by_runtime",
    runtime="all",
    notes=(
        "The networks are those of the four studies. Ratios are to the simplest of each: 1:1, 1 group, 1 fragment, "
        "neither ReLU nor shortcut.",
        "widths=equal: widths of equal multiply-adds. Those of the printed widths differ by up to 5.5 %, and runtimes "
        "are compared with each other here, not with the paper.",
        "block=conv is the default, as in the studies; block=conv_bn_relu gives the runtimes norms to fold.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
