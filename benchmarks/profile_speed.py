"""How long counting takes, ours against fvcore (flops and activations): CPU milliseconds per network, and the ratio.

Run: OMP_NUM_THREADS=1 python benchmarks/profile_speed.py [NETWORK ...]

"cold" forgets every shape seen before, as the first count in a process; "warm" has seen the network. fvcore keeps
nothing between calls. Medians of process time, so that a busy machine disturbs little.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable

import torch

from effbench import zoo
from effbench.cost import profile
from effbench.cost.trace import forget_shapes

NETWORKS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
SHAPE = (3, 224, 224)


def median_ms(count: Callable[[], object], times: int, before: Callable[[], None] = lambda: None) -> float:
    spent = []
    for _ in range(times):
        before()
        start = time.process_time()
        count()
        spent.append(time.process_time() - start)
    return statistics.median(spent) * 1e3


def fvcore_counts(model: torch.nn.Module) -> float:
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    x = torch.randn(1, *SHAPE)
    return float(FlopCountAnalysis(model, x).total() + ActivationCountAnalysis(model, x).total())


def main(names: tuple[str, ...]) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    print(f"{'network':16}{'cold ms':>9}{'warm ms':>9}{'fvcore ms':>11}{'÷ cold':>8}{'÷ warm':>8}")
    for name in names:
        model = zoo.build(name).eval()
        fvcore_counts(model)
        profile(model, SHAPE)
        cold = median_ms(lambda m=model: profile(m, SHAPE), 5, forget_shapes)  # type: ignore[misc]
        warm = median_ms(lambda m=model: profile(m, SHAPE), 9)  # type: ignore[misc]
        peer = median_ms(lambda m=model: fvcore_counts(m), 3)  # type: ignore[misc]
        rows.append((cold, warm, peer))
        print(f"{name:16}{cold:9.1f}{warm:9.1f}{peer:11.1f}{peer / cold:8.1f}{peer / warm:8.1f}")
    cold, warm, peer = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{'median':16}{cold:9.1f}{warm:9.1f}{peer:11.1f}{peer / cold:8.1f}{peer / warm:8.1f}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NETWORKS)
