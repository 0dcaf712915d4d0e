"""Resampled A/A measurements: false-alarm rates are as promised, and power equals closed forms."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy
import pytest
from recordings import evidence, recorded

from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.gates import calibration
from effbench.gates import decision_rule as gate
from effbench.gates.ab_pairs import Round
from effbench.gates.alarm_rate import resample
from effbench.gates.calibration import Scatter
from effbench.gates.evidence import Evidence


def evidence_of(**options: float) -> Evidence:
    return evidence(recorded(**options))  # type: ignore[arg-type]


# --- resampled suites ----------------------------------------------------------------------------------------


@pytest.mark.bulk
def test_the_gate_keeps_its_word_and_sees_more_of_more() -> None:
    found = resample(evidence_of(launches=26, between=0.01), suites=200)
    none, *slower = found.gate
    assert [item.slowdown for item in slower] == [0.03, 0.05, 0.10]
    assert none.suite_called.low is not None and none.suite_called.low <= 0.05, "alpha, over the whole suite"
    assert none.suite_called.n == 200 and none.called.n == 800
    called = [none.called.point, *(item.called.point for item in slower)]
    assert called == sorted(called) and called[-1] == 1.0
    assert slower[0].passed.low is not None and slower[0].passed.low <= 0.05, "slower by the tolerance"
    for item in found.gate:
        assert item.called.point + item.undecided.point + item.passed.point == pytest.approx(1)
        assert item.suite_called.point + item.suite_undecided.point + item.suite_passed.point == pytest.approx(1)
        assert 4 <= item.launches <= 13


@pytest.mark.bulk
def test_the_same_seed_gives_the_same_suites() -> None:
    source = evidence_of(between=0.03)
    assert resample(source, suites=20, seed=3) == resample(source, suites=20, seed=3)
    assert resample(source, suites=20, seed=3) != resample(source, suites=20, seed=4)


def test_too_few_launches_are_drawn_twice_and_it_says_so() -> None:
    found = resample(evidence_of(launches=6), suites=30)
    assert "with replacement" in found.caveats[0]
    assert "the same 13 launches" in resample(evidence_of(launches=13), suites=5).caveats[0]
    assert "without replacement" in resample(evidence_of(launches=14), suites=5).caveats[0]


def test_a_suite_of_all_launches_is_always_the_same() -> None:
    """Drawn without replacement, six of six are six of six: a verdict near its threshold never changes."""
    rule = gate.Rule(looks=(6,))
    for seed in range(6):
        (none,) = resample(
            evidence_of(cells=1, launches=6, between=0.02, seed=seed), suites=40, slowdowns=[], rule=rule
        ).gate
        assert none.passed.point in (0.0, 1.0)
    (none,) = resample(evidence_of(cells=1, launches=5, between=0.04), suites=40, slowdowns=[], rule=rule).gate
    assert 0 < none.passed.point < 1, "with replacement it does"


def test_one_launch_never_alarms_and_it_says_so() -> None:
    found = resample(evidence_of(launches=1, within=0.001), suites=30)
    for item in found.gate:
        assert item.called.point == 0 and item.passed.point == 0, "the t test has one value, however often drawn"


def test_times_without_any_scatter_never_alarm() -> None:
    """No scatter seen is no proof that there is none."""
    source = {"cell": [[Round(launch, 0, 1e-3, 1e-3)] * 5 for launch in range(13)]}
    found = resample(evidence(source), suites=20)
    assert all(item.called.point == 0 for item in found.gate)
    (answer,) = calibration.needed_launches(evidence(source), 0.03).values()
    assert answer.value is None and "do not differ" in answer.reason


def test_disturbed_and_missing_cells_say_so_and_never_alarm() -> None:
    source = recorded(cells=3)
    source["cell1"] = [
        [replace(item, flags=("shared",), candidate_s=1.0) for item in items] for items in source["cell1"]
    ]
    source["gone"] = []
    found = resample(evidence(source), suites=40)
    assert "cell1 cannot be judged: all its 240 rounds were disturbed." in found.caveats
    assert "gone cannot be judged: it has no rounds on both sides." in found.caveats
    assert found.gate[0].called.n == 80, "two usable cells a suite"
    assert found.gate[0].called.point == 0 and found.gate[0].suite_passed.point == 0
    nothing = resample(evidence({"cell1": source["cell1"], "gone": []}), suites=5)
    assert nothing.gate == () and len(nothing.caveats) == 1
    assert (
        calibration.median_answer(calibration.needed_launches(evidence({"cell1": source["cell1"]}), 0.03)).value is None
    )
    assert resample(evidence({}), suites=5).gate == ()


def test_unequal_rounds_and_launches_are_all_used() -> None:
    source = recorded(cells=2)
    source["cell0"] = [items[: 1 + number % 12] for number, items in enumerate(source["cell0"])]
    source["cell1"] = source["cell1"][:3]
    found = resample(evidence(source), suites=60)
    assert found.recorded == 20 and found.gate[0].suite_called.point == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": 0}, "suites"),
        ({"slowdowns": [0.0]}, "0.03"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        resample(evidence_of(cells=1, launches=2), **options)  # type: ignore[arg-type]


# --- power -----------------------------------------------------------------------------------------


def known(between: float = 0.01, within: float = 0.004, rounds: int = 20) -> Scatter:
    return Scatter("cell", 13, rounds, within, between, 0.0)


@pytest.mark.parametrize(("launches", "slowdown"), [(4, 0.05), (6, 0.03), (9, 0.022), (13, 0.02), (13, 0.01)])
def test_power_is_that_of_the_t_test(launches: int, slowdown: float) -> None:
    """One look, quiet rounds: the sign test never decides, so the noncentral t distribution is the answer."""
    from scipy.stats import nct, t

    level = 0.05 / 12
    centre = (math.log1p(slowdown) - math.log1p(0.01)) / 0.01 * math.sqrt(launches)
    expected = 1 - nct.cdf(t.ppf(1 - level, launches - 1), launches - 1, centre) if centre else level
    found = calibration.power(known(), slowdown, (launches,), cells=12)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / calibration.DRAWS))


def test_power_is_what_simulated_gates_call() -> None:
    """Noisy rounds and all four looks, against rounds drawn one by one and judged by the gate's own tests."""
    draw, spent, called = random.Random(5), stats.alpha_spending(0.05, 4), 0
    between, within, rounds, suites = 0.006, 0.05, 12, 300
    apart = math.sqrt(between**2 + within**2 * float(numpy.var(numpy.median(_normal(4000, rounds), axis=1))))
    for _ in range(suites):
        launches = []
        for _ in range(13):
            centre = math.log1p(0.03) + draw.gauss(0, between)
            launches.append([centre + draw.gauss(0, within) for _ in range(rounds)])
        values = numpy.array([launches])
        called += any(
            gate.p_above(values, numpy.arange(look)[None], 0.01)[0, 0] * 6 <= alpha
            for look, alpha in zip(gate.LOOKS, spent, strict=True)
        )
    expected = stats.proportion_interval(called, suites, 0.999)
    found = calibration.power(known(apart, within, rounds), 0.03, gate.LOOKS, cells=6)
    assert expected.low is not None and expected.high is not None
    assert 0.2 < expected.point < 0.95
    assert expected.low - 0.02 <= found <= expected.high + 0.02


