"""The decision rule of the A/B gate on synthetic pairs of known truth, and its handling of doubtful cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy
import pytest
from recordings import of_ratios
from runs import CELLS, COST, run_of, with_blocks
from scipy import stats as scipy_stats

from effbench.core.errors import Reason
from effbench.core.run import Launch, Run
from effbench.gates import ab_findings, ab_pairs
from effbench.gates import decision_rule as gate
from effbench.gates.ab_pairs import Pair
from effbench.gates.decision_rule import Gate, Rule
from effbench.gates.evidence import Evidence
from effbench.gates.result import Decision

pytestmark = pytest.mark.quick

SLOW, SAME, THIRD = CELLS
TIMES = {SLOW: 1e-3, SAME: 2e-3, THIRD: 3e-3}
NOBODY: dict[str, dict[str, str]] = {}


def pair_of(slowdown: float = 0.0, *, launches: int = 4, scatter: float = 0.002, seed: int = 0) -> Pair:
    """Both sides with launch and round scatter of their own; the candidate's first cell is slower by a share."""
    options = {"launches": launches, "rounds": 20, "noise": 0.004, "launch_noise": scatter}
    slowed = {**TIMES, SLOW: TIMES[SLOW] * (1 + slowdown)}
    return Pair(run_of(TIMES, seed=seed, **options), run_of(slowed, seed=seed + 1000, **options))


def judged(pair: Pair, rule: Rule | None = None, **tolerances: float) -> Gate:
    """The gate after one look at all of the pair's launches, the last that the rule has."""
    judge = Gate(list(TIMES), rule or Rule(looks=(4,)), tolerances)
    judge.look_at(0, pair)
    return judge


def p_above(launches: Sequence[Sequence[float]], share: float) -> float:
    seen = of_ratios({SLOW: launches})
    return float(gate.p_above(seen.values, numpy.arange(len(seen.launches))[None], share)[0, 0])


def verdicts(judge: Gate) -> list[str]:
    return [judge.found[cell].verdict for cell in TIMES]


def wall_slower(run: Run, cell: str, share: float) -> Run:
    return with_blocks(run, cell, lambda timing: replace(timing, wall_ns=round(timing.wall_ns * (1 + share))))


def test_a_slowdown_is_called_and_nothing_else_is() -> None:
    assert verdicts(judged(pair_of(0.10))) == ["REGRESSION", "PASS", "PASS"]


def test_the_same_code_passes() -> None:
    assert verdicts(judged(pair_of(0.0))) == ["PASS"] * 3


def test_a_slowdown_between_the_smallest_effect_and_the_tolerance_is_never_passed_as_absent_beyond_it() -> None:
    """At exactly the tolerance a pass is an error; it may happen to one gate in twenty at most."""
    passed = sum(judged(pair_of(0.03, seed=seed)).found[SLOW].verdict == "PASS" for seed in range(40))
    assert passed <= 4  # the 98 % point of Binomial(40, 0.05) is 5


def test_a_cell_of_its_own_tolerance_passes_by_that() -> None:
    pair = pair_of(0.02, scatter=0.001)
    wide = Gate(list(TIMES), Rule(looks=(4,), smallest_effect=0.04), {SLOW: 0.05})
    wide.look_at(0, pair)
    assert wide.found[SLOW].verdict == "PASS"
    assert judged(pair, Rule(looks=(4,), smallest_effect=0.025, tolerance=0.02)).found[SLOW].verdict == "INCONCLUSIVE"


def test_both_tests_must_agree() -> None:
    """Eighty rounds that all point one way are no proof where they come from one unlucky launch in four."""
    one_off = [[0.0] * 20, [0.0] * 20, [0.0] * 20, [0.4] * 20]
    assert p_above(one_off, 0.01) > 0.1
    # All rounds slower, but launches so unlike that their mean could be anything.
    assert p_above([[0.02] * 20, [0.9] * 20, [0.02] * 20, [0.02] * 20], 0.01) > 0.1
    assert p_above([[0.05, 0.051, 0.052]] * 3 + [[0.049] * 3], 0.01) < 0.01


@pytest.mark.parametrize(
    "launches",
    [[], [[]], [[0.5] * 20], [[0.5] * 20] * 4, [[math.nan] * 20] * 4, [[0.5] * 20, [math.inf] * 20]],
    ids=["nothing", "no round", "one launch", "no scatter at all", "not a number", "endless"],
)
def test_what_cannot_be_tested_is_never_significant(launches: Sequence[Sequence[float]]) -> None:
    assert p_above(launches, 0.01) == 1.0
    judge = Gate([SLOW], Rule(looks=(4,)))
    judge.look(0, of_ratios({SLOW: launches}))
    assert judge.found[SLOW].verdict == "INCONCLUSIVE"


