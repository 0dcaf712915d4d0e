"""How statistics and the gate do on simulated clocks: blocks that remember the last one, launches with their own luck.

A clock is an AR(1) process of block times in each launch, on top of an offset that the launch keeps. Seeds are fixed;
where the share of hits is known in closed form it is held from both sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy
import pytest
from recordings import of_array

from effbench.analysis import stats
from effbench.core.estimate import Estimate
from effbench.core.study import Sampling
from effbench.gates import decision_rule as gate
from effbench.timing import sampling as sampling_rules

pytestmark = pytest.mark.bulk


MEMORIES = (0.0, 0.5, 0.9)
"""Lag-1 autocorrelations of a clock's blocks."""

MACHINES = {"quiet": (0.005, 0.002), "pinned": (0.01, 0.004), "shared": (0.03, 0.01), "noisy": (0.08, 0.02)}
"""Standard deviations of a log ratio by round and by launch that the gate's rule was laid out for."""

CELLS = tuple(f"cell {number}" for number in range(12))


def clocks(
    seed: int, shape: tuple[int, ...], *, memory: float = 0.0, rounds: float = 1.0, launches: float = 0.0
) -> numpy.ndarray:
    """Log times of median 0, stationary along the last axis; `rounds` and `launches` are standard deviations."""
    draw = numpy.random.default_rng(seed)
    values = draw.standard_normal(shape)
    for step in range(1, shape[-1]):
        values[..., step] = memory * values[..., step - 1] + math.sqrt(1 - memory**2) * values[..., step]
    return rounds * values + launches * draw.standard_normal((*shape[:-1], 1))


