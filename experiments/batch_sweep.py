"""How many images per call does it take until a device gains nothing more from a larger batch?"""

from __future__ import annotations

import sys
from itertools import product

from effbench.core.study import Case, Experiment, Sampling

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ON_CPU = tuple(batch for batch in BATCHES if batch <= 32)

EXPERIMENT = Experiment(
    name="batch_sweep",
    title="Batch sweep: images per second against images per call",
    claim="A device processes more images per second at larger batches, up to the batch that saturates it.",
    factor="batch",
    levels=BATCHES,
    reference=1,
    cases=tuple(
        Case(model, (3, 224, 224), labels={"model": model, "batch": batch}, batch=batch)
        for model, batch in product(("shufflenet_v2", "mobilenet_v2"), BATCHES)
    ),
    sampling=Sampling(min_rounds=6, budget_s=300.0, max_warmup_s=10.0),
    defaults={"batch": {"cuda": BATCHES, "cpu": ON_CPU}},
    notes=(
        "Time ratios are per image. The saturating batch is the smallest one whose images per second are shown to be "
        "within 5 % of the maximum.",
        "A batch that does not fit into memory is skipped with the reason. --model selects other networks, "
        "--select batch=1,8,64 other batches.",
    ),
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
