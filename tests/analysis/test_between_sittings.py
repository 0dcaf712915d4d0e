"""The scatter between sittings: its estimate, and intervals that include it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run_of
from scipy import stats as scipy_stats

from effbench.analysis import between_sittings, run_diff, summary
from effbench.analysis.between_sittings import (
    LEAST_TAU,
    LONGEST_S,
    PAUSE_S,
    REFERENCE,
    REFERENCE_FREEDOM,
    Intervals,
    RunSittings,
    Sitting,
    change_between,
    estimate,
    interval,
    share_sitting,
    sitting_numbers,
    sitting_of_launches,
)
from effbench.core.run import Launch
from effbench.core.sittings import BetweenSittings, Scatter

NONE = Scatter(0.0, 1e9)


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


# --- the estimate -----------------------------------------------------------------------------------------------


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


# --- intervals --------------------------------------------------------------------------------------------------


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


# --- two runs ---------------------------------------------------------------------------------------------------


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


def at(start: str, end: str, number: int = 0) -> Launch:
    return Launch(number, number, start=f"2026-11-28T{start}+00:00", end=f"2026-11-28T{end}+00:00")


def test_two_runs_share_a_sitting_if_they_follow_each_other_at_once() -> None:
    run = run_of({"scale=x1,groups=1": 0.01})
    first = replace(run, launches=(at("10:00:00", "10:00:20"),))
    assert share_sitting(first, replace(run, launches=(at("10:01:19", "10:01:30"),)))
    assert not share_sitting(first, replace(run, launches=(at("10:01:20", "10:01:30"),)))
    assert not share_sitting(first, run), "a launch without times may have been at any time"
    spread = replace(
        run, launches=(at("10:00:00", "10:00:20"), at("10:00:30", "10:00:40", 1), at("10:30:00", "10:30:20", 2))
    )
    assert sitting_of_launches(spread) == {0: 0, 1: 0, 2: 1}


def test_of_two_runs_the_wider_scatter_counts_whichever_comes_first() -> None:
    run = run_of({"scale=x1,groups=1": 0.01})
    narrow, wide = (
        replace(run, between_sittings=BetweenSittings(Scatter(tau, 4.0), Scatter(tau, 4.0))) for tau in (0.01, 0.04)
    )
    for pair in ((narrow, wide), (wide, narrow), (run, wide)):
        assert between_sittings.scatter_of(pair, "scale=x1,groups=1", "busy") == Scatter(0.04, 4.0)
    assert between_sittings.scatter_of((run, run), "scale=x1,groups=1", "busy") is None


def test_diff_adds_the_scatter_only_between_sittings() -> None:
    cell = "scale=x1,groups=1"
    run = run_of({cell: 0.01})
    scatter = BetweenSittings(Scatter(0.025, 4.0), Scatter(0.035, 4.0))
    slower = replace(run_of({cell: 0.0105}, seed=1), between_sittings=scatter)

    def compared(start: str, end: str) -> str:
        timed = [at(start, end, number) for number in range(5)]
        runs = replace(run, launches=tuple(at("10:00:00", "10:00:20", number) for number in range(5)))
        return run_diff.compare_runs(runs, replace(slower, launches=tuple(timed)))[0].verdict

    assert between_sittings.change_note(run, run) == "", "a run of before schema 4"
    assert between_sittings.change_note(run, slower).startswith("Changes include ±14.7 % between sittings for a cell")
    assert "±10.3 %" in between_sittings.change_note(run, slower, "ratio")
    assert between_sittings.change_note(slower, run) == between_sittings.change_note(run, slower), "either side knows"
    assert compared("10:00:30", "10:00:50") == "slower"
    assert compared("12:00:00", "12:00:20") == "unsure"


# --- a run --------------------------------------------------------------------------------------------------------


def test_the_ratio_of_two_cells_takes_the_larger_scatter() -> None:
    own = {"a": {"ratio": Scatter(0.01, 9.0)}, "b": {"ratio": Scatter(0.04, 9.0)}}
    sittings = RunSittings(BetweenSittings(Scatter(0.02, 4.0), Scatter(0.03, 4.0), own), {})
    assert sittings.ratio("a", "b").scatter == Scatter(0.04, 9.0)
    assert sittings.ratio("a").scatter == Scatter(0.01, 9.0)
    assert sittings.time("a", "latency").scatter == Scatter(0.03, 4.0)
    assert sittings.ratio("a", "c").scatter == max(Scatter(0.01, 9.0), Scatter(0.02, 4.0), key=lambda found: found.tau)
    of_reference = replace(sittings, references=frozenset({"c"}))
    assert of_reference.ratio("a", "c").scatter == Scatter(0.01, 9.0), "the reference has no scatter of its own"
    assert RunSittings(None, {}).ratio("a").scatter is None


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


def test_a_run_that_stops_by_itself_is_judged_at_every_look() -> None:
    run = run_of({"scale=x1,groups=1": 0.01, "scale=x1,groups=2": 0.02})
    stopping = replace(run, sampling=replace(run.sampling, until="faster", launches=13))
    assert (RunSittings.of(run).looks, RunSittings.of(stopping).looks) == (1, 5)
    assert RunSittings.of(run).references == {"scale=x1,groups=1"}


def test_every_estimate_of_a_run_includes_the_scatter() -> None:
    times = {"scale=x1,groups=1": 0.01, "scale=x1,groups=2": 0.02}
    run = run_of(times)
    wide = replace(run, between_sittings=BetweenSittings(Scatter(0.025, 4.0), Scatter(0.035, 4.0)))
    (_, narrow), (_, found) = summary.summarise(run), summary.summarise(wide)
    for figure, tau in (("ratio", 0.025), ("latency", 0.035), ("busy", 0.035)):
        before, after = getattr(narrow, figure), getattr(found, figure)
        assert after.point == before.point
        assert after.half_width == pytest.approx(scipy_stats.t.ppf(0.975, 4) * tau, rel=0.05)
        assert after.half_width > 10 * before.half_width
    assert between_sittings.half_width(Scatter(0.025, 4.0)) == pytest.approx(
        math.expm1(0.025 * scipy_stats.t.ppf(0.975, 4))
    )