def test_a_verdict_once_reached_stands() -> None:
    judge = Gate(list(TIMES), Rule(looks=(4, 6)))
    judge.look_at(0, pair_of(0.10))
    assert judge.undecided == []
    judge.look_at(1, pair_of(0.0, launches=6))
    assert verdicts(judge) == ["REGRESSION", "PASS", "PASS"]


def test_more_cells_need_more_evidence() -> None:
    """Holm's procedure: what convicts one cell alone need not convict the one slow cell of twelve."""
    launches = [[math.log1p(share)] * 20 for share in (0.0188, 0.0130, 0.0220, 0.0160)]
    quiet = [[value] * 20 for value in (0.0001, -0.0001, 0.0002, -0.0002)]
    p = p_above(launches, 0.01)
    assert 0.05 / 12 < p < 0.05
    rule = Rule(looks=(4,), tolerance=0.02)
    alone, crowded = Gate([SLOW], rule), Gate([str(i) for i in range(12)], rule)
    alone.look(0, of_ratios({SLOW: launches}))
    crowded.look(0, of_ratios({str(i): launches if i == 0 else quiet for i in range(12)}))
    assert (alone.found[SLOW].verdict, crowded.found["0"].verdict) == ("REGRESSION", "INCONCLUSIVE")
    assert crowded.found["1"].verdict == "PASS"


def test_waiting_that_cpu_time_does_not_see_is_a_regression_all_the_same() -> None:
    pair = pair_of(0.0)
    judge = judged(Pair(pair.baseline, wall_slower(pair.candidate, SLOW, 0.25)))
    assert judge.found[SLOW].verdict == "REGRESSION" and "wall time" in judge.found[SLOW].reason
    assert verdicts(judge)[1:] == ["PASS", "PASS"]


def test_a_wall_clock_that_reads_slower_forbids_a_pass_even_unproven() -> None:
    """Two launches of four wait: not shown, and nothing to be called green."""
    pair = pair_of(0.0)
    waits = [
        replace(
            block, timing=replace(block.timing, wall_ns=round(block.timing.wall_ns * (1.0 + 0.3 * (block.launch > 0))))
        )
        for block in pair.candidate.result(SLOW).blocks
    ]
    results = tuple(replace(r, blocks=tuple(waits)) if r.cell.id == SLOW else r for r in pair.candidate.results)
    judge = judged(Pair(pair.baseline, replace(pair.candidate, results=results)))
    assert judge.found[SLOW].verdict == "INCONCLUSIVE" and "wall clock" in judge.found[SLOW].reason


def test_faster_is_said_and_passes() -> None:
    judge = judged(pair_of(-0.2))
    assert judge.found[SLOW].verdict == "PASS" and judge.found[SLOW].is_improved
    assert not judge.found[SAME].is_improved


def disturbed(pair: Pair, every: int) -> Pair:
    """The candidate's first cell with every n-th block disturbed."""
    blocks = tuple(
        replace(block, timing=replace(block.timing, flags=("waited for a core",))) if place % every == 0 else block
        for place, block in enumerate(pair.candidate.result(SLOW).blocks)
    )
    results = tuple(replace(r, blocks=blocks) if r.cell.id == SLOW else r for r in pair.candidate.results)
    return Pair(pair.baseline, replace(pair.candidate, results=results))


def test_a_disturbed_cell_proves_nothing_either_way() -> None:
    judge = judged(disturbed(pair_of(0.5), 5))
    assert judge.found[SLOW].verdict == "ENVIRONMENT"
    assert judge.found[SLOW].reason == "16 of 80 rounds were disturbed from outside (waited for a core)"
    assert judge.undecided == [SLOW]  # more launches may still dilute it
    found = ab_findings.findings(judge, disturbed(pair_of(0.5), 5), NOBODY)
    assert found[0].set_aside == 16 and found[0].change is not None
    assert Decision(found).exit_code == 4


