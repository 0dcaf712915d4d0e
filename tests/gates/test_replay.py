"""Recorded pairs replayed: the gate in bulk is the gate, its power is that of closed forms, and nothing cries wolf."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import CELLS, run_of

from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.core.run import Run
from effbench.gates import calibration
from effbench.gates import decision_rule as gate
from effbench.gates import many as many_gates
from effbench.gates.ab_pairs import Pair, Round
from effbench.gates.calibration import Scatter
from effbench.gates.many import PASS, REGRESSION, Record, record
from effbench.gates.replay import Replay, replay

Source = dict[str, list[list[Round]]]


def recorded(
    *,
    cells: int = 4,
    launches: int = 20,
    rounds: int = 12,
    within: float = 0.02,
    between: float = 0.008,
    drift: float = 0.0,
    flagged: float = 0.0,
    seed: int = 0,
) -> Source:
    """An A/A measurement: log-normal noise of both sides by round, of the ratio by launch, of both sides by launch."""
    draw = random.Random(seed)
    found: Source = {}
    for cell in range(cells):
        found[f"cell{cell}"] = []
        for launch in range(launches):
            common, offset = draw.gauss(0, drift), draw.gauss(0, between)
            side = within / math.sqrt(2)
            found[f"cell{cell}"].append(
                [
                    Round(
                        launch,
                        number,
                        1e-3 * math.exp(common + draw.gauss(0, side)),
                        1e-3 * math.exp(common + offset + draw.gauss(0, side)),
                        ("shared",) if draw.random() < flagged else (),
                    )
                    for number in range(rounds)
                ]
            )
    return found


def pair_of(slowdown: float = 0.0, **options: float) -> Pair:
    """Two runs as a gate stores them, on the CPU clock."""
    sides: list[Run] = []
    for number in range(2):
        times = dict.fromkeys(CELLS, 1e-3 * (1 + number * slowdown))
        sides.append(run_of(times, launches=6, rounds=8, noise=0.01, launch_noise=0.005, seed=number, **options))  # type: ignore[arg-type]
    return Pair(*sides)


# --- the gate in bulk ------------------------------------------------------------------------------


def ragged(seed: int) -> Record:
    """A record near every threshold, with a wall clock of its own, unequal rounds, missing launches, disturbed rounds
    and restless warm-ups.
    """
    draw = random.Random(seed)
    source = recorded(cells=7, between=0.012, flagged=0.05, seed=seed)
    slow = {"cell1": 0.04, "cell2": 0.015, "cell3": 0.05, "cell6": 0.03}
    wall: dict[str, dict[int, list[Round]]] = {cell: {} for cell in source}
    for cell, launches in source.items():
        for number, items in enumerate(launches):
            ratio, waits = (
                1 + slow.get(cell, 0.0),
                math.exp(draw.gauss(0.11, 0.05)) if cell in ("cell4", "cell5") else 1.0,
            )
            kept = [replace(item, candidate_s=item.candidate_s * ratio) for item in items]
            if cell in ("cell3", "cell5"):
                kept = [replace(item, flags=("shared",)) if draw.random() < 0.06 else item for item in kept]
            launches[number] = kept[: draw.choice([0, 3, 7, 12, 12, 12])]
            quiet = [item for item in launches[number] if not item.flags]
            wall[cell][number] = [replace(item, candidate_s=item.candidate_s * waits) for item in quiet]
    unsteady = {"cell0": {launch: (int(draw.random() < 0.2), 2) for launch in range(20)}}
    return replace(record(source), clock="cpu", wall=wall, unsteady=unsteady)


@pytest.mark.parametrize("seed", range(3))
def test_many_gates_decide_as_one_gate_does(seed: int) -> None:
    """Every verdict of every suite, through all looks, with all that can be missing from a record."""
    made = ragged(seed)
    generator = numpy.random.default_rng(seed)
    drawn = numpy.array([generator.permutation(20)[:13] for _ in range(40)])
    slowed = generator.integers(7, size=40)
    shift = numpy.where(numpy.arange(7) == slowed[:, None], math.log1p(0.05), 0.0)
    rule = gate.Rule(alpha=0.2)
    verdicts, taken = many_gates.decide(many_gates.arrays(made), drawn, rule, shift)
    words = {many_gates.INCONCLUSIVE: {"INCONCLUSIVE", "ENVIRONMENT"}, REGRESSION: {"REGRESSION"}, PASS: {"PASS"}}
    for suite, places in enumerate(drawn.tolist()):
        one, used = gate.Gate(made.cells, rule), 0
        for number, look in enumerate(rule.looks):
            if one.undecided:
                used = look
            ratios, wall, disturbed, unsteady = {}, {}, {}, {}
            for column, cell in enumerate(made.cells):
                at = float(shift[suite, column])
                ratios[cell] = [[i.log_ratio + at for i in made.rounds[cell].get(n, ())] for n in places[:look]]
                wall[cell] = [[i.log_ratio + at for i in made.wall[cell].get(n, ())] for n in places[:look]]
                for counts, reasons in ((made.disturbed, disturbed), (made.unsteady, unsteady)):
                    seen = [counts.get(cell, {}).get(n, (0, 0)) for n in places[:look]]
                    bad, every = sum(few for few, _ in seen), sum(each for _, each in seen)
                    one_is_none = counts is made.disturbed and bad == 1 < every
                    if bad > 0.1 * every and not one_is_none:
                        reasons[cell] = "so"
            one.look(number, ratios, wall, disturbed=disturbed, unsteady=unsteady)
        for column, cell in enumerate(made.cells):
            assert one.found[cell].verdict in words[int(verdicts[suite, column])], (suite, cell)
        assert used == taken[suite]
    assert set(numpy.unique(verdicts)) == {0, 1, 2}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_holm_of_many_suites_is_holm_of_each(p_values: list[list[float]]) -> None:
    found = many_gates._holm(numpy.asarray(p_values))
    assert found.tolist() == [stats.holm(row) for row in p_values]


def test_p_values_are_those_of_the_tests() -> None:
    """Against scipy itself: the larger of a binomial and a t test."""
    from scipy.stats import binomtest, ttest_1samp

    source = recorded(cells=1, launches=6)["cell0"]
    values = many_gates.arrays(record({"cell0": source})).values
    found = many_gates.p_above(values, numpy.arange(6)[None], 0.0)[0, 0]
    ratios = [[item.log_ratio for item in items] for items in source]
    flat = [value for items in ratios for value in items]
    sign = binomtest(sum(value > 0 for value in flat), len(flat), alternative="greater").pvalue
    t = ttest_1samp([stats.median(items) for items in ratios], 0.0, alternative="greater").pvalue
    assert found == pytest.approx(max(sign, t), rel=1e-9)


def test_a_pair_is_recorded_on_its_clock_with_the_wall_clock_beside() -> None:
    made = record(pair_of())
    assert (made.clock, made.cells, made.launches) == ("cpu", CELLS, (0, 1, 2, 3, 4, 5))
    assert set(made.wall) == set(CELLS) and made.unsteady[CELLS[0]][0] == (0, 2)
    assert record(made) is made
    on_wall = record(pair_of(), "wall")
    assert not on_wall.wall and on_wall.clock == "wall"
    assert replay(made, suites=5).clock == "cpu"


# --- replay ----------------------------------------------------------------------------------------


def by_rule(found: Replay, arrangement: str) -> dict[str, float]:
    return {item.rule: item.alarm.point for item in found.rules if item.arrangement == arrangement}


PAIRED = "paired sign interval"
UNPAIRED = ["mean > 5 %", "min > 5 %", "median > 7 %", "t, p < 0.05", "U, p < 0.05", "bootstrap t, p < 0.05, 1 %"]


@pytest.mark.bulk
def test_drift_between_launches_breaks_rules_that_do_not_pair() -> None:
    """Both sides drift by 15 % from launch to launch: harmless within one, ruinous between two."""
    drifting = replay(recorded(drift=0.15, between=0.0), suites=60, seed=1)
    calm = replay(recorded(drift=0.0, between=0.0), suites=60, seed=1)
    sequential, interleaved = by_rule(drifting, "sequential"), by_rule(drifting, "interleaved")
    assert all(sequential[name] > 0.2 for name in UNPAIRED)
    assert all(interleaved[name] < 0.07 for name in [*UNPAIRED, PAIRED])
    assert sequential[PAIRED] > 0.2, "pairs across launches are no pairs"
    assert all(share < 0.07 for name, share in by_rule(calm, "sequential").items() if name in UNPAIRED)
    assert drifting.gate[0].suite_called.point == 0 == calm.gate[0].suite_called.point


@pytest.mark.bulk
def test_the_gate_keeps_its_word_and_sees_more_of_more() -> None:
    found = replay(recorded(launches=26, between=0.01), suites=200)
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
    for rule in found.rules:
        assert 0 <= rule.alarm.point <= rule.suite_alarm.point <= 1
        powers = [share.point for share in rule.power.values()]
        assert powers == sorted(powers), rule.rule


@pytest.mark.bulk
def test_the_same_seed_gives_the_same_suites() -> None:
    source = recorded()
    assert replay(source, suites=20, seed=3) == replay(source, suites=20, seed=3)
    assert replay(source, suites=20, seed=3) != replay(source, suites=20, seed=4)


def test_it_says_how_far_it_has_come() -> None:
    told: list[float] = []
    replay(recorded(cells=2), suites=10, tell=lambda done, doing: told.append(done))
    assert told == sorted(told) and told[-1] == pytest.approx(1)


def test_a_sitting_of_several_launches_sees_several() -> None:
    """Twelve rounds of four launches pair better than of one: the paired rule sees 3 % more often."""
    source = recorded(cells=1, between=0.0, within=0.06)
    found = [replay(source, suites=60, slowdowns=[0.03], sitting=sitting) for sitting in (1, 4)]
    powers = [
        next(item.power[0.03].point for item in each.rules if (item.rule, item.arrangement) == (PAIRED, "interleaved"))
        for each in found
    ]
    assert powers[1] > powers[0] + 0.2


def test_too_few_launches_are_drawn_twice_and_it_says_so() -> None:
    found = replay(recorded(launches=6), suites=30)
    assert "with replacement" in found.caveats[0]
    assert "the same 13 launches" in replay(recorded(launches=13), suites=5).caveats[0]
    assert "without replacement" in replay(recorded(launches=14), suites=5).caveats[0]


def test_a_suite_of_all_launches_is_always_the_same() -> None:
    """Drawn without replacement, six of six are six of six: a verdict near its threshold never changes."""
    rule = gate.Rule(looks=(6,))
    for seed in range(6):
        (none,) = replay(
            recorded(cells=1, launches=6, between=0.02, seed=seed), suites=40, slowdowns=[], rule=rule
        ).gate
        assert none.passed.point in (0.0, 1.0)
    (none,) = replay(recorded(cells=1, launches=5, between=0.04), suites=40, slowdowns=[], rule=rule).gate
    assert 0 < none.passed.point < 1, "with replacement it does"


def test_one_launch_never_alarms_and_it_says_so() -> None:
    found = replay(recorded(launches=1, within=0.001), suites=30)
    for item in found.gate:
        assert item.called.point == 0 and item.passed.point == 0, "the t test has one value, however often drawn"
    assert any("sequential" in line for line in found.caveats)
    assert {item.arrangement for item in found.rules} == {"interleaved"}


def test_times_without_any_scatter_never_alarm() -> None:
    """No scatter seen is no proof that there is none."""
    source = {"cell": [[Round(launch, 0, 1e-3, 1e-3)] * 5 for launch in range(13)]}
    found = replay(source, suites=20)
    assert all(item.called.point == 0 for item in found.gate)
    assert all(item.alarm.point == 0 for item in found.rules)
    (answer,) = calibration.needed_launches(source, 0.03).values()
    assert answer.value is None and "do not differ" in answer.reason


def test_disturbed_and_missing_cells_say_so_and_never_alarm() -> None:
    source = recorded(cells=3)
    source["cell1"] = [
        [replace(item, flags=("shared",), candidate_s=1.0) for item in items] for items in source["cell1"]
    ]
    source["gone"] = []
    found = replay(source, suites=40)
    assert "cell1 says nothing: all its 240 rounds were disturbed." in found.caveats
    assert "gone says nothing: it has no rounds on both sides." in found.caveats
    assert found.gate[0].called.n == 80, "two usable cells a suite"
    assert found.gate[0].called.point == 0 and found.gate[0].suite_passed.point == 0
    assert all(item.alarm.n == 80 for item in found.rules)
    nothing = replay({"cell1": source["cell1"], "gone": []}, suites=5)
    assert nothing.gate == () == nothing.rules and len(nothing.caveats) == 1
    assert calibration.middle(calibration.needed_launches({"cell1": source["cell1"]}, 0.03)).value is None
    assert replay({}, suites=5).gate == ()


def test_unequal_rounds_and_launches_are_all_used() -> None:
    source = recorded(cells=2)
    source["cell0"] = [items[: 1 + number % 12] for number, items in enumerate(source["cell0"])]
    source["cell1"] = source["cell1"][:3]
    found = replay(source, suites=60)
    assert found.recorded == 20 and found.gate[0].suite_called.point == 0
    assert all(item.alarm.n <= 120 for item in found.rules), "cell1 is in three launches only"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": 0}, "suites"),
        ({"sitting": 0}, "sitting"),
        ({"launches": 0}, "launches"),
        ({"slowdowns": [0.0]}, "0.03"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        replay(recorded(cells=1, launches=2), **options)  # type: ignore[arg-type]


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
        called += any(
            gate.p_above(launches[:look], 0.01) * 6 <= alpha for look, alpha in zip(gate.LOOKS, spent, strict=True)
        )
    expected = stats.proportion_interval(called, suites, 0.999)
    found = calibration.power(known(apart, within, rounds), 0.03, gate.LOOKS, cells=6)
    assert expected.low is not None and expected.high is not None
    assert 0.2 < expected.point < 0.95
    assert expected.low - 0.02 <= found <= expected.high + 0.02


def _normal(draws: int, rounds: int) -> numpy.ndarray:
    return numpy.random.default_rng(2).standard_normal((draws, rounds))


def test_needed_and_detectable_are_two_sides_of_one_thing() -> None:
    source = recorded(cells=2, launches=12, between=0.012)
    seen = calibration.smallest_detectable(source, 9)
    for cell, answer in seen.items():
        assert answer.value is not None
        assert calibration.needed_launches(source, answer.value)[cell].value <= 9  # type: ignore[operator]
        harder = calibration.needed_launches(source, answer.value * 0.9)[cell].value
        assert harder is None or harder > 9


def test_more_launches_see_less_and_smaller_slowdowns_take_more() -> None:
    source = recorded(cells=1)
    sizes = [calibration.middle(calibration.smallest_detectable(source, count)).value for count in (4, 6, 13, 28)]
    assert sizes == sorted(sizes, reverse=True)  # type: ignore[type-var]
    needed = [calibration.middle(calibration.needed_launches(source, share)).value for share in (0.10, 0.05, 0.03)]
    assert needed == sorted(needed) and needed[0] == 4  # type: ignore[type-var]


def test_a_plan_of_as_many_launches_as_the_rule_has_its_looks() -> None:
    assert calibration.looks_of(13, gate.Rule()) == (4, 6, 9, 13)
    assert calibration.looks_of(10, gate.Rule()) == (4, 6, 9, 10)
    assert calibration.looks_of(3, gate.Rule()) == (3,)
    assert calibration.looks_of(60, gate.Rule()) == (4, 6, 9, 13, 19, 28, 41, 60)
    assert calibration.looks_of(5, gate.Rule(looks=(2,))) == (2, 3, 5)


def test_a_plan_does_not_depend_on_the_looks_of_a_shorter_gate() -> None:
    """A gate of ten launches looks last at 10; planning sixty from there would look at every other launch."""
    source, short = recorded(cells=1, between=0.012), gate.Rule(looks=calibration.looks_of(10))
    assert calibration.survey(source, rule=short) == calibration.survey(source)


def test_what_no_plan_reaches_has_a_reason() -> None:
    wild = recorded(cells=1, launches=8, between=0.3, seed=2)
    (answer,) = calibration.needed_launches(wild, 0.03).values()
    assert answer.value is None and answer.above == 60 and "more than 60" in answer.reason
    (answer,) = calibration.needed_launches(recorded(cells=1), 0.01).values()
    assert answer.value is None and "nothing is called a slowdown" in answer.reason
    (answer,) = calibration.smallest_detectable(recorded(cells=1, between=2.0), 4).values()
    assert answer.value is None and answer.above == 1.0
    (answer,) = calibration.smallest_detectable(recorded(cells=1, launches=1), 4).values()
    assert answer.value is None and "one launch" in answer.reason
    with pytest.raises(ValueError, match="one launch"):
        calibration.power(calibration.scatter(recorded(cells=1, launches=1))[0], 0.05, (4,))


def test_scatter_is_what_was_put_in() -> None:
    (found,) = calibration.scatter(recorded(cells=1, launches=200, rounds=40, within=0.03, between=0.01, flagged=0.1))
    assert found.within == pytest.approx(0.03, rel=0.05)
    assert found.between == pytest.approx(math.hypot(0.01, 0.03 * math.sqrt(math.pi / 2 / 36)), rel=0.15)
    assert abs(found.centre or 1) < 0.003 and found.rounds == 36
    assert found.set_aside == pytest.approx(800, rel=0.1)
