"""Table 8: which network is the fastest at one level of multiply-adds, and which metric says so beforehand?"""

from __future__ import annotations

import sys

from effbench.core.study import Case, Experiment, Sampling

# Level in million multiply-adds: zoo name and input size of each row of Table 8 of arXiv:1807.11164. The first row of a
# level is its reference.
ROWS = {
    40: (
        ("shufflenet_v2_x0_5", 224),
        ("mobilenet_v1_x0_25", 224),
        ("mobilenet_v2_x0_4", 160),
        ("mobilenet_v2_x0_15", 224),
        ("shufflenet_v1_g3_x0_5", 224),
        ("xception_light_x0_5", 224),
    ),
    140: (
        ("shufflenet_v2_x1_0", 224),
        ("mobilenet_v1_x0_5", 224),
        ("mobilenet_v2_x0_75", 192),
        ("mobilenet_v2_x0_6", 224),
        ("shufflenet_v1_g3_x1_0", 224),
        ("xception_light_x1_0", 224),
        ("igcv3_x0_7", 224),
    ),
    300: (
        ("shufflenet_v2_x1_5", 224),
        ("mobilenet_v1_x0_75", 224),
        ("mobilenet_v2_x1_0", 224),
        ("shufflenet_v1_g3_x1_5", 224),
        ("condensenet_74_g8", 224),
        ("xception_light_x1_5", 224),
        ("igcv3_x1_0", 224),
    ),
    500: (
        ("shufflenet_v2_x2_0", 224),
        ("mobilenet_v1_x1_0", 224),
        ("mobilenet_v2_x1_4", 224),
        ("shufflenet_v1_g3_x2_0", 224),
        ("condensenet_74_g4", 224),
        ("xception_light_x2_0", 224),
        ("igcv3_x1_4", 224),
        ("se_shufflenet_v2_x2_0", 224),
        ("nasnet_a_4_1056", 224),
        ("pnasnet5_mobile", 224),
    ),
}
DENSENET = "the paper gives the stages but neither growth rates nor widths"
IGCV2 = "the groups and widths of its ImageNet form are not published; the zoo's igcv2 only matches its multiply-adds"
TWICE = "the same network as the row without 'our impl.', trained again"

EXPERIMENT = Experiment(
    name="full_models",
    title="Table 8: whole networks at four levels of multiply-adds",
    claim="At equal multiply-adds networks differ in speed; the paper finds ShuffleNetV2 the fastest on its devices.",
    factor="model",
    levels=tuple(name for rows in ROWS.values() for name, _ in rows),
    reference="shufflenet_v2_x0_5",
    cases=tuple(
        Case(name, (3, pixels, pixels), labels={"level": level, "model": name})
        for level, rows in ROWS.items()
        for name, pixels in rows
    ),
    sampling=Sampling(budget_s=300.0),
    batch={"cuda": 8, "cpu": 1},
    absent={
        **{f"DenseNet {width}x (our impl.)": DENSENET for width in ("0.5", "1", "1.5", "2")},
        **{f"IGCV2-{width}": IGCV2 for width in ("0.25", "0.5", "1.0")},
        "1.0 MobileNet v2 (our impl.)": TWICE,
        "1.4 MobileNet v2 (our impl.)": TWICE,
    },
    notes=(
        "Batch 8 on a GPU and 1 on a CPU, as in the paper. Time ratios are to the ShuffleNetV2 of the same level.",
        "No usual rounding gives the widths of the authors' own MobileNetV2 at 0.15, 0.4, 0.6 and 0.75. The networks "
        "here use the usual rounding, so their multiply-adds differ from the paper's, which are printed beside them.",
        "The light Xception is a reconstruction, because its layout is not published: Xception39, widened, has the "
        "paper's multiply-adds at all four sizes.",
        "The paper prints the authors' own counts of IGCV3 and CondenseNet. That of 0.7 IGCV3 is far above ours.",
        "Networks with SE, NASNet-A and PNASNet-5, which the paper lists separately, are in the 500 M level by their "
        "multiply-adds.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
