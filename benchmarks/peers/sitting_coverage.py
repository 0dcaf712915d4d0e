"""Simulate how often intervals hold on another sitting where the truth is known, with and without a history."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.session import Part, Row, Section, Task
from benchmarks.peers.tables import percent, table
from effbench.analysis import between_sittings, stats
from effbench.analysis.between_sittings import Sitting, Value
from effbench.analysis.intervals import Intervals

TRIALS = 1000
LAUNCHES, ROUNDS = 5, 15
LAUNCH_SD, BLOCK_SD, MEMORY = 0.01, 0.03, 0.6
"""Standard deviations of launches and of blocks, and the lag-1 autocorrelation of the blocks of a launch."""
SCATTERS = (0.0, 0.01, 0.02, 0.03, 0.05)
HISTORIES = (0, 3, 11)
KINDS = ("the same cell", "other cells")
"""Whose earlier sittings the machine knows. Those of other cells scatter as this one does."""


def plan(is_smoke: bool) -> list[Task]:
    trials = 20 if is_smoke else TRIALS
    tasks: list[Task] = []
    for tau in SCATTERS:
        for history in HISTORIES:
            for kind in KINDS if history else KINDS[:1]:
                tasks.append({"tau": tau, "history": history, "of": kind, "spread": 1, "trials": trials})
        tasks.append({"tau": tau, "history": 0, "of": KINDS[0], "spread": LAUNCHES, "trials": trials})
    return tasks[:2] if is_smoke else tasks


def seconds(task: Task) -> float:
    return 0.004 * task["trials"] * (1 + task["history"])


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield how many intervals hold the truth, and their median half widths."""
    rng = random.Random(f"{task['tau']}/{task['history']}/{task['of']}")
    held = held_within = 0
    widths, widths_within = [], []
    for _ in range(task["trials"]):
        past = []
        for number in range(task["history"]):
            key = "c" if task["of"] == KINDS[0] else f"other{number % 3}"
            value = _value(_launches(rng, task["tau"]))
            past.append(Sitting(1e3 * number, 1e3 * number + 30, "", {}, {key: {"ratio": value}}))
        by_launch = dict(enumerate(_launches(rng, task["tau"], task["spread"])))
        scatter = between_sittings.estimate(past, {"c": "c"}).of("c", "ratio")
        found = Intervals({launch: launch % task["spread"] for launch in by_launch}, scatter).over(by_launch)
        within = Intervals().over(by_launch)
        assert found is not None and within is not None
        held += found.low <= 1 <= found.high  # type: ignore[operator]
        held_within += within.low <= 1 <= within.high  # type: ignore[operator]
        widths.append(found.half_width or 0.0)
        widths_within.append(within.half_width or 0.0)
    yield {
        "held": held,
        "half_width": statistics.median(widths),
        "held_within": held_within,
        "half_width_within": statistics.median(widths_within),
    }


def _launches(rng: random.Random, tau: float, sittings: int = 1) -> list[list[float]]:
    """Return the log values of the rounds of each launch, in turn of one of these sittings, around a truth of 0."""
    effects, found = [rng.gauss(0, tau) for _ in range(sittings)], []
    for number in range(LAUNCHES):
        launch, block, values = rng.gauss(0, LAUNCH_SD), rng.gauss(0, BLOCK_SD), []
        for _ in range(ROUNDS):
            values.append(effects[number % sittings] + launch + block)
            block = MEMORY * block + math.sqrt(1 - MEMORY**2) * rng.gauss(0, BLOCK_SD)
        found.append(values)
    return found


def _value(launches: list[list[float]]) -> Value:
    medians = [stats.median(values) for values in launches]
    return stats.median(medians), stats.deviation(medians) ** 2 / len(medians)


def section(rows: list[Row]) -> Section:
    lines = []
    for row in rows:
        history = f"{row['history']} of {row['of']}" if row["history"] else "none: reference machines"
        if row["spread"] > 1:
            history = f"none: launches spread over {row['spread']} sittings"
        shares = [percent(row[name] / row["trials"]) for name in ("held", "held_within")]
        widths = [f"±{percent(row[name])}" for name in ("half_width", "half_width_within")]
        lines.append((percent(row["tau"], 0), history, shares[0], widths[0], shares[1], widths[1]))
    return Section(
        [
            f"{rows[0]['trials']} simulated runs a row with a known truth: {LAUNCHES} launches of {ROUNDS} rounds. "
            f"Launches scatter by {percent(LAUNCH_SD, 0)}, blocks by {percent(BLOCK_SD, 0)} with a lag-1 "
            f"autocorrelation of {MEMORY}, and sittings by τ. The history is the number of the machine's "
            "earlier sittings. Without one, the interval relies on the scatter of reference machines "
            f"({percent(between_sittings.REFERENCE['ratio'])} for ratios), and does not hold on a machine that "
            "scatters twice as far.",
            table(
                ("τ", "history", "intervals that hold", "median half width", "within the sitting: hold", "half width"),
                lines,
            ),
        ]
    )


PART = Part("sitting_coverage", "Intervals over sittings where the truth is known", plan, measure, seconds, section)
