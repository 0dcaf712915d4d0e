"""When to visit which cell, when warm-up is over, and when a launch has measured enough. Pure functions.

Fast cells are warmed up until two windows of five blocks agree (`is_steady`), which is checked after every block. For
slow cells so many blocks do not fit into the warm-up: they are judged once, at its end, on the last six to ten values
(`is_steady_of_few`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from effbench.analysis import stats
from effbench.core.study import Sampling

# --- order of a round -----------------------------------------------------------------------------


def round_order(cells: Sequence[str], *, seed: int, launch: int, round: int) -> list[str]:
    """Return the cells in random order. The same arguments give the same order on any machine."""
    shuffled = list(cells)
    random.Random(f"{seed}/{launch}/{round}").shuffle(shuffled)
    return shuffled


def first_side(cell: str, *, seed: int, launch: int, round: int) -> int:
    """Return which side of an A/B run comes first in this round, 0 or 1.

    It is random in even rounds, and the other side in the odd round that follows. Two rounds are thus ABBA or BAAB, in
    which a linear drift cancels.
    """
    # UTF-8 bytes give the same seed as the text. In an ASCII locale a name may hold bytes that are not text.
    drawn = random.Random(f"{seed}/{launch}/{round // 2}/{cell}".encode("utf-8", "surrogateescape")).randrange(2)
    return drawn ^ (round % 2)


# --- warm-up --------------------------------------------------------------------------------------

WINDOW = 5
AGREEMENT = 0.01
TREND_P = 0.05

FEWEST_VALUES = 6
"""Fewest values for `is_steady_of_few`. A warm-up goes on until it has them, however long its calls take."""

MOST_VALUES = 2 * WINDOW
"""Most values that `is_steady_of_few` uses: the last ones of a warm-up."""

FEW_BLOCKS = 4 * WINDOW
"""With fewer blocks than this, `is_steady` was checked too few times to decide alone: a single check calls steady noise
of 5 % unsteady in a quarter of all cases."""

_SPLIT = {6: 7.55, 7: 6.54, 8: 5.96, 9: 5.57, 10: 5.29}
"""The statistic of `_largest_step` that steady normal noise exceeds in 0.5 % of all cases, by the number of values.
From 1,000,000 simulated series each."""

_FEW_TREND_P = 0.01
"""Kendall's p-value by the normal approximation; the exact chance is 0.3 to 0.6 % for six to ten values."""


def is_steady(times: Sequence[float]) -> bool:
    """Return whether the last two windows of blocks agree and show no trend.

    `times` are per-call times of consecutive warm-up blocks. The windows agree when their medians differ by at most 1
    %, or by what their own scatter explains (2 MAD/√window); a trend is Kendall's test at 5 % over both windows.
    Barrett et al. (2017) found that many programs never become steady, so the caller needs a time limit.
    """
    if len(times) < 2 * WINDOW:
        return False
    recent = times[-2 * WINDOW :]
    before, after = stats.median(recent[:WINDOW]), stats.median(recent[WINDOW:])
    scatter = 2 * stats.mad(recent) / math.sqrt(WINDOW)
    if abs(after - before) > max(AGREEMENT * after, scatter):
        return False
    return stats.trend_p(recent) > TREND_P


def is_steady_of_few(times: Sequence[float]) -> bool:
    """Return whether six to ten values show no drift of more than 1 %.

    A drift is either a step that the scatter on its two sides does not explain (with at least two values on each side),
    or a trend by Kendall's test. A single outlier, even the last value, is not a drift.

    Parameters
    ----------
    times : sequence of float
        Seconds per call of consecutive blocks, without the first call of the process. The last ten are judged.

    Returns
    -------
    bool
        False below six values.

    Notes
    -----
    Steady normal noise is called unsteady in at most 1.2 % of all cases, whatever its scatter, and hardly ever below
    0.3 % of scatter. One check of `is_steady` calls 5, 18 and 30 % unsteady at 0.1, 1 and 5 % of scatter.

    Power in percent to detect a drift, for six / eight / ten values (a simulation, repeated in the tests). The size of
    the drift is in standard deviations of a block, and more than 2 %:

    ============  ==============  ==============  ==============
    size          step            linear drift    decay
    ============  ==============  ==============  ==============
    5 times       35 / 76 / 96    21 / 60 / 79    9 / 24 / 29
    10 times      94 / 100 / 100  65 / 98 / 100   21 / 51 / 67
    20 times      100             99 / 100 / 100  48 / 79 / 93
    100 times     100             100             99 / 100 / 100
    ============  ==============  ==============  ==============

    So six values with 1 % of scatter show a step of 10 %, a drift of 20 % and a decay from twice the time. The step
    comes after the first third of the values, the drift spans all of them, and the decay halves its distance with every
    value. A change that ends with the first value or begins with the last is not detected.
    """
    recent = list(times[-MOST_VALUES:])
    if len(recent) < FEWEST_VALUES:
        return False
    if _largest_step(recent) > _SPLIT[len(recent)]:
        return False
    half = len(recent) // 2
    before, after = stats.median(recent[:half]), stats.median(recent[-half:])
    return abs(after - before) <= AGREEMENT * after or stats.trend_p(recent) > _FEW_TREND_P


def _largest_step(values: Sequence[float]) -> float:
    """Return the largest two-sample t statistic over all splits of the values, ignoring steps of up to 1 %."""
    largest = 0.0
    for place in range(2, len(values) - 1):
        before, after = values[:place], values[place:]
        means = [math.fsum(part) / len(part) for part in (before, after)]
        step = abs(means[1] - means[0])
        if step <= AGREEMENT * means[1]:
            continue
        squares = math.fsum(
            (value - mean) ** 2 for part, mean in zip((before, after), means, strict=True) for value in part
        )
        error = math.sqrt(squares / (len(values) - 2) * (1 / len(before) + 1 / len(after)))
        largest = max(largest, step / error if error else math.inf)
    return largest


# --- end of a launch ------------------------------------------------------------------------------

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
        and all(is_precise(values, sampling.precision) for values in series.values())
    ):
        return "precision"
    return None


def is_precise(log_values: Sequence[float], precision: float) -> bool:
    """Return whether the median of these log values is known to within ± `precision` (relative) at 95 % confidence."""
    estimate = stats.median_interval(stats.batch_medians(log_values))
    if estimate.low is None or estimate.high is None:
        return False
    return (estimate.high - estimate.low) / 2 <= precision
