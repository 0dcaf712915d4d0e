"""Ask a peer which of two networks is faster: a network of nets.py, and the same with extra additions. Prints JSON.

Usage: pair.py TOOL NET EXTRA. A is measured first, then B, as both tools do.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import nets
import torch

Call = Callable[[], object]
Answer = dict[str, object]


def calls(name: str, extra: int) -> tuple[Call, Call]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    x = torch.randn(1, nets.NETS[name][0], 28, 28)
    plain, slowed = (nets.Net(*nets.NETS[name], extra=number).eval() for number in (0, extra))
    return (lambda: plain(x)), (lambda: slowed(x))


def hyperfine(call: Call) -> list[float]:
    """Return the seconds of each run: at least 10, and 3 s of them, without a warm-up, as its defaults are."""
    spent: list[float] = []
    while len(spent) < 10 or math.fsum(spent) < 3.0:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return spent


def by_means(first: list[float], second: list[float]) -> Answer:
    """Read "B ran 1.05 ± 0.02 times slower than A": different where the ratio is further from 1 than its deviation."""
    means = [statistics.fmean(values) for values in (first, second)]
    shares = [statistics.stdev(values) / mean for values, mean in zip((first, second), means, strict=True)]
    ratio = means[1] / means[0]
    error = ratio * math.hypot(*shares)
    answer = "slower" if ratio - error > 1 else "faster" if ratio + error < 1 else "none"
    return {"answer": answer, "measured": ratio, "low": ratio - error, "high": ratio + error}


def torch_timer(first: Call, second: Call) -> Answer:
    from torch.utils.benchmark import Timer

    found = [Timer("call()", globals={"call": call}).blocked_autorange() for call in (first, second)]
    ends = [torch.tensor(item.times).quantile(torch.tensor([0.25, 0.75])).tolist() for item in found]
    answer = "slower" if ends[1][0] > ends[0][1] else "faster" if ends[1][1] < ends[0][0] else "none"
    return {"answer": answer, "measured": found[1].median / found[0].median}


if __name__ == "__main__":
    pair = calls(sys.argv[2], int(sys.argv[3]))
    said = torch_timer(*pair) if sys.argv[1] == "torch Timer" else by_means(*map(hyperfine, pair))
    print(json.dumps(said))
