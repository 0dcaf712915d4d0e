"""Simulate comparisons that stop as soon as they are decided, where the truth is known: wrong answers and coverage.

Launches scatter, and so do the blocks within them, with autocorrelation. effbench's own looks, intervals and verdicts
judge them, and beside them the same rule with plain 95 % intervals at every look.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.session import Part, Row, Section, Target, Task
from benchmarks.peers.tables import percent, table
from effbench.analysis import sequential
from effbench.analysis.intervals import Intervals
from effbench.core.estimate import Estimate
from effbench.core.sittings import Scatter

TRUTHS = (1.0, 1.02, 1.05, 1.2)
SCATTERS = (0.005, 0.01, 0.03)
"""Standard deviation over launches of a launch's log ratio."""
AUTOCORRELATION, BLOCK_SCATTER, ROUNDS = 0.7, 0.02, 12
SITTINGS, FREEDOM = (0.0, 0.02), 11
"""Standard deviation between sittings, and the degrees of freedom with which a machine's ledger has estimated it."""
RULES = {"effbench": len(sequential.LOOKS), "plain 95 % at every look": 1}
"""By rule, the number of looks that its intervals allow for."""


@dataclass(frozen=True)
class Trial:
    """One simulated comparison: its verdict, the interval and the launches at the stop."""

    verdict: str
    interval: Estimate
    launches: int


def trial(truth: float, scatter: float, tau: float, looks: int, generator: np.random.Generator) -> Trial:
    """Measure launch after launch of one sitting until an interval decides, at the latest at the last look."""
    launches: list[list[float]] = []
    sitting = generator.normal(0, tau) if tau else 0.0
    known = Scatter(tau * math.sqrt(generator.chisquare(FREEDOM) / FREEDOM), FREEDOM) if tau else None
    intervals = Intervals({}, known, looks)
    for look in sequential.LOOKS:
        while len(launches) < look:
            launches.append(_launch(math.log(truth) + sitting + generator.normal(0, scatter), generator))
        found = intervals.over(dict(enumerate(launches)))
        assert found is not None
        if (verdict := sequential.verdict(found)) != "undecided":
            break
    return Trial(verdict, found, look)


def _launch(centre: float, generator: np.random.Generator) -> list[float]:
    """Return the log ratios of a launch's rounds: an AR(1) process around `centre`."""
    blocks = generator.normal(0, BLOCK_SCATTER, ROUNDS)
    for place in range(1, ROUNDS):
        blocks[place] = AUTOCORRELATION * blocks[place - 1] + math.sqrt(1 - AUTOCORRELATION**2) * blocks[place]
    return [float(centre + value) for value in blocks]


def plan(is_smoke: bool) -> list[Task]:
    trials = 20 if is_smoke else 1000
    return [
        {"rule": rule, "truth": truth, "scatter": scatter, "tau": tau, "trials": trials}
        for truth in TRUTHS
        for scatter in SCATTERS
        for tau in SITTINGS
        for rule in RULES
    ]


def seconds(task: Task) -> float:
    return 0.002 * task["trials"]


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield counts of all trials. Seeded, so that results are the same anywhere."""
    truth, scatter, tau = (task[name] for name in ("truth", "scatter", "tau"))
    generator = np.random.default_rng([round(1e4 * scatter), round(100 * truth), round(1e4 * tau)])
    found = [trial(truth, scatter, tau, RULES[task["rule"]], generator) for _ in range(task["trials"])]
    # At 1.02 both "slower" and "same to within 3 %" are true.
    right = {1.0: ("same",), 1.02: ("same", "slower")}.get(truth, ("slower",))
    yield {
        "decided": sum(item.verdict != "undecided" for item in found),
        "wrong": sum(item.verdict not in (*right, "undecided") for item in found),
        "covered": sum((item.interval.low or 0.0) <= truth <= (item.interval.high or 0.0) for item in found),
        "launches": statistics.fmean(item.launches for item in found),
    }


def section(rows: list[Row]) -> Section:
    lines = []
    for row in rows:
        shares = [row[name] / row["trials"] for name in ("decided", "wrong", "covered")]
        launches = f"{row['launches']:.1f}"
        scatters = percent(row["scatter"], 1), percent(row["tau"], 0)
        lines.append((f"{row['truth']:g}", *scatters, row["rule"], *map(percent, shares), launches))
    worst = {
        rule: (
            max((row["wrong"] / row["trials"] for row in rows if row["rule"] == rule), default=0.0),
            min((row["covered"] / row["trials"] for row in rows if row["rule"] == rule), default=1.0),
        )
        for rule in RULES
    }
    (wrong, covered), (plain_wrong, plain_covered) = worst.values()
    return Section(
        [
            f"{rows[0]['trials']} simulated comparisons for each true ratio and each scatter of launches; blocks "
            f"within a launch scatter by {percent(BLOCK_SCATTER, 0)} with autocorrelation {AUTOCORRELATION:g}. Where "
            f"sittings scatter, the machine has estimated that from {FREEDOM + 1} earlier ones. A "
            f"comparison is looked at after {', '.join(map(str, sequential.LOOKS))} launches and stops once "
            "it is decided. *covered* says how often the interval that is printed then holds the true ratio.",
            table(
                ("truth", "launches scatter", "sittings scatter", "rule", "decided", "wrong", "covered", "launches"),
                lines,
            ),
        ],
        [
            Target(
                "wrong decisions of a comparison that stops by itself, the worst case simulated",
                "≤ 5 %",
                percent(wrong),
                f"plain 95 % intervals {percent(plain_wrong)}",
                wrong <= 0.05,
            ),
            Target(
                "intervals at the stop that hold the true ratio, the worst case simulated",
                "≥ 95 %",
                percent(covered),
                f"plain 95 % intervals {percent(plain_covered)}",
                covered >= 0.95,
            ),
        ],
    )


PART = Part("honest_decisions", "Stopping once it is decided, with a known truth", plan, measure, seconds, section)
