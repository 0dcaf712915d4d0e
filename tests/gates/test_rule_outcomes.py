"""The decision rule on arrays: tests against scipy, outcomes in closed form, many suites equal to single ones."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Source, evidence, of_ratios, recorded
from runs import CELLS, run_of

from effbench.analysis import stats
from effbench.gates.ab_pairs import Pair, Round
from effbench.gates.decision_rule import CellOutcome, Clock, Evaluation, Gate, Rule, decide, outcomes, p_above
from effbench.gates.evidence import Evidence

# --- the tests ---------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_tests() -> None:
    """Against scipy itself: the larger of a binomial and a t test."""
    from scipy.stats import binomtest, ttest_1samp

    source = recorded(cells=1, launches=6)["cell0"]
    found = p_above(evidence({"cell0": source}).values, numpy.arange(6)[None], 0.0)[0, 0]
    ratios = [[item.log_ratio for item in items] for items in source]
    flat = [value for items in ratios for value in items]
    sign = binomtest(sum(value > 0 for value in flat), len(flat), alternative="greater").pvalue
    t = ttest_1samp([stats.median(items) for items in ratios], 0.0, alternative="greater").pvalue
    assert found == pytest.approx(max(sign, t), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-5, 5).map(lambda step: step / 50), max_size=5), max_size=6),
    st.sampled_from([0.0, 0.01, 0.03, math.expm1(0.02)]),
)
def test_launches_of_any_shape_are_tested_as_they_are(launches: list[list[float]], share: float) -> None:
    """Ties, empty and unequal launches, values that stand at the threshold."""
    seen = of_ratios({"a": launches})
    kept = [[math.log(math.exp(value)) for value in each] for each in launches if each]
    threshold, every = math.log1p(share), [value for each in kept for value in each]
    sign = stats.sign_p(numpy.array(sum(value > threshold for value in every)), numpy.array(len(every)))
    t = stats.t_p(numpy.array([stats.median(each) for each in kept]), threshold)
    found = p_above(seen.values, numpy.arange(len(seen.launches))[None], share)
    assert found.tolist() == [[pytest.approx(float(max(sign, t)), rel=1e-9, abs=1e-12)]]


# --- the outcomes ------------------------------------------------------------------------------------

ALPHA = 0.05
SURE, UNSURE = 0.001, 0.5
SLOWER = Clock(*(numpy.array([[value]]) for value in (SURE, UNSURE, 0.05)))
SAME = Clock(*(numpy.array([[value]]) for value in (UNSURE, SURE, 0.0)))
UNKNOWN = Clock(*(numpy.array([[value]]) for value in (UNSURE, UNSURE, 0.0)))
UNMEASURED = Clock(*(numpy.array([[value]]) for value in (1.0, 1.0, math.nan)))
WALL = {"same": SAME, "waiting": replace(SAME, change=numpy.array([[0.2]]))}


@pytest.mark.parametrize(
    ("clock", "wall", "waiting", "doubts", "expected"),
    [
        (SLOWER, None, UNSURE, "", CellOutcome.SLOWER),
        (SAME, None, UNSURE, "", CellOutcome.PASS),
        (UNKNOWN, None, UNSURE, "", CellOutcome.NOT_SHOWN),
        (UNMEASURED, UNMEASURED, UNSURE, "", CellOutcome.NOT_SHOWN),
        (SLOWER, None, UNSURE, "disturbed", CellOutcome.DISTURBED),
        (SLOWER, None, UNSURE, "unsteady", CellOutcome.SLOWER),
        (SAME, None, UNSURE, "unsteady", CellOutcome.UNSTEADY),
        (SAME, SAME, UNSURE, "", CellOutcome.PASS),
        (SAME, WALL["waiting"], SURE, "", CellOutcome.WAITS),
        (SAME, WALL["waiting"], UNSURE, "", CellOutcome.WALL_SLOWER),
        (UNKNOWN, WALL["waiting"], UNSURE, "", CellOutcome.NOT_SHOWN),
        (SLOWER, SAME, UNSURE, "split", CellOutcome.CLOCKS_DISAGREE),
        (SLOWER, SLOWER, UNSURE, "split", CellOutcome.SLOWER),
        (SAME, SAME, UNSURE, "split", CellOutcome.PASS),
        (SAME, UNKNOWN, UNSURE, "split", CellOutcome.CLOCKS_DISAGREE),
        (SAME, replace(SAME, change=numpy.array([[-0.2]])), UNSURE, "split", CellOutcome.CLOCKS_DISAGREE),
    ],
)
def test_what_each_combination_decides(
    clock: Clock, wall: Clock | None, waiting: float, doubts: str, expected: CellOutcome
) -> None:
    tested = Evaluation(
        clock,
        *(numpy.array([[doubts == doubt]]) for doubt in ("disturbed", "split", "unsteady")),
        wall,
        None if wall is None else numpy.array([[waiting]]),
    )
    assert outcomes(tested, ALPHA).tolist() == [[expected]]
    assert (expected <= CellOutcome.WAITS) == (expected.verdict in ("PASS", "REGRESSION"))


def test_the_wall_clock_takes_a_tenth_of_alpha() -> None:
    """p = 0.047 is called at 0.05 and not at 0.045."""
    edge = replace(SAME, slower=numpy.array([[0.047]]))
    none = numpy.zeros((1, 1), dtype=bool)
    alone = Evaluation(edge, none, none, none)
    beside = Evaluation(edge, none, none, none, SAME, numpy.array([[UNSURE]]))
    assert outcomes(alone, ALPHA).tolist() == [[CellOutcome.SLOWER]]
    assert outcomes(beside, ALPHA).tolist() == [[CellOutcome.PASS]]


# --- one suite among many is one alone ---------------------------------------------------------------


def ragged(seed: int) -> Evidence:
    """Evidence near every threshold, with a wall clock of its own, unequal rounds, missing launches, disturbed rounds
    and restless warm-ups.
    """
    draw = random.Random(seed)
    source = recorded(cells=7, between=0.012, flagged=0.05, seed=seed)
    slow = {"cell1": 0.04, "cell2": 0.015, "cell3": 0.05, "cell6": 0.03}
    rounds: dict[str, list[Round]] = {cell: [] for cell in source}
    wall: dict[str, list[Round]] = {cell: [] for cell in source}
    for cell, launches in source.items():
        for items in launches:
            ratio, waits = 1 + slow.get(cell, 0.0), 1.0
            if cell in ("cell4", "cell5"):
                waits = math.exp(draw.gauss(0.11, 0.05))
            kept = [replace(item, candidate_s=item.candidate_s * ratio) for item in items]
            if cell in ("cell3", "cell5"):
                kept = [replace(item, flags=("shared",)) if draw.random() < 0.06 else item for item in kept]
            kept = kept[: draw.choice([0, 3, 7, 12, 12, 12])]
            rounds[cell] += kept
            wall[cell] += [replace(item, candidate_s=item.candidate_s * waits) for item in kept]
    warmups = [("cell0", launch, draw.random() > 0.1) for launch in range(20) for _ in range(2)]
    return replace(Evidence.of_rounds(rounds, wall, warmups), clock="cpu")


def drawn_from(made: Evidence, places: list[int], shift: list[float]) -> Evidence:
    """The evidence of these launches alone, each cell slowed by so much."""
    by = numpy.asarray(shift)[:, None, None]
    assert made.wall is not None
    return replace(
        made,
        launches=tuple(range(len(places))),
        values=made.values[:, places] + by,
        wall=made.wall[:, places] + by,
        disturbed=made.disturbed[:, places],
        unsteady=made.unsteady[:, places],
    )


@pytest.mark.parametrize("seed", range(3))
def test_many_gates_decide_as_one_gate_does(seed: int) -> None:
    """Every verdict of every suite, through all looks, with all that can be missing from a recording."""
    made = ragged(seed)
    generator = numpy.random.default_rng(seed)
    drawn = numpy.array([generator.permutation(20)[:13] for _ in range(40)])
    slowed = generator.integers(7, size=40)
    shift = numpy.where(numpy.arange(7) == slowed[:, None], math.log1p(0.05), 0.0)
    rule = Rule(alpha=0.2)
    found, taken = decide(made, drawn, rule, shift)
    for suite, places in enumerate(drawn.tolist()):
        one, used = Gate(made.cells, rule), 0
        for number, look in enumerate(rule.looks):
            if one.undecided:
                used = look
            one.look(number, drawn_from(made, places[:look], shift[suite].tolist()))
        assert [one.found[cell].verdict for cell in made.cells] == [CellOutcome(item).verdict for item in found[suite]]
        assert used == taken[suite]
    assert {CellOutcome(item).verdict for item in found.ravel()} == {
        "REGRESSION",
        "PASS",
        "INCONCLUSIVE",
        "ENVIRONMENT",
    }


def test_without_a_look_nothing_is_shown() -> None:
    found, taken = decide(evidence(recorded(cells=2, launches=3)), numpy.arange(3)[None], Rule())
    assert (found.tolist(), taken.tolist()) == ([[CellOutcome.NOT_SHOWN] * 2], [0])


# --- what a pair holds -------------------------------------------------------------------------------


def pair_of(launches: int = 6) -> Pair:
    """Two runs as a gate stores them, on the CPU clock."""
    options = {"launches": launches, "rounds": 8, "noise": 0.01, "launch_noise": 0.005}
    return Pair(*[run_of(dict.fromkeys(CELLS, 1e-3), seed=seed, **options) for seed in range(2)])


def test_a_pair_is_evidence_on_its_clock_with_the_wall_clock_beside() -> None:
    made = Evidence.of(pair_of())
    assert (made.clock, made.cells, made.launches) == ("cpu", CELLS, (0, 1, 2, 3, 4, 5))
    assert made.values.shape == (3, 6, 8) and made.wall is not None and made.wall.shape == (3, 6, 8)
    assert made.unsteady[0, 0].tolist() == [0, 2] and made.disturbed[0, 0].tolist() == [0, 8]
    on_wall = Evidence.of(pair_of(), clock="wall")
    assert on_wall.wall is None and on_wall.shares is None and on_wall.clock == "wall"
    assert Evidence.of(pair_of(), cells=[CELLS[1], "gone"]).cells == (CELLS[1], "gone")


def test_a_launch_without_a_round_counts_its_warm_ups_and_is_not_drawn() -> None:
    pair = pair_of()
    cut = tuple(replace(each, blocks=tuple(b for b in each.blocks if b.launch < 4)) for each in pair.candidate.results)
    made = Evidence.of(replace(pair, candidate=replace(pair.candidate, results=cut)))
    assert made.launches == (0, 1, 2, 3, 4, 5) and made.unsteady[0].sum(axis=0).tolist() == [0, 12]
    assert made.recorded().launches == (0, 1, 2, 3) and made.recorded().values.shape == (3, 4, 8)


def test_a_value_that_is_none_leaves_its_cell_without_any() -> None:
    made = of_ratios({"bad": [[0.5, math.nan], [0.5, 0.6]], "endless": [[math.inf], [0.1]], "good": [[0.1], [0.2]]})
    assert made.usable == ("good",)
    assert made.medians("good") == pytest.approx([0.1, 0.2]) and made.medians("bad") == []


def test_disturbed_rounds_are_left_out_of_both_clocks_and_counted() -> None:
    source: Source = {"a": [[Round(0, 0, 1.0, 2.0, ("steal",)), Round(0, 1, 1.0, 1.0)]]}
    rounds = {"a": source["a"][0]}
    made = Evidence.of_rounds(rounds, rounds)
    for values in (made.values, made.wall):
        assert values is not None and values[numpy.isfinite(values)].tolist() == [0.0]
    assert made.set_aside("a") == 1 and made.causes == {"a": "steal"}
