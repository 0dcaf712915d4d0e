"""Decide when a launch stops measuring: precision reached, all rounds done, or budget used. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effbench.analysis import stats
from effbench.core.study import Sampling

MIN_ROUNDS_ON_BUDGET = 3
CHECK_GROWTH = 1.5


def check_rounds(sampling: Sampling) -> frozenset[int]:
    """Return the numbers of rounds after which precision is checked, each 1.5 times the last.

    Checks are few, since each one is a chance to stop on a lucky streak.
    """
    at, rounds = set(), float(sampling.min_rounds)
    while rounds <= sampling.max_rounds:
        at.add(round(rounds))
        rounds *= CHECK_GROWTH
    return frozenset(at)


def reason_to_stop(
    series: Mapping[str, Sequence[float]], *, rounds: int, spent_s: float, budget_s: float, sampling: Sampling
) -> str | None:
    """Return "precision", "rounds" or "budget", or None to go on.

    `series` holds one log time (or log ratio) per round for each cell. Precision is reached if the exact interval of
    every cell's median, after batching against autocorrelation, is within ± `sampling.precision`. The budget ends a
    launch early, but not before three rounds, since fewer do not characterise the launch.
    """
    if rounds >= sampling.max_rounds:
        return "rounds"
    if spent_s >= budget_s and rounds >= MIN_ROUNDS_ON_BUDGET:
        return "budget"
    if (
        rounds in check_rounds(sampling)
        and series
        and all(precise(values, sampling.precision) for values in series.values())
    ):
        return "precision"
    return None


def precise(log_values: Sequence[float], precision: float) -> bool:
    """Return whether the median of these log values is known to within ± `precision` (relative) at 95 % confidence."""
    estimate = stats.median_interval(stats.batch_medians(log_values))
    if estimate.low is None or estimate.high is None:
        return False
    return (estimate.high - estimate.low) / 2 <= precision
