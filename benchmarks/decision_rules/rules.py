"""When other benchmark tools call a candidate slower: their decision rules, applied to times that are already there.

Each rule is written anew from what the tool documents and does, with the tool's defaults, and sees one cell: the
seconds per call of every block of both sides, from one sitting. They are approximations of the rule, not runs of the
tool: its warm-up, its sampling and its reporting are left out. All are one-sided here: True means "the candidate is
slower". Where the tool's test has two sides, the test is as it is there and the direction is read off beside it, so a
nominal 5 % is 2.5 % here. Too few values to decide are never an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy
from numpy.typing import NDArray

from effbench.analysis import stats

Seconds = Sequence[float]
"""Seconds per call, one value a block, in the order of measuring."""

BOOTSTRAP_DRAWS = 500
"""Criterion draws 100,000; at its 5 % so many more change one decision in hundreds."""


@dataclass(frozen=True)
class PeerRule:
    """One rule: ``is_slower(baseline, candidate)``, and the tool that decides so in a sentence."""

    is_slower: Callable[[Seconds, Seconds], bool]
    about: str


def mean_is_slower(baseline: Seconds, candidate: Seconds, limit: float = 0.05) -> bool:
    """The mean is more than `limit` above the baseline's."""
    return _mean(candidate) > (1 + limit) * _mean(baseline)


def minimum_is_slower(baseline: Seconds, candidate: Seconds, limit: float = 0.05) -> bool:
    """The smallest value is more than `limit` above the baseline's."""
    return min(candidate) > (1 + limit) * min(baseline)


def median_is_slower(baseline: Seconds, candidate: Seconds, limit: float = 0.07) -> bool:
    """The median is more than `limit` above the baseline's."""
    return stats.median(candidate) > (1 + limit) * stats.median(baseline)


def t_test_is_slower(baseline: Seconds, candidate: Seconds, significance: float = 0.05) -> bool:
    """The means differ by Student's t test with pooled variance (two-sided). False for a side of one value.

    pyperf itself calls sides of unequal length, and sides of one value, different without a test; this does not.
    """
    from scipy.stats import ttest_ind_from_stats

    if min(len(baseline), len(candidate)) < 2 or not mean_is_slower(baseline, candidate, 0.0):
        return False
    sides = [(_mean(side), stats.deviation(side), len(side)) for side in (candidate, baseline)]
    if _is_flat(baseline) and _is_flat(candidate):
        return True
    return bool(ttest_ind_from_stats(*sides[0], *sides[1]).pvalue < significance)


def rank_test_is_slower(baseline: Seconds, candidate: Seconds, significance: float = 0.05, factor: float = 1.0) -> bool:
    """The sides differ by the Mann-Whitney U test (two-sided), and the median is more than `factor` times as long.

    False for a side of one value.
    """
    from scipy.stats import mannwhitneyu

    if min(len(baseline), len(candidate)) < 2 or not median_is_slower(baseline, candidate, factor - 1):
        return False
    return bool(mannwhitneyu(candidate, baseline).pvalue < significance)


def bootstrap_is_slower(
    baseline: Seconds, candidate: Seconds, significance: float = 0.05, noise_threshold: float = 0.01
) -> bool:
    """The means differ by a bootstrapped t test (two-sided), and the 95 % interval of the mean's change, also by
    bootstrap, lies wholly above `noise_threshold`. False for a side of one value.

    The t statistic is Welch's, its null distribution from resamples of both sides thrown together.
    """
    if min(len(baseline), len(candidate)) < 2 or not mean_is_slower(baseline, candidate, noise_threshold):
        return False
    before, after = (numpy.asarray(side, dtype=float) for side in (baseline, candidate))
    seen = _welch(before[None], after[None])[0]
    together = numpy.concatenate([before, after])
    drawn = together[_resamples(len(together))]
    null = _welch(drawn[:, : len(before)], drawn[:, len(before) :])
    p_value = 2 * min(float((null >= seen).mean()), float((null < seen).mean()))
    if p_value >= significance:
        return False
    means = [side[_resamples(len(side), salt)].mean(axis=1) for salt, side in enumerate((before, after), 1)]
    return float(numpy.quantile(means[1] / means[0] - 1, 0.025)) > noise_threshold


