"""Measure how often a gate raises an alarm when nothing changed, on resampled recorded launches and on real gates."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.decision_rules.outcome import document
from benchmarks.decision_rules.replay import replay
from benchmarks.peers import repository
from benchmarks.peers.session import Part, Row, Section, Target, Task
from benchmarks.peers.tables import percent, table
from effbench.analysis import stats
from effbench.gates import ab_pairs

TARGET = 0.01
RECORDED = "aa"
"""Folder, beside the rows, of the two runs that the suites are resampled from."""


def plan(is_smoke: bool) -> list[Task]:
    if is_smoke:
        return [{"kind": "resampled", "cells": 1, "launches": 2, "suites": 5}, {"kind": "real", "gate": 0}]
    real = [{"kind": "real", "gate": number} for number in range(20)]
    return [{"kind": "resampled", "cells": 12, "launches": 20, "suites": 300}, *real]


def seconds(task: Task) -> float:
    return 12.0 * task["launches"] + 60.0 if task["kind"] == "resampled" else 32.0


def measure(task: Task, folder: Path) -> Iterator[Row]:
    if task["kind"] == "real":
        with repository.repository(repository.THREE) as project:
            found, done = repository.gate(project)
        yield {
            "verdict": found["verdict"],
            "cells": [cell["verdict"] for cell in found["cells"]],
            "launches": max((cell["launches"] for cell in found["cells"]), default=0),
            "wall_s": done.wall_s,
        }
        return
    with repository.repository(list(repository.NETS)[: task["cells"]]) as project:
        words = ["--launches", str(task["launches"]), "--suites", "1", "--out", RECORDED, "--json"]
        done = repository.effbench(project, "aa", *words)
        said = repository.effbench(project, "aa", "--replay", RECORDED, "--suites", str(task["suites"]), "--json")
        rules = document(replay(ab_pairs.load(project / RECORDED), suites=task["suites"]))["rules"]
        for side in ("baseline", "candidate"):
            (folder / RECORDED / side).mkdir(parents=True, exist_ok=True)
            shutil.copy(project / RECORDED / side / "run.jsonl", folder / RECORDED / side / "run.jsonl")
    found = json.loads(said.out)
    kept = {name: found[name] for name in ("clock", "suites", "gate", "median_cell", "caveats")}
    yield {"wall_s": done.wall_s, "recorded": found["launches"]["recorded"], "rules": rules, **kept}


def section(rows: list[Row]) -> Section:
    real = [row for row in rows if row["kind"] == "real"]
    blocks, targets, found, is_met = [], [], [], True
    for row in (row for row in rows if row["kind"] == "resampled"):
        blocks += _resampled(row)
        alarms = next((item["suite_regression"] for item in row["gate"] if not item["slowdown"]), None)
        if alarms:
            found.append(f"{percent(alarms['point'])} of {row['suites']} suites")
            is_met = is_met and alarms["point"] <= TARGET
    if real:
        verdict_counts = Counter(row["verdict"] for row in real)
        alarms_of_real = verdict_counts["REGRESSION"]
        high = stats.proportion_interval(alarms_of_real, len(real), 0.9).high
        found.append(f"{alarms_of_real} of {len(real)} real gates")
        is_met = is_met and not alarms_of_real
        counts = ", ".join(f"{word} {count}" for word, count in verdict_counts.most_common())
        blocks.append(
            f"{len(real)} real gates, each `effbench check --against HEAD` on an unchanged repository of three "
            f"networks: {counts}. With 95 % confidence the alarm rate is at most {percent(high, 0)}. So few gates can "
            "only show that the rate is not far too high."
        )
    peers = [
        f"{item['rule']} {percent(item['suite_alarm']['point'], 0)}"
        for row in rows
        for item in row.get("rules", ())
        if item["arrangement"] == "sequential" and item["suite_alarm"]
    ]
    targets.append(
        Target(
            "alarms per suite where nothing changed",
            f"≤ {percent(TARGET, 0)}, and no real gate",
            "; ".join(found),
            "as their users run them: " + ", ".join(peers[:4]) if peers else "–",
            is_met if found else None,
        )
    )
    return Section(blocks, targets)


def _resampled(row: Row) -> list[str]:
    """Describe the resampled launches: our gate first, then every peer's rule, sequential and interleaved."""
    slowdowns = [item["slowdown"] for item in row["gate"] if item["slowdown"]]
    none = next((item for item in row["gate"] if not item["slowdown"]), None)
    lines = []
    if none:
        called = [percent(item["regression"]["point"], 0) for item in row["gate"] if item["slowdown"]]
        suite = percent(none["suite_regression"]["point"])
        lines.append(("**effbench's gate**", "–", suite, *called))
    for rule in dict.fromkeys(item["rule"] for item in row["rules"]):
        both = {item["arrangement"]: item for item in row["rules"] if item["rule"] == rule}
        alarms = [_point(both.get(name, {}).get("suite_alarm")) for name in ("sequential", "interleaved")]
        power = {item["slowdown"]: item for item in both.get("interleaved", {}).get("power", ())}
        about = next(iter(both.values()))["decides_like"].partition(":")[0]
        lines.append((f"{rule} ({about})", *alarms, *(_point(power.get(share)) for share in slowdowns)))
    return [
        f"`effbench aa` recorded {row['recorded']} launches of both sides of {row['cells']} unchanged networks in "
        f"{row['wall_s'] / 60:.0f} minutes. {row['suites']} suites are resampled from them. The rules of other tools "
        "are applied to the same blocks, one launch per side, in two arrangements. *Sequential* is how their users run "
        "them: the baseline in one launch and the candidate in a later one. *Interleaved* is how effbench measures. An "
        "alarm is a suite in which any cell is called slower. The last columns are the share of single cells that are "
        "called slower when their times are multiplied by that much; the section on slowdowns has real ones.",
        table(
            ("rule", "alarm, sequential", "alarm, interleaved", *(f"calls {percent(share, 0)}" for share in slowdowns)),
            lines,
        ),
        *row["caveats"],
    ]


def _point(bounds: Row | None) -> str:
    return percent(bounds["point"]) if bounds and bounds.get("point") is not None else "–"


PART = Part("alarm", "Alarms where nothing changed", plan, measure, seconds, section)
