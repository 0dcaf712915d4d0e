"""Statistics against scipy and closed forms, and their coverage by simulation with fixed seeds."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench import stats

floats = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(floats, min_size=1, max_size=50), st.floats(0, 1))
@settings(deadline=None)
def test_quantile_is_numpys_linear_quantile(values: list[float], q: float) -> None:
    import numpy as np

    assert stats.quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


def test_quantile_refuses_nothing_and_nan() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stats.quantile([], 0.5)
    with pytest.raises(ValueError, match="NaN"):
        stats.median([1.0, math.nan])


def test_median_interval_is_the_binomial_one() -> None:
    """n = 10 at 95 %: the 2nd and 9th order statistics, whose exact coverage is 97.9 % (any table of the sign test)."""
    estimate = stats.median_interval([float(value) for value in range(1, 11)])
    assert (estimate.low, estimate.high) == (2.0, 9.0)
    assert stats.median_interval([1.0] * 5).low is None, "5 values cannot carry 95 %"
    assert stats.median_interval([1.0, 2, 3, 4, 5, 6]).low == 1.0, "6 values just can: 1 - 2/64 = 96.9 %"


@pytest.mark.parametrize("n", [6, 15, 40, 101])
def test_median_interval_agrees_with_scipys_binomial(n: int) -> None:
    from scipy.stats import binom

    values = [float(value) for value in range(n)]
    estimate = stats.median_interval(values)
    rank = int(estimate.low or 0)
    assert binom.cdf(rank, n, 0.5) <= 0.025 < binom.cdf(rank + 1, n, 0.5)
    assert estimate.high == n - 1 - rank


def test_median_interval_covers_as_claimed() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(1000):
        estimate = stats.median_interval([draw.expovariate(1.0) for _ in range(25)])
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= math.log(2) <= estimate.high
    assert hits >= 940


@given(st.lists(floats, min_size=2, max_size=30))
@settings(deadline=None)
def test_t_interval_is_scipys(values: list[float]) -> None:
    import numpy as np
    from scipy import stats as scipy_stats

    estimate = stats.t_interval(values)
    error = float(scipy_stats.sem(np.array(values)))
    if error > 1e-9:
        low, high = scipy_stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (estimate.low, estimate.high) == (
            pytest.approx(low, rel=1e-6, abs=1e-6),
            pytest.approx(high, rel=1e-6, abs=1e-6),
        )


def test_welch_interval_is_scipys() -> None:
    from scipy.stats import ttest_ind

    left, right = [1.0, 1.2, 0.9, 1.1, 1.3], [1.5, 1.9, 1.4]
    reference = ttest_ind(right, left, equal_var=False).confidence_interval()
    estimate = stats.welch_interval(left, right)
    assert (estimate.low, estimate.high) == (pytest.approx(reference.low), pytest.approx(reference.high))
    assert stats.welch_interval([1.0], right).low is None
    assert stats.welch_interval([1.0, 1.0], [2.0, 2.0]).low == 1.0


def test_ratio_needs_three_launches_for_an_interval() -> None:
    assert stats.ratio_over_launches([]) is None
    assert stats.ratio_over_launches([[], []]) is None
    two = stats.ratio_over_launches([[0.1] * 10, [0.1] * 10])
    assert two is not None and two.low is None and two.point == pytest.approx(math.exp(0.1))
    three = stats.ratio_over_launches([[0.1] * 10] * 3)
    assert three is not None and three.low == pytest.approx(math.exp(0.1))


def test_ratio_interval_knows_that_rounds_of_one_launch_share_its_luck() -> None:
    """Five launches, each with an offset of its own: an interval from pooled rounds alone misses the truth far too
    often.
    """
    draw = random.Random(7)
    hits = pooled_hits = 0
    for _ in range(400):
        launches = [
            [draw.gauss(0, 0.02) + offset for _ in range(20)] for offset in (draw.gauss(0, 0.03) for _ in range(5))
        ]
        estimate = stats.ratio_over_launches(launches)
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 1.0 <= estimate.high
        pooled = stats.median_interval([value for rounds in launches for value in rounds])
        assert pooled.low is not None and pooled.high is not None
        pooled_hits += pooled.low <= 0.0 <= pooled.high
    assert hits >= 376, "94 % of 400"
    assert pooled_hits < 300, "if the naive interval were right too, the design would be needlessly careful"


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=9), min_size=3, max_size=6))
@settings(deadline=None)
def test_ratio_point_lies_in_its_interval(launches: list[list[float]]) -> None:
    estimate = stats.ratio_over_launches(launches)
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    assert estimate.low <= estimate.point <= estimate.high


def test_trend_p_agrees_with_scipys_kendall() -> None:
    from scipy.stats import kendalltau

    draw = random.Random(3)
    for _ in range(20):
        values = [draw.random() + 0.05 * i for i in range(20)]
        exact = kendalltau(range(20), values, method="exact").pvalue
        assert stats.trend_p(values) == pytest.approx(exact, abs=0.02)
    assert stats.trend_p([float(i) for i in range(10)]) < 1e-3
    assert stats.trend_p([1.0] * 10) == 1.0
    assert stats.trend_p([2.0, 1.0]) == 1.0


def ar1(draw: random.Random, n: int, correlation: float) -> list[float]:
    values, state = [], 0.0
    for _ in range(n):
        state = correlation * state + draw.gauss(0, math.sqrt(1 - correlation**2))
        values.append(state)
    return values


def test_batching_removes_most_autocorrelation_and_restores_coverage() -> None:
    draw = random.Random(5)
    batched_hits = raw_hits = 0
    for _ in range(300):
        values = ar1(draw, 200, 0.8)
        raw, batched = stats.median_interval(values), stats.median_interval(stats.batch_medians(values))
        assert raw.low is not None and raw.high is not None and batched.low is not None and batched.high is not None
        raw_hits += raw.low <= 0 <= raw.high
        batched_hits += batched.low <= 0 <= batched.high
    assert batched_hits > raw_hits + 60
    assert batched_hits >= 255, "85 % of 300 with only 200 values at a correlation of 0.8"


def test_lag1_of_alternation_and_of_a_constant() -> None:
    assert stats.lag1([1.0, -1.0] * 20) == pytest.approx(-0.975)
    assert stats.lag1([2.0] * 5) == 0.0
    assert stats.lag1([1.0, 2.0]) == 0.0


def test_mad_estimates_a_normal_deviation() -> None:
    draw = random.Random(2)
    assert stats.mad([draw.gauss(0, 3) for _ in range(4000)]) == pytest.approx(3, rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
@settings(deadline=None)
def test_kendalls_tau_is_scipys_tau_b_ties_included(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import kendalltau

    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(ValueError, match="no order"):
            stats.kendall_tau(x, y)
    else:
        assert stats.kendall_tau(x, y) == pytest.approx(float(kendalltau(x, y).statistic), abs=1e-12)


def test_rank_agreement_refuses_what_does_not_pair_or_rank() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        stats.rank_agreement([1.0], [1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="finite"):
        stats.kendall_tau([1.0, math.nan], [1.0, 2.0])


def test_rank_agreement_draws_whole_families() -> None:
    """Each draw equals tau-b over the drawn networks themselves, so its quantiles are those of a plain bootstrap."""
    from scipy.stats import kendalltau

    generator = random.Random(5)
    families = [number % 7 for number in range(30)]
    x = [generator.random() for _ in families]
    y = [value + generator.random() for value in x]

    def plain(drawn: list[int]) -> float:
        taken = [place for family in drawn for place, own in enumerate(families) if own == family]
        return float(kendalltau([x[place] for place in taken], [y[place] for place in taken]).statistic)

    found = stats.rank_agreement(x, y, families, seed=3)
    expected = stats.cluster_interval(plain, 7, seed=3)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert found.point == pytest.approx(plain(list(range(7))))
    assert found.low is not None and found.low < found.point < (found.high or 0)
    assert stats.rank_agreement(x, y, families, seed=3) == found


def test_like_networks_count_as_one_draw() -> None:
    """Ten copies of every network say no more than one: the interval by family does not shrink."""
    generator = random.Random(2)
    x = [generator.random() for _ in range(12)]
    y = [value + generator.random() for value in x]
    once = stats.rank_agreement(x, y, list(range(12)))
    copied = stats.rank_agreement(x * 10, y * 10, list(range(12)) * 10)
    apart = stats.rank_agreement(x * 10, y * 10, list(range(120)))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low < (once.high - once.low) / 2  # type: ignore[operator]


def test_few_families_and_a_perfect_order_have_no_interval() -> None:
    ordered = [float(value) for value in range(8)]
    assert stats.rank_agreement(ordered, ordered, list(range(8))).point == 1.0
    assert stats.rank_agreement(ordered, ordered, list(range(8))).low is None
    crossed = [0.0, 2.0, 1.0, 3.0, 5.0, 4.0, 6.0, 7.0]
    assert stats.rank_agreement(ordered, crossed, [0, 0, 1, 1, 2, 2, 3, 3]).low is None
    assert stats.rank_agreement(ordered, crossed, list(range(8))).low is not None


def test_the_cluster_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    """200 values each its own cluster: mean ± 1.96 standard errors, to the noise of 1000 draws."""
    generator = random.Random(4)
    values = [generator.gauss(0, 1) for _ in range(200)]
    mean = math.fsum(values) / 200
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 199 / 200)
    low, high = stats.cluster_interval(lambda drawn: math.fsum(values[number] for number in drawn) / len(drawn), 200)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)
