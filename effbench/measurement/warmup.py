"""Has a cell reached its steady state? A pure function of the block times seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from effbench import stats

WINDOW = 5
AGREEMENT = 0.01
TREND_P = 0.05


def steady(times: Sequence[float]) -> bool:
    """True once the last two windows of blocks agree and show no trend.

    `times` are per-call times of consecutive warm-up blocks. The windows agree when their medians differ by at most 1
    %, or by what their own scatter explains (2 MAD/√window); a trend is Kendall's test at 5 % over both windows.
    Barrett et al. (2017) found that many programs never get there, so the caller needs a cap.
    """
    if len(times) < 2 * WINDOW:
        return False
    recent = times[-2 * WINDOW :]
    before, after = stats.median(recent[:WINDOW]), stats.median(recent[WINDOW:])
    scatter = 2 * stats.mad(recent) / math.sqrt(WINDOW)
    if abs(after - before) > max(AGREEMENT * after, scatter):
        return False
    return stats.trend_p(recent) > TREND_P