@pytest.mark.parametrize(("rounds", "bad", "is_disturbed"), [(8, 1, False), (8, 2, True), (1, 1, True), (20, 2, False)])
def test_one_disturbed_round_of_few_is_not_too_many(rounds: int, bad: int, is_disturbed: bool) -> None:
    """What a slow network has in a launch."""
    sides = [run_of(TIMES, launches=1, rounds=rounds, noise=0.004, seed=seed) for seed in (1, 2)]
    blocks = tuple(
        replace(block, timing=replace(block.timing, flags=("steal",))) if place < bad else block
        for place, block in enumerate(sides[1].result(SLOW).blocks)
    )
    results = tuple(replace(r, blocks=blocks) if r.cell.id == SLOW else r for r in sides[1].results)
    pair = Pair(sides[0], replace(sides[1], results=results))
    seen = Evidence.of(pair, [SLOW])
    assert bool(seen.doubts(SLOW)["disturbed"]) == is_disturbed
    tested = gate.evaluate(seen, numpy.array([[0]]), Rule())
    assert tested.is_disturbed.tolist() == [[is_disturbed]]


def test_few_disturbed_rounds_are_set_aside_in_pairs_and_counted() -> None:
    pair = disturbed(pair_of(0.10), 20)
    assert verdicts(judged(pair)) == ["REGRESSION", "PASS", "PASS"]
    assert [len(launch) for launch in ab_pairs.log_ratios_by_launch(ab_pairs.rounds(pair, SLOW))] == [19] * 4
    assert ab_findings.findings(judged(pair), pair, NOBODY)[0].set_aside == 4


def test_every_round_disturbed_is_an_outcome_with_a_name() -> None:
    pair = disturbed(pair_of(0.0), 1)
    (found, *_) = ab_findings.findings(judged(pair), pair, NOBODY)
    assert found.verdict == "ENVIRONMENT" and found.set_aside == found.rounds == 80


def unsteady(run: Run, launches: int) -> Run:
    def restless(launch: Launch) -> Launch:
        return replace(
            launch, warmups={cell: replace(warm, steady=cell != SLOW) for cell, warm in launch.warmups.items()}
        )

    return replace(run, launches=tuple(restless(item) if item.number < launches else item for item in run.launches))


def test_what_never_got_steady_cannot_pass_but_can_fail() -> None:
    same, slow = pair_of(0.0), pair_of(0.10)
    found = judged(Pair(unsteady(same.baseline, 2), same.candidate)).found[SLOW]
    assert (found.verdict, found.reason) == ("INCONCLUSIVE", "no steady state in 2 of 8 warm-ups")
    assert judged(Pair(unsteady(slow.baseline, 2), slow.candidate)).found[SLOW].verdict == "REGRESSION"


def test_one_unsteady_warm_up_in_twenty_is_no_reason() -> None:
    pair = pair_of(0.0, launches=10)
    assert verdicts(judged(Pair(unsteady(pair.baseline, 1), pair.candidate))) == ["PASS"] * 3


def test_a_drift_that_both_sides_share_is_not_seen() -> None:
    """Acceptance by synthetic drift: 20 % over the run on both sides."""
    pair = pair_of(0.0)

    def drifted(run: Run) -> Run:
        def slower(cell: str) -> tuple[object, ...]:
            blocks = run.result(cell).blocks
            return tuple(
                replace(
                    block,
                    timing=replace(block.timing, cpu_ns=round(block.timing.wall_ns * (1 + 0.2 * at / len(blocks)))),
                )
                for at, block in enumerate(blocks)
            )

        return replace(run, results=tuple(replace(r, blocks=slower(r.cell.id)) for r in run.results))  # type: ignore[arg-type]

    both = Pair(drifted(pair.baseline), drifted(pair.candidate))
    judge = judged(both)
    assert verdicts(judge) == ["PASS"] * 3
    for found in ab_findings.findings(judge, both, NOBODY):
        assert found.change is not None and abs(found.change.point - 1) < 0.005


def test_a_finding_tells_what_was_measured() -> None:
    pair = pair_of(0.10)
    slow, same, _ = ab_findings.findings(judged(pair), pair, NOBODY)
    assert slow.change is not None and slow.change.low is not None and slow.change.high is not None
    assert slow.change.low < 1.10 < slow.change.high
    assert (slow.launches, slow.rounds, slow.set_aside, slow.clock, slow.tolerance) == (4, 80, 0, "cpu", 0.03)
    assert slow.wall is not None and slow.wall.point == pytest.approx(slow.change.point)
    assert same.detectable is not None and 0.01 < same.detectable < 0.2


