"""Measure which share of claimed ±1 % precision is true on scripted clocks, where the truth is known.

The clock is an AR(1) process in the logarithm of a block's time, with 5 % standard deviation. effbench's own loop runs
on it with its own stopping rule. pytest-benchmark's rule is implemented here from its documentation of
``--benchmark-precision``: after each round, stop if z·s/√n is at most that share of the mean.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.session import Part, Row, Section, Target, Task
from benchmarks.peers.tables import percent, table
from effbench.core.run import Timing
from effbench.core.study import Sampling
from effbench.timing import block_loop

PRECISION = 0.01
DEVIATION = 0.05
AUTOCORRELATIONS = (0.0, 0.5, 0.9)
MAX_ROUNDS = 20_000
"""Far above the rounds of a real run, so that the stopping rule decides and not the limit."""
BLOCK_NS = 5e6
RULES = {"effbench": None, "pytest-benchmark, 99 % (its default)": 0.99, "pytest-benchmark, 95 %": 0.95}
"""Each rule with its confidence level."""


class Clock:
    """A device whose block times are autocorrelated. Single calls take no time."""

    def __init__(self, autocorrelation: float, seed: int) -> None:
        self._random, self._rho = random.Random(seed), autocorrelation
        self._level = self._random.gauss(0, DEVIATION)

    def now_s(self) -> float:
        return 0.0

    def next_log(self) -> float:
        fresh = math.sqrt(1 - self._rho**2) * self._random.gauss(0, DEVIATION)
        self._level = self._rho * self._level + fresh
        return self._level

    def run_calls(self, call: Any, calls: int) -> None:
        """Do nothing: untimed calls take no time here."""

    def time_block(self, call: Any, calls: int) -> Timing:
        spent = 0 if calls == 1 else round(BLOCK_NS * calls * math.exp(self.next_log()))
        return Timing(calls, spent, cpu_ns=spent)


def effbench_trial(clock: Clock) -> tuple[bool, int, float]:
    """Run one launch of one cell. Returns whether it stopped for precision, its rounds, and the median's relative
    error.
    """
    sampling = Sampling(max_rounds=MAX_ROUNDS, precision=PRECISION)
    task = block_loop.LaunchTask(0, 0, 0, math.inf, {"cell": "cell"})
    times, reason = [], ""
    for item in block_loop.measure_rounds(clock, {"cell": None}, {"cell": 2}, sampling, task):  # type: ignore[arg-type, dict-item]
        if isinstance(item, str):
            reason = item
        else:
            times.append(item.timing.wall_ns / item.timing.calls)
    return reason == "precision", len(times), statistics.median(times) / BLOCK_NS - 1


def peer_trial(clock: Clock, confidence: float, min_rounds: int = 5) -> tuple[bool, int, float]:
    """Do the same with pytest-benchmark's rule; the error is that of the mean, against the mean of the process."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    count, mean, squares = 0, 0.0, 0.0
    while count < MAX_ROUNDS:
        value = math.exp(clock.next_log())
        count += 1
        change = value - mean
        mean += change / count
        squares += change * (value - mean)
        if count >= min_rounds and z * math.sqrt(squares / (count - 1) / count) <= PRECISION * mean:
            return True, count, mean / math.exp(DEVIATION**2 / 2) - 1
    return False, count, mean / math.exp(DEVIATION**2 / 2) - 1


def plan(is_smoke: bool) -> list[Task]:
    trials = 5 if is_smoke else 200
    return [{"rule": rule, "autocorrelation": rho, "trials": trials} for rho in AUTOCORRELATIONS for rule in RULES]


def seconds(task: Task) -> float:
    return 0.2 * task["trials"] * task["autocorrelation"] if task["rule"] == "effbench" else 0.5


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield `rounds` and `errors` of every trial that stopped by its rule. Seeded, so results are the same anywhere."""
    confidence, found = RULES[task["rule"]], []
    for seed in range(task["trials"]):
        clock = Clock(task["autocorrelation"], seed)
        found.append(effbench_trial(clock) if confidence is None else peer_trial(clock, confidence))
    claimed = [item for item in found if item[0]]
    yield {"rounds": [rounds for _, rounds, _ in claimed], "errors": [round(error, 6) for *_, error in claimed]}


def section(rows: list[Row]) -> Section:
    lines: list[tuple[object, ...]] = []
    least: dict[str, list[float]] = {}
    for rule in RULES:
        shown: list[str] = []
        for rho in AUTOCORRELATIONS:
            (row,) = [row for row in rows if (row["rule"], row["autocorrelation"]) == (rule, rho)]
            true = statistics.fmean(abs(error) <= PRECISION for error in row["errors"])
            least.setdefault(rule, []).append(true)
            shown += [percent(true, 0), f"{statistics.median(row['rounds']):.0f}"]
        lines.append((rule, *shown))
    worst = {rule: min(shares) for rule, shares in least.items()}
    head = [name for rho in AUTOCORRELATIONS for name in (f"ρ = {rho:g}: true", "rounds")]
    return Section(
        [
            f"A scripted clock gives block times of {percent(DEVIATION, 0)} standard deviation and lag-1 "
            "autocorrelation ρ, so the true time is known. It drives effbench's own measuring loop until that stops "
            f"for precision, and pytest-benchmark's rule as it documents it. {rows[0]['trials']} trials each. A claim "
            "is true where the result is within 1 % of the median (for the rule on means, of the mean). A launch of "
            "effbench ends after at most 60 rounds, and then claims nothing by this rule; here it may go on. This "
            "tests the stopping rule of one launch. What effbench prints is the interval over launches, which the "
            "section before tests.",
            table(("rule", *head), lines),
        ],
        [
            Target(
                "claimed ±1 % that is true, scripted clocks, the worst ρ",
                "≥ 90 %",
                percent(worst["effbench"], 0),
                ", ".join(f"{rule} {percent(share, 0)}" for rule, share in worst.items() if rule != "effbench"),
                worst["effbench"] >= 0.9,
            )
        ],
    )


PART = Part("honest_precision", "Claims of ±1 % where the truth is known", plan, measure, seconds, section)
