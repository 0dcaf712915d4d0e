"""Detect the end of warm-up: whether the call times of a cell are steady. Pure.

Fast cells are judged after every block, until two windows of five blocks agree (`steady`). For slow cells so many
blocks do not fit into the warm-up: they are judged once, at its end, on the last six to ten values (`steady_of_few`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from effbench.analysis import stats

WINDOW = 5
AGREEMENT = 0.01
TREND_P = 0.05

LEAST = 6
"""Fewest values for `steady_of_few`. A warm-up goes on until it has them, however long its calls take."""

MOST = 2 * WINDOW
"""Most values that `steady_of_few` uses: the last ones of a warm-up."""

FEW_BLOCKS = 4 * WINDOW
"""With fewer blocks than this, `steady` was checked too few times to decide alone: a single check calls steady noise of
5 % unsteady in a quarter of all cases."""

_SPLIT = {6: 7.55, 7: 6.54, 8: 5.96, 9: 5.57, 10: 5.29}
"""The statistic of `_largest_step` that steady normal noise exceeds in 0.5 % of all cases, by the number of values.
From 1,000,000 simulated series each."""

_FEW_TREND_P = 0.01
"""Kendall's p-value by the normal approximation; the exact chance is 0.3 to 0.6 % for six to ten values."""


def steady(times: Sequence[float]) -> bool:
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


def steady_of_few(times: Sequence[float]) -> bool:
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
    0.3 % of scatter. One check of `steady` calls 5, 18 and 30 % unsteady at 0.1, 1 and 5 % of scatter.

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
    recent = list(times[-MOST:])
    if len(recent) < LEAST:
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