def _normal(draws: int, rounds: int) -> numpy.ndarray:
    return numpy.random.default_rng(2).standard_normal((draws, rounds))


def test_needed_and_detectable_are_two_sides_of_one_thing() -> None:
    source = evidence_of(cells=2, launches=12, between=0.012)
    seen = calibration.smallest_detectable(source, 9)
    for cell, answer in seen.items():
        assert answer.value is not None
        assert calibration.needed_launches(source, answer.value)[cell].value <= 9  # type: ignore[operator]
        harder = calibration.needed_launches(source, answer.value * 0.9)[cell].value
        assert harder is None or harder > 9


def test_more_launches_see_less_and_smaller_slowdowns_take_more() -> None:
    source = evidence_of(cells=1)
    sizes = [
        calibration.median_answer(calibration.smallest_detectable(source, count)).value for count in (4, 6, 13, 28)
    ]
    assert sizes == sorted(sizes, reverse=True)  # type: ignore[type-var]
    needed = [
        calibration.median_answer(calibration.needed_launches(source, share)).value for share in (0.10, 0.05, 0.03)
    ]
    assert needed == sorted(needed) and needed[0] == 4  # type: ignore[type-var]


def test_a_plan_of_as_many_launches_as_the_rule_has_its_looks() -> None:
    assert calibration.looks_of(13, gate.Rule()) == (4, 6, 9, 13)
    assert calibration.looks_of(10, gate.Rule()) == (4, 6, 9, 10)
    assert calibration.looks_of(3, gate.Rule()) == (3,)
    assert calibration.looks_of(60, gate.Rule()) == (4, 6, 9, 13, 19, 28, 41, 60)
    assert calibration.looks_of(5, gate.Rule(looks=(2,))) == (2, 3, 5)


def test_a_plan_does_not_depend_on_the_looks_of_a_shorter_gate() -> None:
    """A gate of ten launches looks last at 10; planning sixty from there would look at every other launch."""
    source, short = evidence_of(cells=1, between=0.012), gate.Rule(looks=calibration.looks_of(10))
    assert calibration.survey(source, rule=short) == calibration.survey(source)


def test_what_no_plan_reaches_has_a_reason() -> None:
    wild = evidence_of(cells=1, launches=8, between=0.3, seed=2)
    (answer,) = calibration.needed_launches(wild, 0.03).values()
    assert answer.value is None and answer.above == 60 and "more than 60" in answer.reason
    (answer,) = calibration.needed_launches(evidence_of(cells=1), 0.01).values()
    assert answer.value is None and "nothing is called a slowdown" in answer.reason
    (answer,) = calibration.smallest_detectable(evidence_of(cells=1, between=2.0), 4).values()
    assert answer.value is None and answer.above == 1.0
    (answer,) = calibration.smallest_detectable(evidence_of(cells=1, launches=1), 4).values()
    assert answer.value is None and "one launch" in answer.reason
    with pytest.raises(ValueError, match="one launch"):
        calibration.power(calibration.scatter(evidence_of(cells=1, launches=1))[0], 0.05, (4,))


def test_scatter_is_what_was_put_in() -> None:
    (found,) = calibration.scatter(
        evidence_of(cells=1, launches=200, rounds=40, within=0.03, between=0.01, flagged=0.1)
    )
    assert found.within == pytest.approx(0.03, rel=0.05)
    assert found.between == pytest.approx(math.hypot(0.01, 0.03 * math.sqrt(math.pi / 2 / 36)), rel=0.15)
    assert abs(found.centre or 1) < 0.003 and found.rounds == 36
    assert found.set_aside == pytest.approx(800, rel=0.1)
