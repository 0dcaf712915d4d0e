"""Run every counter on one network, alternating, and print JSON with CPU times that include child processes.

Usage: counters.py NETWORK SEED
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import resource
import statistics
import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn

from effbench import zoo
from effbench.core.errors import EffbenchError
from effbench.cost import profile
from effbench.cost.trace import forget_shapes
from effbench.zoo import libraries

SHAPE = (3, 224, 224)
REPEATS = 3
Count = Callable[[nn.Module], int]


def again(model: nn.Module) -> int:
    return profile(model, SHAPE).cost.madds


def first(model: nn.Module) -> int:
    forget_shapes()
    return again(model)


def fvcore(model: nn.Module) -> int:
    from fvcore.nn import FlopCountAnalysis

    flops = FlopCountAnalysis(model, torch.randn(1, *SHAPE))
    return int(flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def fvcore_both(model: nn.Module) -> int:
    from fvcore.nn import ActivationCountAnalysis

    activations = ActivationCountAnalysis(model, torch.randn(1, *SHAPE))
    activations.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    return fvcore(model)


def torch_counter(model: nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *SHAPE))
    return int(counter.get_total_flops()) // 2


def ptflops(model: nn.Module) -> int:
    with contextlib.suppress(EffbenchError):
        # ptflops imports torchvision, whose wheel on the package index fails with a CPU build of torch.
        libraries.library("torchvision")
    from ptflops import get_model_complexity_info

    found, _ = get_model_complexity_info(model, SHAPE, as_strings=False, print_per_layer_stat=False)
    return int(found)


def torchinfo(model: nn.Module) -> int:
    from torchinfo import summary

    return int(summary(model, (1, *SHAPE), verbose=0).total_mult_adds)


COUNTERS: dict[str, Count] = {
    "effbench, first time": first,
    "effbench, again": again,
    "fvcore, flops and activations": fvcore_both,
    "fvcore, flops": fvcore,
    "FlopCounterMode": torch_counter,
    "ptflops": ptflops,
    "torchinfo": torchinfo,
}


def cpu_s() -> float:
    """Return the CPU seconds of this process and its ended children: effbench counts in a child process."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(network: str, seed: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = zoo.build(network).eval()
    counts = {name: count(model) for name, count in COUNTERS.items()}
    spent: dict[str, list[float]] = {name: [] for name in COUNTERS}
    generator = random.Random(f"{network} {seed}")
    for _ in range(REPEATS):
        for name in generator.sample(list(COUNTERS), len(COUNTERS)):
            start = cpu_s()
            COUNTERS[name](model)
            spent[name].append(cpu_s() - start)
    rows = [
        {"counter": name, "madds": counts[name], "cpu_s": statistics.median(values)} for name, values in spent.items()
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