def holds(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    return estimate.low <= truth <= estimate.high


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return estimate.high - estimate.low


def is_share(hits: int, trials: int, share: float) -> bool:
    """Whether so many hits may be what a true share gives: the exact two-sided test at 1 in 1000."""
    from scipy.stats import binomtest

    return bool(binomtest(hits, trials, share).pvalue > 1e-3)


# --- one launch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [6, 25, 60])
@pytest.mark.parametrize("shape", [numpy.sinh, numpy.exp, numpy.arctan])
def test_median_interval_covers_exactly_as_the_binomial_says(blocks: int, shape: numpy.ufunc) -> None:
    """Whatever the distribution: heavy-tailed, skewed or short-tailed (each a monotone function of the normal)."""
    from scipy.stats import binom

    suites = shape(2 * clocks(blocks, (1000, blocks)))
    rank = next(r for r in range(blocks) if binom.cdf(r + 1, blocks, 0.5) > 0.025)
    hits = sum(holds(stats.median_interval(suite), shape(0.0)) for suite in suites.tolist())
    assert is_share(hits, 1000, 1 - 2 * float(binom.cdf(rank, blocks, 0.5)))


@pytest.mark.parametrize(("memory", "blocks", "raw_at_most"), [(0.0, 100, 1.0), (0.5, 337, 0.86), (0.9, 1500, 0.5)])
def test_batches_give_back_the_coverage_that_memory_takes(memory: float, blocks: int, raw_at_most: float) -> None:
    suites = clocks(2, (300, blocks), memory=memory).tolist()
    raw = sum(holds(stats.median_interval(suite), 0.0) for suite in suites) / 300
    batched = sum(holds(stats.median_interval(stats.batch_medians(suite)), 0.0) for suite in suites) / 300
    assert 0.92 <= batched <= 0.985
    assert raw <= raw_at_most, "if single blocks covered too, batches would be needless care"


@pytest.mark.parametrize(("memory", "at_least"), [(0.0, 0.9), (0.5, 0.9), (0.9, 0.8)])
def test_claims_of_one_percent_are_true(memory: float, at_least: float) -> None:
    """Blocks that scatter by 5 %, looked at each time they grew by half, until the rule says ± 1 %. Intervals that take
    blocks for independent, as peers' do, are right in four claims of ten where the clock's memory is long.
    """
    suites = (0.05 * clocks(3, (100, 5800), memory=memory)).tolist()
    at = sorted(sampling_rules.check_rounds(Sampling(max_rounds=5800)))
    claims, naive = [], []
    for suite in suites:
        seen = [suite[:size] for size in at]
        claims.append(next((values for values in seen if sampling_rules.is_precise(values, 0.01)), None))
        naive.append(next((values for values in seen if width(stats.median_interval(values)) <= 0.02), None))
    true, simple = ([abs(stats.median(values)) <= 0.01 for values in found if values] for found in (claims, naive))
    assert len(true) >= 80, "a rule that never claims is never wrong"
    assert sum(true) / len(true) >= at_least
    if memory == 0.9:
        assert sum(simple) / len(simple) < 0.5


# --- several launches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("launches", [3, 5, 13])
def test_t_over_launches_covers_exactly(memory: float, launches: int) -> None:
    """95 % from both sides however much the blocks of one launch remember: its median is one value."""
    suites = clocks(launches, (500, launches, 20), memory=memory, rounds=0.03, launches=0.01)
    hits = sum(holds(stats.t_interval([stats.median(launch) for launch in suite]), 0.0) for suite in suites.tolist())
    assert is_share(hits, 500, 0.95)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("launches", [3, 5, 13])
def test_ratio_over_launches_covers_at_least_as_claimed(memory: float, launches: int) -> None:
    suites = clocks(launches, (400, launches, 20), memory=memory, rounds=0.03, launches=0.02).tolist()
    hits = sum(holds(stats.ratio_over_launches(suite), 1.0) for suite in suites)
    pooled = sum(holds(stats.median_interval([value for launch in suite for value in launch]), 0.0) for suite in suites)
    assert hits >= 400 * 0.95 or is_share(hits, 400, 0.95)
    assert pooled < 0.75 * 400, "rounds of one launch share its luck: pooled, they claim too much"


@pytest.mark.parametrize("memory", MEMORIES)
def test_cluster_bootstrap_covers_from_five_launches_on(memory: float) -> None:
    """The median of few launches is coarse, so the percentile interval errs on either side; from three launches it
    is too narrow where blocks remember, which is why it is shown and does not decide.
    """
    share = {}
    for launches in (3, 5, 13):
        suites = clocks(launches, (200, launches, 20), memory=memory, rounds=0.03, launches=0.01)
        share[launches] = sum(holds(stats.cluster_bootstrap(suite, draws=250), 1.0) for suite in suites) / 200
    assert share[3] >= 0.78
    assert min(share[5], share[13]) >= 0.91


# --- the gate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("launches", [4, 13])
def test_one_cells_false_alarms_are_five_percent_and_the_sign_test_alone_has_more(memory: float, launches: int) -> None:
    """At the edge of what is no regression, 1 % slower: the p-value of both tests together keeps its level."""
    edge = math.log1p(0.01)
    suites = edge + clocks(11, (600, launches, 20), memory=memory, rounds=0.03, launches=0.01)
    alarms = called(suites, 0.01, 0.05)
    above = (suites > edge).sum(axis=(1, 2))
    pooled = (stats.sign_p(above, numpy.full(600, launches * 20)) <= 0.05).sum()
    assert alarms <= 600 * 0.05 or is_share(alarms, 600, 0.05)
    assert pooled > 0.1 * 600


def called(suites: numpy.ndarray, share: float, alpha: float) -> int:
    """How many of these cells (cells, launches, rounds) are called more than `share` slower."""
    p_values = gate.p_above(suites, numpy.arange(suites.shape[1])[None], share)
    return int((p_values <= alpha).sum())


def judged(suites: numpy.ndarray, rule: gate.Rule) -> tuple[list[list[str]], list[int]]:
    """The gate's last word on each cell of each suite (suites, cells, launches, rounds), and the launches it took."""
    number, cells, launches, rounds = suites.shape
    one_after_another = suites.transpose(1, 0, 2, 3).reshape(cells, number * launches, rounds)
    drawn = numpy.arange(number * launches).reshape(number, launches)
    found, taken = gate.decide(of_array(one_after_another, CELLS), drawn, rule)
    return [[gate.CellOutcome(item).verdict for item in suite] for suite in found], taken.tolist()


def suites_of(machine: str, slowdowns: Sequence[float], suites: int, seed: int = 21) -> numpy.ndarray:
    """Suites of twelve cells, thirteen launches of twenty rounds; `slowdowns` are shares, for the first cells."""
    rounds, launches = MACHINES[machine]
    shift = numpy.zeros(len(CELLS))
    shift[: len(slowdowns)] = numpy.log1p(slowdowns)
    return shift[:, None, None] + clocks(seed, (suites, len(CELLS), 13, 20), rounds=rounds, launches=launches)


@pytest.mark.parametrize(
    ("machine", "suites", "passed", "launches"),
    [("quiet", 300, 1.0, 4.1), ("pinned", 300, 1.0, 5), ("shared", 300, 0.97, 8), ("noisy", 60, 0.8, 13)],
)
def test_the_same_code_on_both_sides_raises_no_alarm(machine: str, suites: int, passed: float, launches: float) -> None:
    """No alarm in 300 suites supports "at most 1 %" at 95 %. Quiet machines pass, after few launches; on a noisy one
    the cells that cannot be told are inconclusive, not passed and not failed.
    """
    found, taken = judged(suites_of(machine, [], suites), gate.Rule())
    words = Counter(word for verdicts in found for word in verdicts)
    assert words["REGRESSION"] == 0
    assert words["PASS"] / words.total() >= passed
    assert (words["INCONCLUSIVE"] > 0) == (machine == "noisy")
    assert sum(taken) / suites <= launches


@pytest.mark.parametrize(
    ("machine", "slowdown", "at_least"),
    [
        ("quiet", 0.03, 0.99),
        ("pinned", 0.03, 0.99),
        ("shared", 0.03, 0.85),
        ("shared", 0.05, 0.99),
        ("noisy", 0.05, 0.7),
    ],
)
def test_a_slow_cell_among_twelve_is_caught(machine: str, slowdown: float, at_least: float) -> None:
    """Its neighbours are the same code: in 5 % of suites at most one is called slower. The slow cell is hardly ever
    passed.
    """
    found, _ = judged(suites_of(machine, [slowdown], 100), gate.Rule())
    first = Counter(verdicts[0] for verdicts in found)
    assert first["REGRESSION"] >= 100 * at_least
    assert first["PASS"] <= (5 if slowdown == gate.Rule().tolerance else 0)
    assert sum("REGRESSION" in verdicts[1:] for verdicts in found) <= 100 * 0.05


def test_alarms_stay_within_alpha_at_the_edge_and_without_the_t_test_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worst case that is no regression: every cell 1 % slower, and no cell ever passed early. Twelve cells, four
    looks: 5 % of suites at most, and not far below it, or power would be given away.
    """
    rule, suites = gate.Rule(tolerance=0.0), suites_of("shared", [0.01] * 12, 150)
    alarms = sum("REGRESSION" in verdicts for verdicts in judged(suites, rule)[0])
    assert (stats.proportion_interval(alarms, 150, 0.998).low or 0) <= 0.05
    assert alarms >= 2
    monkeypatch.setattr(stats, "t_p", lambda medians, threshold: numpy.zeros(medians.shape[:-1]))
    pooled = sum("REGRESSION" in verdicts for verdicts in judged(suites[:30], rule)[0])
    assert pooled > 8, "the reason why two tests must agree"


@pytest.mark.parametrize("machine", ["pinned", "shared", "noisy"])
def test_a_slowdown_of_the_tolerance_is_hardly_ever_passed(machine: str) -> None:
    """At the tolerance itself, over all four looks: at most 5 % of cells, as far as 600 can tell."""
    found, _ = judged(suites_of(machine, [0.03] * 12, 50), gate.Rule())
    passes = sum(verdicts.count("PASS") for verdicts in found)
    assert (stats.proportion_interval(passes, 50 * 12).low or 0) <= 0.05
    assert sum(verdicts.count("REGRESSION") for verdicts in found) > passes


@pytest.mark.parametrize("launches", [4, 13])
def test_what_is_said_to_be_detectable_is_called_four_times_in_five(launches: int) -> None:
    """Averaged over suites as a variance is, since the scatter of four launches is itself hardly known."""
    edge = math.log1p(gate.SMALLEST_EFFECT)
    suites = clocks(31, (500, 2, launches, 20), rounds=0.03, launches=0.01)
    medians = numpy.median(suites[:, 0], axis=2).tolist()
    sizes = [math.log1p(gate.detectable(each, 0.02) or 0) - edge for each in medians]
    slowdown = edge + math.sqrt(math.fsum(size**2 for size in sizes) / len(sizes))
    share = called(slowdown + suites[:, 1], gate.SMALLEST_EFFECT, 0.02) / len(sizes)
    assert 0.72 <= share <= 0.86
