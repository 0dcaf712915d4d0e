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


def seconds_by_counter(rows: list[Row]) -> dict[str, dict[str, float]]:
    """CPU seconds by counter and network: medians over processes."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["counter"], {}).setdefault(row["network"], []).append(row["cpu_s"])
    return {
        counter: {network: statistics.median(values) for network, values in networks.items()}
        for counter, networks in found.items()
    }


def medians(rows: list[Row]) -> dict[str, float]:
    """CPU seconds by counter: the median over networks."""
    spent = seconds_by_counter(rows)
    return {counter: statistics.median(spent[counter].values()) for counter in COUNTERS}


def section(rows: list[Row]) -> Section:
    spent = seconds_by_counter(rows)
    networks = [network for network in NETWORKS if any(row["network"] == network for row in rows)]
    lines = [(name, *(f"{1e3 * spent[counter][name]:.0f}" for counter in COUNTERS)) for name in networks]
    lines.append(("**median**", *(f"**{1e3 * middle:.0f}**" for middle in medians(rows).values())))
    counts = {(row["network"], row["counter"]): row["madds"] for row in rows}
    # Both of effbench and both of fvcore give one count.
    shown = [COUNTERS[0], *COUNTERS[3:]]
    counted = [(name, *(f"{counts[name, counter] / 1e6:,.2f}" for counter in shown)) for name in networks]
    return Section(
        [
            "CPU milliseconds to count one built network on one image of 224 × 224: medians over fresh processes of "
            "medians over alternating repeats. effbench counts parameters, multiply-adds, activations and four "
            'levels of memory access in one pass. "First time" means that no shape was seen before.',
            table(("network", *COUNTERS), lines),
            "Multiply-adds (M) by each counter. effbench, and torch's counter halved, count convolutions and matrix "
            "products. fvcore adds norms and pooling, ptflops those and activations. torchinfo counts by the weights "
            "of layers.",
            table(("network", "effbench", "fvcore", "FlopCounterMode / 2", "ptflops", "torchinfo"), counted),
        ]
    )


PART = Part("static_profile", "What counting a network takes", plan, measure, seconds, section)