def test_the_smallest_detectable_slowdown_is_what_the_t_test_catches_four_times_in_five() -> None:
    """Against the noncentral t distribution: the power at that slowdown is 0.8."""
    medians = [0.004, -0.003, 0.001, -0.002, 0.0015, 0.0005, -0.0015, 0.002, -0.001]
    alpha, n = 0.01, len(medians)
    found = gate.detectable(medians, alpha)
    assert found is not None
    error = scipy_stats.tstd(medians) / math.sqrt(n)
    critical = scipy_stats.t.ppf(1 - alpha, n - 1)
    power = scipy_stats.nct.sf(critical, n - 1, (math.log1p(found) - math.log(1.01)) / error)
    assert power == pytest.approx(0.8, abs=1e-3)
    assert gate.detectable(medians[:1], alpha) is None and gate.detectable([0.1] * 4, alpha) is None


def test_a_cell_that_only_one_side_runs() -> None:
    pair = pair_of(0.0)
    absent = Reason("there is no 'small'", "absent")
    skipped = {"baseline": {SLOW: absent}, "candidate": {SAME: "RuntimeError: shapes"}}
    new, broken, kept = ab_findings.findings(judged(pair), pair, skipped)
    assert (new.verdict, broken.verdict, kept.verdict) == ("NEW", "REGRESSION", "PASS")
    assert "there is no 'small'" in new.reason and "shapes" in broken.reason
    assert Decision((new, kept)).exit_code == 0
    assert Decision((new,)).exit_code == 3, "nothing was compared, so nothing has passed"


@pytest.mark.parametrize(
    ("baseline", "candidate", "verdict"),
    [
        (Reason("no file", "absent"), None, "NEW"),
        ("no file", None, "INCONCLUSIVE"),
        (Reason("imports 'x'", "lacks"), None, "ENVIRONMENT"),
        (Reason("no torch", "start"), None, "ENVIRONMENT"),
        ("out of memory: 3 GiB", None, "ENVIRONMENT"),
        (None, Reason("no torch", "start"), "ENVIRONMENT"),
        (None, Reason("no file", "absent"), "REGRESSION"),
        (None, Reason("imports 'x'", "lacks"), "REGRESSION"),
        (Reason("no file", "absent"), "it breaks", "INCONCLUSIVE"),
        ("it breaks", "it breaks", "INCONCLUSIVE"),
        ("out of memory: 3 GiB", "out of memory: 3 GiB", "ENVIRONMENT"),
    ],
)
def test_new_is_only_what_the_revision_does_not_hold(baseline: str | None, candidate: str | None, verdict: str) -> None:
    """A baseline that cannot start, load or count is nothing to pass on."""
    assert ab_findings.verdict_without_times(baseline, candidate)[0] == verdict


def test_a_cell_that_neither_side_runs_and_one_without_memory() -> None:
    skipped = {"baseline": {SLOW: "it breaks"}, "candidate": {SLOW: "it breaks", SAME: "out of memory: 3 GiB"}}
    neither, large, _ = ab_findings.findings(judged(pair_of()), pair_of(), skipped)
    assert (neither.verdict, large.verdict) == ("INCONCLUSIVE", "ENVIRONMENT")


def test_nothing_measured_passes_nothing() -> None:
    assert {found.verdict for found in ab_findings.findings(Gate(list(TIMES)), None, NOBODY)} == {"INCONCLUSIVE"}


def test_counts_that_differ_are_shown_and_fail_when_they_must_not() -> None:
    pair = pair_of(0.0)
    dearer = tuple(
        replace(result, cost=replace(COST, madds=1100)) if result.cell.id == SLOW else result
        for result in pair.candidate
    )
    changed = Pair(pair.baseline, replace(pair.candidate, results=dearer))
    shown, *_ = ab_findings.findings(judged(changed), changed, NOBODY)
    held, same, _ = ab_findings.findings(judged(changed), changed, NOBODY, same_costs=True)
    assert [(item.name, item.wanted, item.found) for item in shown.costs] == [("madds", 1000, 1100)]
    assert (shown.verdict, held.verdict, same.verdict) == ("PASS", "REGRESSION", "PASS")
    assert "madds" in held.reason


def test_the_mean_of_all_changes_is_over_launches_that_measured_every_cell() -> None:
    pair = pair_of(0.10)
    mean = ab_findings.geomean(pair, list(TIMES))
    assert mean is not None and mean.n == 4
    assert mean.point == pytest.approx(1.10 ** (1 / 3), rel=0.01)


def test_exit_codes_are_all_different() -> None:
    pair = pair_of(0.10)
    found = ab_findings.findings(judged(pair), pair, NOBODY)
    assert Decision(found).exit_code == 1
    assert Decision(found[1:]).exit_code == 0
    assert Decision(()).exit_code == 3
