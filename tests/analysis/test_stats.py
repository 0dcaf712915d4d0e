"""Statistics against scipy and closed forms. How they do on simulated clocks is in test_stats_clocks."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.analysis import stats

pytestmark = pytest.mark.quick

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


@pytest.mark.parametrize("n", [2, 5, 6, 15, 40, 101])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_median_interval_is_scipys(n: int, confidence: float) -> None:
    from scipy.stats import quantile_test

    draw = random.Random(n)
    values = [draw.random() for _ in range(n)]
    expected = quantile_test(values, q=0.0, p=0.5).confidence_interval(confidence)
    estimate = stats.median_interval(values, confidence)
    if estimate.low is None or estimate.high is None:
        assert estimate.low is None and estimate.high is None
        assert math.isnan(expected.low) and math.isnan(expected.high)
    else:
        assert (estimate.low, estimate.high) == (expected.low, expected.high)


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


def test_ratio_needs_three_launches_for_an_interval() -> None:
    assert stats.ratio_over_launches([]) is None
    assert stats.ratio_over_launches([[], []]) is None
    two = stats.ratio_over_launches([[0.1] * 10, [0.1] * 10])
    assert two is not None and two.low is None and two.point == pytest.approx(math.exp(0.1))
    three = stats.ratio_over_launches([[0.1] * 10] * 3)
    assert three is not None and three.low == pytest.approx(math.exp(0.1))


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
            stats.rank_agreement(x, y, [0] * len(x))
    else:
        found = stats.rank_agreement(x, y, [0] * len(x))
        assert found.point == pytest.approx(float(kendalltau(x, y).statistic), abs=1e-12)


def test_rank_agreement_refuses_what_does_not_pair_or_rank() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        stats.rank_agreement([1.0], [1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="finite"):
        stats.rank_agreement([1.0, math.nan], [1.0, 2.0], ["a", "b"])


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


def test_mad_and_deviation_are_scipys() -> None:
    import numpy as np
    from scipy.stats import median_abs_deviation

    draw = random.Random(8)
    values = [draw.gauss(5, 3) for _ in range(31)]
    assert stats.mad(values) == pytest.approx(float(median_abs_deviation(values, scale="normal")), rel=1e-5)
    assert stats.deviation(values) == pytest.approx(float(np.std(values, ddof=1)), rel=1e-12)
    assert stats.deviation([1e200, 3e200]) == pytest.approx(math.sqrt(2) * 1e200), "no overflow on the way"
    with pytest.raises(ValueError, match="two values"):
        stats.deviation([1.0])


def sign_test(values: list[float], threshold: float = 0.0) -> float:
    return float(stats.sign_p(np.array(sum(value > threshold for value in values)), np.array(len(values))))


def t_test(values: list[float], threshold: float = 0.0) -> float:
    return float(stats.t_p(np.array(values, dtype=float), threshold))


def holm(p_values: list[float]) -> list[float]:
    (adjusted,) = stats.holm(np.array([p_values], dtype=float)).tolist()
    return list(adjusted)


coarse = st.integers(-4, 4).map(float)
"""Values that tie with each other and with the threshold."""


@given(st.lists(coarse, max_size=300), coarse)
@settings(deadline=None)
def test_sign_test_is_scipys_binomial_test(values: list[float], threshold: float) -> None:
    from scipy.stats import binomtest

    found = sign_test(values, threshold)
    if not values:
        assert found == 1.0
        return
    above = sum(value > threshold for value in values)
    assert found == pytest.approx(float(binomtest(above, len(values), 0.5, "greater").pvalue), rel=1e-9)


def test_the_sign_test_rejects_exactly_where_the_median_interval_clears_the_threshold() -> None:
    """The interval is the test inverted: at 95 % two-sided its lower end lies above 0 if and only if p ≤ 2.5 %."""
    draw = random.Random(6)
    seen = set()
    for _ in range(300):
        values = [draw.gauss(0.4, 1) for _ in range(draw.randint(6, 40))]
        low = stats.median_interval(values).low
        assert low is not None
        seen.add(low > 0)
        assert (low > 0) == (sign_test(values) <= 0.025)
    assert seen == {True, False}


@given(st.lists(st.integers(-9999, 9999).map(lambda n: n / 1000), min_size=2, max_size=30), st.floats(-10, 10))
@settings(deadline=None)
def test_t_test_is_scipys(values: list[float], threshold: float) -> None:
    from scipy.stats import ttest_1samp

    if len(set(values)) > 1:
        expected = float(ttest_1samp(values, threshold, alternative="greater").pvalue)
        assert t_test(values, threshold) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_no_scatter_seen_proves_nothing() -> None:
    """One launch, equal launches and launches that differ by rounding."""
    for values in ([], [0.5], [0.5, 0.5], [0.1] * 7, [0.1, 0.1 + 1e-16, 0.1 - 1e-16], [0.0, 0.0, 0.0]):
        assert t_test(values, -1.0) == 1.0, values
    assert t_test([0.1, 0.11, 0.09]) < 0.01


def test_nan_is_left_out_of_a_t_test_and_refused_by_the_bootstrap() -> None:
    assert t_test([0.1, math.nan, 0.11, 0.09]) == t_test([0.1, 0.11, 0.09])
    assert t_test([math.nan] * 3) == t_test([0.1, math.nan]) == 1.0
    with pytest.raises(ValueError, match="NaN"):
        stats.cluster_bootstrap([[0.1], [math.nan], [0.2]])


p_lists = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 1.0])), max_size=6)


@given(p_lists)
@settings(deadline=None)
def test_holm_is_closed_testing_with_bonferronis_bound(p_values: list[float]) -> None:
    """A hypothesis falls only if every set that holds it falls by Bonferroni: the definition that Holm's steps shorten
    (Marcus, Peritz & Gabriel, 1976), here over all subsets.
    """
    places = range(len(p_values))
    subsets = [chosen for size in places for chosen in combinations(places, size + 1)]
    expected = [
        max(min(1.0, len(chosen) * min(p_values[other] for other in chosen)) for chosen in subsets if place in chosen)
        for place in places
    ]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12, abs=0)


def test_holms_own_steps() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: 4·0.01, 3·0.02, 2·0.03 and 1·0.04, which may not fall below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert stats.holm(np.array([[0.04, 0.01], [0.5, 0.6]])).tolist() == [[0.04, 0.02], [1.0, 1.0]], "row by row"


def test_alpha_is_spent_in_full_and_mostly_late() -> None:
    assert stats.alpha_spending(0.05, 4) == pytest.approx((0.005, 0.01, 0.015, 0.02))
    assert stats.alpha_spending(0.05, 1) == (0.05,)
    for looks in range(1, 30):
        assert math.fsum(stats.alpha_spending(0.01, looks)) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="at least one look"):
        stats.alpha_spending(0.05, 0)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
@settings(deadline=None)
def test_proportion_interval_is_scipys_exact_one(trials: int, share: float, confidence: float) -> None:
    from scipy.stats import binomtest

    events = round(share * trials)
    expected = binomtest(events, trials).proportion_ci(confidence, method="exact")
    found = stats.proportion_interval(events, trials, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert (found.point, found.n) == (events / trials, trials)


def test_no_event_of_n_is_the_rule_of_three() -> None:
    """0 of 300 supports "at most 1 %" at 95 % one-sided, which is the upper end at 90 % two-sided."""
    assert stats.proportion_interval(0, 300, 0.9).high == pytest.approx(1 - 0.05 ** (1 / 300))
    assert stats.proportion_interval(0, 300, 0.9).high == pytest.approx(3 / 300, rel=0.01)
    for events, trials in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="not a proportion"):
            stats.proportion_interval(events, trials)


def test_cluster_bootstrap_is_the_plain_one_in_two_levels() -> None:
    """Against loops over random.choices: launches first, then the rounds of each drawn launch."""
    draw = random.Random(12)
    launches = [
        [draw.gauss(offset, 0.02) for _ in range(size)] for offset, size in ((0.0, 5), (0.04, 8), (0.02, 3), (0.07, 6))
    ]
    medians = []
    for _ in range(4000):
        chosen = draw.choices(launches, k=len(launches))
        medians.append(stats.median([stats.median(draw.choices(rounds, k=len(rounds))) for rounds in chosen]))
    found = stats.cluster_bootstrap(launches, 0.8, draws=4000)
    assert found is not None and found.low is not None and found.high is not None
    assert math.log(found.point) == pytest.approx(stats.median([stats.median(rounds) for rounds in launches]))
    assert math.log(found.low) == pytest.approx(stats.quantile(medians, 0.1), abs=0.002)
    assert math.log(found.high) == pytest.approx(stats.quantile(medians, 0.9), abs=0.002)


def test_cluster_bootstrap_needs_three_launches_and_keeps_its_seed() -> None:
    assert stats.cluster_bootstrap([]) is None and stats.cluster_bootstrap([[], []]) is None
    two = stats.cluster_bootstrap([[0.1], [0.3], []])
    assert two is not None and (two.low, two.high, two.n) == (None, None, 2)
    assert two.point == pytest.approx(math.exp(0.2))
    three = [[0.1, 0.2], [0.3, 0.2, 0.4], [0.2, 0.1]]
    assert stats.cluster_bootstrap(three, seed=1) == stats.cluster_bootstrap(three, seed=1)
    scattered = [[number / 7 % 1, number / 11 % 1] for number in range(40)]
    assert stats.cluster_bootstrap(scattered, seed=1) != stats.cluster_bootstrap(scattered, seed=2)


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=6), min_size=3, max_size=6))
@settings(deadline=None, max_examples=50)
def test_cluster_bootstrap_holds_its_point(launches: list[list[float]]) -> None:
    found = stats.cluster_bootstrap(launches, draws=100)
    assert found is not None and found.low is not None and found.high is not None
    assert found.low <= found.point <= found.high
    assert math.log(found.low) >= min(map(min, launches)) - 1e-12
