"""What starting a command costs: user and system time until it has ended."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.session import ROOT, Part, Row, Section, Target, Task, beside_python, process, shuffled
from benchmarks.peers.tables import table

RUN = "results/reference/amd-epyc-zen5-kvm-2-cores/g2_groups"
COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "effbench --help": ("effbench", "--help"),
    "effbench list studies": ("effbench", "list", "studies"),
    "effbench diff of two stored runs": ("effbench", "diff", RUN, f"{RUN}_again"),
    "pyperf --help": ("pyperf", "--help"),
    "asv --help": ("asv", "--help"),
    "pytest --version": ("pytest", "--version"),
    "python -c 'import torch'": (sys.executable, "-c", "import torch"),
}
PEERS = ("pyperf --help", "asv --help", "pytest --version")
TARGET_S = 0.060


def plan(is_smoke: bool) -> list[Task]:
    names = list(COMMANDS)[:3] if is_smoke else list(COMMANDS)
    return shuffled(
        [[{"repeat": repeat, "command": name} for name in names] for repeat in range(1 if is_smoke else 15)], seed=3
    )


def seconds(task: Task) -> float:
    return 2.0 if "torch" in task["command"] else 0.3


def measure(task: Task, folder: Path) -> Iterator[Row]:
    first, *rest = COMMANDS[task["command"]]
    # diff exits with 1 where something is slower; that is an answer too.
    done = process([first if first == sys.executable else beside_python(first), *rest], folder=ROOT, codes=(0, 1))
    yield {"cpu_s": done.cpu_s, "wall_s": done.wall_s}


def section(rows: list[Row]) -> Section:
    middle, lines = {}, []
    for name in COMMANDS:
        spent = sorted(row["cpu_s"] for row in rows if row["command"] == name)
        if spent:
            middle[name] = statistics.median(spent)
            lines.append((f"`{name}`", *(f"{1e3 * value:.0f} ms" for value in (middle[name], spent[0], spent[-1]))))
    ours = middle.get("effbench --help")
    theirs = ", ".join(f"`{name}` {1e3 * middle[name]:.0f} ms" for name in PEERS if name in middle)
    return Section(
        [
            "User and system time of the whole process, in fresh starts in random order. (Wall time would include "
            "whatever else runs.) Commands that read or judge stored runs do not import torch.",
            table(("command", "median", "least", "most"), lines),
        ],
        [
            Target(
                "`effbench --help`, user and system time",
                f"≤ {1e3 * TARGET_S:.0f} ms",
                f"{1e3 * ours:.0f} ms" if ours else "–",
                theirs,
                ours <= TARGET_S if ours else None,
            )
        ],
    )


PART = Part("start_up", "What starting costs", plan, measure, seconds, section)
