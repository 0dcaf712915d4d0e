"""What counting a network's multiply-adds takes, and the count, beside other counters."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.session import INSIDE, Part, Row, Section, Task, process, shuffled
from benchmarks.peers.tables import table

NETWORKS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
COUNTERS = (
    "effbench, first time",
    "effbench, again",
    "fvcore, flops and activations",
    "fvcore, flops",
    "FlopCounterMode",
    "ptflops",
    "torchinfo",
)


def plan(is_smoke: bool) -> list[Task]:
    repeats, networks = (1, ("mobilenet_v2",)) if is_smoke else (3, NETWORKS)
    return shuffled([[{"repeat": repeat, "network": name} for name in networks] for repeat in range(repeats)], seed=4)


def seconds(task: Task) -> float:
    return 9.0


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """One process a network: a row for each counter."""
    yield from json.loads(
        process([sys.executable, INSIDE / "counters.py", task["network"], task["repeat"]]).out.splitlines()[-1]
    )


def section(rows: list[Row]) -> Section:
    counted, middle, lines = [], {}, []
    for network in NETWORKS:
        mine = [row for row in rows if row["network"] == network]
        if not mine:
            continue
        shown, counts = [], []
        for counter in COUNTERS:
            found = [row for row in mine if row["counter"] == counter]
            spent = statistics.median(row["cpu_s"] for row in found)
            middle.setdefault(counter, []).append(spent)
            shown.append(f"{1e3 * spent:.0f}")
            counts.append(found[0]["madds"])
        lines.append((network, *shown))
        counted.append((network, *(f"{counts[at] / 1e6:,.2f}" for at in (0, 3, 4, 5, 6))))
    lines.append(("**median**", *(f"**{1e3 * statistics.median(middle[counter]):.0f}**" for counter in COUNTERS)))
    return Section(
        [
            "CPU milliseconds to count one network at one image of 224 × 224 that is built already: medians over fresh "
            "processes of medians over alternating repeats. effbench gives parameters, multiply-adds, activations "
            "and four "
            'levels of memory access in one go; "first time" forgets every shape seen before.',
            table(("network", *COUNTERS), lines),
            "Multiply-adds (M) each counter gives. effbench, and torch's counter halved, count convolutions and matrix "
            "products; fvcore adds norms and pooling, ptflops those and activations; torchinfo counts what its layers' "
            "weights say.",
            table(("network", "effbench", "fvcore", "FlopCounterMode / 2", "ptflops", "torchinfo"), counted),
        ]
    )


PART = Part("static_profile", "What counting a network takes", plan, measure, seconds, section)
