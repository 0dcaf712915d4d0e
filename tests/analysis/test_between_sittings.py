"""The scatter between sittings."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from effbench.analysis.between_sittings import (
    LEAST_TAU,
    LONGEST_S,
    PAUSE_S,
    REFERENCE,
    REFERENCE_FREEDOM,
    Sitting,
    estimate,
    sitting_numbers,
)
from effbench.analysis.intervals import Intervals
from effbench.core.sittings import Scatter


def history(values: Sequence[float], error: float = 0.0, apart_s: float = 1000.0) -> list[Sitting]:
    """Sittings of a yardstick's ratio and of a cell "k", at these log values."""
    return [
        Sitting(
            number * apart_s,
            number * apart_s + 20,
            "2.13",
            {"ratio": (value, error)},
            {"k": {"ratio": (value, error), "latency": (value, error)}},
        )
        for number, value in enumerate(values)
    ]


def test_without_a_history_the_scatter_is_that_of_reference_machines() -> None:
    found = estimate((), {"cell": "k"})
    assert (found.ratio, found.time) == tuple(Scatter(tau, REFERENCE_FREEDOM) for tau in REFERENCE.values())
    assert (found.sittings, found.cells, found.problem) == (0, {}, "")
    assert estimate((), {}, "why").problem == "why"


def test_the_estimate_is_the_sample_variance_less_that_within_sittings_moderated() -> None:
    """Closed form: s² - mean(v) with n - 1 degrees of freedom, and the prior with its own (Smyth, 2004, equation 6)."""
    values, error, prior = [0.0, 0.02, -0.01, 0.01], 0.0001, REFERENCE["ratio"]
    variance = scipy_stats.tvar(values) - error
    pooled = math.sqrt((REFERENCE_FREEDOM * prior**2 + 3 * variance) / (REFERENCE_FREEDOM + 3))
    found = estimate(history(values, error), {"cell": "k"})
    assert found.ratio == Scatter(pytest.approx(pooled), REFERENCE_FREEDOM, 4)
    own = math.sqrt((REFERENCE_FREEDOM * pooled**2 + 3 * variance) / (REFERENCE_FREEDOM + 3))
    assert found.of("cell", "ratio") == Scatter(pytest.approx(own), REFERENCE_FREEDOM + 3, 4)
    assert found.of("another", "ratio") == found.ratio and found.of("another", "busy") == found.time
    assert found.sittings == 4


def test_a_scatter_above_the_prior_is_not_explained_away() -> None:
    values = [0.0, 0.2, -0.1, 0.1]
    found = estimate(history(values), {"cell": "k"})
    assert found.ratio.tau == found.of("cell", "ratio").tau == pytest.approx(scipy_stats.tstd(values))


def test_one_sitting_tells_nothing_about_scatter() -> None:
    assert estimate(history([0.5]), {"cell": "k"}) == estimate((), {})


def test_a_variance_below_that_within_sittings_is_no_scatter_and_never_less_than_the_least() -> None:
    steady = estimate(history([0.0] * 400, 0.01), {"cell": "k"})
    assert steady.of("cell", "ratio").tau == LEAST_TAU
    assert steady.of("cell", "ratio").freedom == REFERENCE_FREEDOM + 399


def test_runs_of_one_sitting_count_once() -> None:
    """Else a job that measures ten times in a row would seem to know its machine."""
    close = history([0.0, 0.06, -0.03], apart_s=30.0)
    assert estimate(close, {"cell": "k"}) == estimate((), {})
    later = replace(close[0], start_s=5000.0, end_s=5020.0)
    assert estimate([*close, later], {"cell": "k"}).sittings == 2
    # The run that began last counts, whichever stands last in the ledger.
    assert estimate([later, *close], {"cell": "k"}) == estimate([close[2], later], {"cell": "k"})


@given(st.permutations(history([0.01, 0.05, -0.02, 0.03])))
@settings(deadline=None)
def test_the_order_of_the_ledger_does_not_matter(shuffled: list[Sitting]) -> None:
    expected, found = (
        estimate(each, {"c": "k"}).of("c", "ratio") for each in (history([0.01, 0.05, -0.02, 0.03]), shuffled)
    )
    assert found.tau == pytest.approx(expected.tau) and found.freedom == expected.freedom


@pytest.mark.parametrize(
    ("starts", "numbers"),
    [
        ([0, 20 + PAUSE_S - 1, 40 + 2 * PAUSE_S - 2], [0, 0, 0]),
        ([0, 20 + PAUSE_S], [0, 1]),
        ([*range(0, 700, 25)], [0] * 28),
        ([500, 0], [1, 0]),
    ],
)
def test_a_sitting_ends_with_a_pause(starts: list[float], numbers: list[int]) -> None:
    assert sitting_numbers([(start, start + 20) for start in starts]) == numbers


def test_runs_that_follow_each_other_at_once_are_another_sitting_after_ten_minutes() -> None:
    spans = [(start, start + 20.0) for start in range(0, 700, 25)]
    assert sitting_numbers(spans, LONGEST_S) == [0] * 24 + [1] * 4


def drawn(rng: random.Random, tau: float, rounds: int = 10, memory: float = 0.6) -> list[list[float]]:
    """Three launches of one sitting: blocks of 3 % that remember the last one, launches of 1 %, a sitting of `tau`."""
    sitting, found = rng.gauss(0, tau), []
    for _ in range(3):
        launch, block, blocks = rng.gauss(0, 0.01), rng.gauss(0, 0.03), []
        for _ in range(rounds):
            blocks.append(sitting + launch + block)
            block = memory * block + math.sqrt(1 - memory**2) * rng.gauss(0, 0.03)
        found.append(blocks)
    return found


@pytest.mark.parametrize("tau", [0.01, 0.03, 0.05])
def test_intervals_hold_on_the_next_sitting_where_those_within_a_sitting_do_not(tau: float) -> None:
    rng, held, within = random.Random(7), 0, 0
    for _ in range(200):
        past = []
        for number in range(6):
            medians = [sorted(blocks)[5] for blocks in drawn(rng, tau)]
            past += history([sorted(medians)[1]], scipy_stats.tvar(medians) / 3)
            past[-1] = replace(past[-1], start_s=number * 1000.0, end_s=number * 1000.0 + 20)
        now = dict(enumerate(drawn(rng, tau)))
        found = Intervals({}, estimate(past, {"c": "k"}).of("c", "ratio")).over(now)
        old = Intervals().over(now)
        held += found.low <= 1 <= found.high
        within += old.low <= 1 <= old.high
    assert held >= 0.92 * 200, "95 % less two standard deviations of 200 trials"
    assert within < 0.92 * 200, "if these held too, the history would be needless"
