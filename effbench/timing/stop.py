"""When has a launch measured enough? Pure functions of what has been seen so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effbench.analysis import stats
from effbench.core.study import Sampling

MIN_ROUNDS_ON_BUDGET = 3
LOOK_GROWTH = 1.5


def looks(sampling: Sampling) -> frozenset[int]:
    """The round counts at which precision is looked at: each 1.5 times the last, since every look is a chance to stop
    by luck.
    """
    at, rounds = set(), float(sampling.min_rounds)
    while rounds <= sampling.max_rounds:
        at.add(round(rounds))
        rounds *= LOOK_GROWTH
    return frozenset(at)


def reason_to_stop(
    series: Mapping[str, Sequence[float]], *, rounds: int, spent_s: float, budget_s: float, sampling: Sampling
) -> str | None:
    """ "precision", "rounds", "budget", or None to go on.

    `series` holds per cell one log time (or log ratio) a round. Precision: every cell's median is known to within ±
    `sampling.precision` by its exact interval, after batching away autocorrelation. The budget ends a launch early,
    but not before three rounds: fewer say nothing of the launch.
    """
    if rounds >= sampling.max_rounds:
        return "rounds"
    if spent_s >= budget_s and rounds >= MIN_ROUNDS_ON_BUDGET:
        return "budget"
    if rounds in looks(sampling) and series and all(precise(values, sampling.precision) for values in series.values()):
        return "precision"
    return None


def precise(log_values: Sequence[float], precision: float) -> bool:
    """Is the median of these log values known to within ± `precision` (relative) with 95 % confidence?"""
    estimate = stats.median_interval(stats.batch_medians(log_values))
    if estimate.low is None or estimate.high is None:
        return False
    return (estimate.high - estimate.low) / 2 <= precision
