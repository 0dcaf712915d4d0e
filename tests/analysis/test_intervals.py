"""Intervals that include the scatter between sittings."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats as scipy_stats

from effbench.analysis.intervals import Intervals, change_between, interval
from effbench.core.sittings import Scatter

NONE = Scatter(0.0, 1e9)


def test_the_interval_of_one_sitting_is_t_times_the_root_of_both_variances() -> None:
    launches, scatter = [0.01, 0.03, -0.01, 0.02, 0.0], Scatter(0.02, 4.0)
    of_launches = scipy_stats.tvar(launches) / 5
    total = of_launches + scatter.tau**2
    freedom = total**2 / (of_launches**2 / 4 + scatter.tau**4 / 4)
    half = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(total)
    found = interval([launches], scatter)
    assert found.low == pytest.approx(math.exp(0.01 - half)) and found.high == pytest.approx(math.exp(0.01 + half))
    assert (found.point, found.n) == (pytest.approx(math.exp(0.01)), 5)


def test_without_scatter_the_interval_is_students() -> None:
    launches = [0.01, 0.03, -0.01]
    low, high = scipy_stats.t.interval(0.95, 2, loc=0.01, scale=scipy_stats.sem(launches))
    found = interval([launches], NONE)
    assert found.low == pytest.approx(math.exp(low), rel=1e-6) and found.high == pytest.approx(math.exp(high), rel=1e-6)


def test_launches_that_are_each_a_sitting_show_both_variances_themselves() -> None:
    launches = [0.01, 0.03, -0.01, 0.05]
    low, high = scipy_stats.t.interval(0.95, 3, loc=0.02, scale=scipy_stats.sem(launches))
    found = interval([[value] for value in launches], Scatter(0.5, 4.0))
    assert found.low == pytest.approx(math.exp(low)) and found.high == pytest.approx(math.exp(high))


def test_several_sittings_narrow_the_interval_and_one_long_sitting_does_not() -> None:
    scatter = Scatter(0.03, 10.0)
    draw = random.Random(4)
    launches = [draw.gauss(0, 0.005) for _ in range(12)]
    one, three = interval([launches], scatter), interval([launches[:4], launches[4:8], launches[8:]], scatter)
    longer = interval([launches * 20], scatter)
    assert one.half_width and three.half_width and longer.half_width
    assert three.half_width < 0.7 * one.half_width
    assert longer.half_width > 0.06, "more launches do not show what another sitting adds"


def test_two_launches_give_no_interval() -> None:
    assert interval([[0.1, 0.2]], NONE).low is None
    assert Intervals({}, NONE).over({}) is None and Intervals({}, NONE).over({1: []}) is None


def test_a_change_within_one_sitting_is_welchs() -> None:
    left, right = [1.0, 1.2, 0.9, 1.1, 1.3], [1.5, 1.9, 1.4]
    expected = scipy_stats.ttest_ind(right, left, equal_var=False).confidence_interval()
    found = change_between(left, right, None)
    assert (found.low, found.high) == (pytest.approx(math.exp(expected.low)), pytest.approx(math.exp(expected.high)))
    assert change_between([1.0], right, None).low is None
    assert change_between([1.0, 1.0], [2.0, 2.0], None).low == pytest.approx(math.e)


def test_a_change_between_sittings_adds_the_variance_of_both() -> None:
    found = change_between([0.0, 0.0], [0.0, 0.0], Scatter(0.02, 5.0))
    half = scipy_stats.t.ppf(0.975, 5) * 0.02 * math.sqrt(2)
    assert (found.low, found.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))


def test_looks_widen_what_launches_add_and_not_what_a_sitting_adds() -> None:
    launches = [0.01, 0.03, -0.01]
    plain = interval([launches], NONE, 0.99)
    assert interval([launches], NONE, 0.95, looks=5).low == pytest.approx(plain.low), "five looks at 95 % in all"
    spread = [[0.01, 0.02], [0.03, 0.05]]
    assert interval(spread, Scatter(0.02, 6.0), 0.95, looks=5).low == pytest.approx(
        interval(spread, Scatter(0.02, 6.0), 0.99).low
    ), "each look brings new sittings, so all five count"
    same = [0.01, 0.01, 0.01]
    assert interval([same], Scatter(0.02, 6.0), 0.95, looks=5) == interval([same], Scatter(0.02, 6.0))
