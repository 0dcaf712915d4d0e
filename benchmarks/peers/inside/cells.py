"""Build the suite's cells as plain calls, as a user of a peer would write them: in inference mode, on one thread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.peers.suite import CASES

NAMES = tuple(str(case.labels["cell"]) for case in CASES)


def calls() -> dict[str, Callable[[], object]]:
    import torch

    from effbench import zoo

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    made: dict[str, Callable[[], object]] = {}
    for name, case in zip(NAMES, CASES, strict=True):
        network, inputs = zoo.build(case.model, **case.arguments).eval(), torch.randn(1, *case.input_shape)
        made[name] = lambda network=network, inputs=inputs: network(inputs)
    return made