def gap_exceeds_noise(baseline: Seconds, candidate: Seconds) -> bool:
    """The mean's relative change exceeds the smaller of the sides' coefficients of variation. False for one value."""
    if min(len(baseline), len(candidate)) < 2:
        return False
    noise = min(stats.deviation(side) / _mean(side) for side in (baseline, candidate))
    return _mean(candidate) / _mean(baseline) - 1 > noise


def bulks_are_apart(baseline: Seconds, candidate: Seconds, gap: float = 0.005) -> bool:
    """The candidate's smallest value lies at least `gap` above the baseline's third quartile: [minimum, q3] intervals.

    The tool asks besides that clock cycles agree, where a GPU counts them.
    """
    return min(candidate) >= (1 + gap) * stats.quantile(baseline, 0.75)


def pairs_are_slower(baseline: Seconds, candidate: Seconds, confidence: float = 0.95) -> bool:
    """The exact sign-test interval of the median log ratio of pairs lies above zero; False below six pairs.

    Values are paired by their place; what one side has more is left out.
    """
    ratios = [math.log(after / before) for before, after in zip(baseline, candidate, strict=False)]
    low = stats.median_interval(ratios, confidence).low if ratios else None
    return low is not None and low > 0


RULES: Mapping[str, PeerRule] = {
    "mean > 5 %": PeerRule(
        mean_is_slower, "pytest-benchmark --benchmark-compare-fail=mean:5%: ratio of means, no test"
    ),
    "min > 5 %": PeerRule(
        minimum_is_slower, "pytest-benchmark --benchmark-compare-fail=min:5%: ratio of minima, no test"
    ),
    "median > 7 %": PeerRule(median_is_slower, "TorchBench's regression detector: ratio of medians, no test"),
    "t, p < 0.05": PeerRule(t_test_is_slower, "pyperf compare_to: Student's t with pooled variance at 95 %"),
    "U, p < 0.05": PeerRule(rank_test_is_slower, "google/benchmark compare.py: Mann-Whitney U at 0.05"),
    "U, p < 0.002, factor 1.1": PeerRule(
        lambda baseline, candidate: rank_test_is_slower(baseline, candidate, 0.002, 1.1),
        "asv continuous: Mann-Whitney U at 0.002 and medians 1.1 times apart",
    ),
    "bootstrap t, p < 0.05, 1 %": PeerRule(
        bootstrap_is_slower, "criterion.rs: bootstrapped t at 0.05 and the change's interval beyond 1 %"
    ),
    "difference > smaller cv": PeerRule(
        gap_exceeds_noise, "nvbench's legacy comparison: change of the mean beyond the smaller coefficient of variation"
    ),
    "[min, q3] 0.5 % apart": PeerRule(
        bulks_are_apart, "nvbench's robust comparison, its part on time: [min, q3] intervals 0.5 % apart"
    ),
    "paired sign interval": PeerRule(
        pairs_are_slower, "nanobench compare(): 95 % sign-test interval of the median log ratio of pairs"
    ),
    "ratio > 200 %": PeerRule(
        lambda baseline, candidate: mean_is_slower(baseline, candidate, 1.0),
        "github-action-benchmark: a mean more than twice the last one (alert-threshold 200%), no test",
    ),
}
"""Every rule by the name it has in tables."""


def _mean(values: Seconds) -> float:
    return math.fsum(values) / len(values)


def _is_flat(values: Seconds) -> bool:
    return min(values) == max(values)


def _welch(before: NDArray[numpy.float64], after: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Welch's t of each row. Rows that do not vary at all have an infinite one, or none where they are equal."""
    difference = after.mean(axis=1) - before.mean(axis=1)
    error = numpy.sqrt(sum(side.var(axis=1, ddof=1) / side.shape[1] for side in (before, after)))
    with numpy.errstate(divide="ignore", invalid="ignore"):
        t: NDArray[numpy.float64] = difference / error
    return numpy.nan_to_num(t, nan=0.0, posinf=numpy.inf, neginf=-numpy.inf)


@lru_cache(maxsize=64)
def _resamples(size: int, salt: int = 0) -> NDArray[numpy.int64]:
    """The same places for every comparison of this size: drawing them anew costs more than the test."""
    return numpy.random.default_rng((size, salt)).integers(size, size=(BOOTSTRAP_DRAWS, size))
