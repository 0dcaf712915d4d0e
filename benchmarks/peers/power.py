"""Whether the gate sees a slowdown that is really there: extra work in the forward pass of one network of three."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import repository
from benchmarks.peers.session import INSIDE, Part, Row, Section, Target, Task, process, shuffled
from benchmarks.peers.tables import percent, table

GATES = {0.05: 12, 0.03: 4, 0.10: 4}
WORDS = ("REGRESSION", "INCONCLUSIVE", "ENVIRONMENT", "PASS")


def plan(is_smoke: bool) -> list[Task]:
    if is_smoke:
        return [{"slowdown": 0.10, "gate": 0}]
    return shuffled(
        [[{"slowdown": share, "gate": number} for share, count in GATES.items() for number in range(count)]], 5
    )


def seconds(task: Task) -> float:
    return 36.0


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """`injected` is what the extra work came to when it was calibrated, in CPU time of that network."""
    cell = repository.THREE[task["gate"] % len(repository.THREE)]
    words = [sys.executable, INSIDE / "calibrate.py", cell, task["slowdown"]]
    calibrated = json.loads(process(words).out)
    with repository.repository(repository.THREE) as project:
        repository.slow_down(project, cell, calibrated["extra"])
        found, done = repository.gate(project)
    told = {item["id"].rpartition("=")[2]: item for item in found["cells"]}
    ratio = told[cell]["ratio"] or {}
    yield {
        "cell": cell,
        **calibrated,
        "verdict": told[cell]["verdict"],
        "ratio": ratio.get("point"),
        "low": ratio.get("low"),
        "high": ratio.get("high"),
        "launches": told[cell]["launches"],
        "others": [item["verdict"] for name, item in told.items() if name != cell],
        "exit_code": done.code,
        "wall_s": done.wall_s,
    }


def section(rows: list[Row]) -> Section:
    lines, said = [], {}
    for share in sorted({row["slowdown"] for row in rows}):
        mine = [row for row in rows if row["slowdown"] == share]
        said[share] = Counter(row["verdict"] for row in mine)
        injected = sorted(row["injected"] for row in mine)
        shown = f"{percent(statistics.median(injected))} [{percent(injected[0])}, {percent(injected[-1])}]"
        measured = [row["ratio"] - 1 for row in mine if row["ratio"] is not None]
        launches = statistics.fmean(row["launches"] for row in mine)
        counts = [said[share][word] for word in WORDS]
        middle = percent(statistics.median(measured)) if measured else "–"
        lines.append((percent(share, 0), len(mine), shown, middle, *counts, f"{launches:.1f}"))
    others = Counter(verdict for row in rows for verdict in row["others"])
    alarms = f"{others['REGRESSION']} of {sum(others.values())}"
    return Section(
        [
            "A repository of three networks, one of which does more work in the candidate: as many small additions "
            "in its forward pass as slow it down by the wanted share of CPU time, calibrated before each gate. The "
            "third column is what the additions came to, the fourth what the gate measured. Each row counts the "
            "verdicts of `effbench check --against HEAD` on that network. Of the two unchanged networks beside it, "
            f"{alarms} were called slower.",
            table(
                ("wanted", "gates", "injected, median [range]", "measured", *WORDS, "launches"),
                lines,
            ),
        ],
        _targets(said.get(0.05, Counter())),
    )


def _targets(said: Counter[str]) -> list[Target]:
    count = sum(said.values())
    undecided = said["INCONCLUSIVE"] + said["ENVIRONMENT"]
    found = f"{said['REGRESSION']} of {count} caught, {undecided} not decided, {said['PASS']} passed"
    return [
        Target(
            "a slowdown of 5 %, really injected, is caught",
            "≥ 80 %, or else INCONCLUSIVE",
            found if count else "–",
            "none says INCONCLUSIVE",
            said["REGRESSION"] + undecided >= 0.8 * count if count else None,
        ),
        Target(
            "a slowdown of 5 %, really injected, is passed",
            "≤ 5 %",
            f"{said['PASS']} of {count}" if count else "–",
            "none proves its absence",
            said["PASS"] <= 0.05 * count if count else None,
        ),
    ]


PART = Part("power", "Real slowdowns", plan, measure, seconds, section)
