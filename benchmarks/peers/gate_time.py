"""How long the gate takes on twelve networks at four launches."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import repository
from benchmarks.peers.session import Part, Row, Section, Target, Task
from benchmarks.peers.tables import table

TARGET_S = 180.0


def plan(is_smoke: bool) -> list[Task]:
    cells = 1 if is_smoke else len(repository.NETS)
    return [{"repeat": repeat, "cells": cells, "launches": 4} for repeat in range(1 if is_smoke else 2)]


def seconds(task: Task) -> float:
    return 16.0 + 3.5 * float(task["cells"])


def measure(task: Task, folder: Path) -> Iterator[Row]:
    cells = list(repository.NETS)[: task["cells"]]
    with repository.repository(cells) as project:
        found, done = repository.gate(project, "--launches", str(task["launches"]))
    launches = max((cell["launches"] for cell in found["cells"]), default=0)
    yield {"wall_s": done.wall_s, "cpu_s": done.cpu_s, "verdict": found["verdict"], "took_launches": launches}


def section(rows: list[Row]) -> Section:
    lines = [
        (row["cells"], row["took_launches"], f"{row['wall_s']:.0f} s", f"{row['cpu_s']:.0f} s", row["verdict"])
        for row in rows
    ]
    middle = statistics.median(row["wall_s"] for row in rows)
    return Section(
        [
            "`effbench check --against HEAD --launches 4` from start to end, on an unchanged repository of small "
            "convolutional networks of 0.4 to 4 ms. It counts costs, makes a copy of the other revision, and per "
            "launch starts two fresh processes that warm up and alternate twenty rounds.",
            table(("cells", "launches", "wall time", "CPU time", "verdict"), lines),
        ],
        [
            Target(
                f"a gate of {rows[0]['cells']} cells at 4 launches",
                f"≤ {TARGET_S:.0f} s",
                f"{middle:.0f} s",
                "–",
                middle <= TARGET_S,
            )
        ],
    )


PART = Part("gate_time", "How long a gate takes", plan, measure, seconds, section)
