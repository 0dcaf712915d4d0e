"""The baseline gate on synthetic runs of known truth, against scipy and simulated suites."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run_of, with_blocks

from effbench.core.errors import NotComparable
from effbench.core.run import Run, Stop, Timing
from effbench.core.study import Case, Experiment
from effbench.gates import baseline, run_gates
from effbench.gates.baseline import LaunchTimes
from effbench.gates.config import Config, Subject
from effbench.gates.decision_rule import Rule
from effbench.gates.result import Decision, Finding
from effbench.host.facts import Difference

pytestmark = pytest.mark.quick

UNIT, A, B = "model=yardstick", "model=a", "model=b"
RULE = Rule(tolerance=0.05)


def study(*names: str, reference: str = "yardstick", spec: str = "mobilenet_v2") -> Experiment:
    cases = tuple(
        Case(spec if name == reference else f"nets.py:{name}", (3, 8, 8), labels={"model": name}) for name in names
    )
    return Experiment("check", "Models", "How fast?", "model", names, reference, cases)


def run(a: float = 1.0, b: float = 1.0, machine: float = 1.0, **options: object) -> Run:
    """A run in which a, b and the yardstick take 4, 2 and 3 ms, times these factors."""
    times = {UNIT: 3e-3 * machine, A: 4e-3 * a * machine, B: 2e-3 * b * machine}
    return run_of(times, experiment=study("yardstick", "a", "b"), **options)  # type: ignore[arg-type]


def judge(then: Run, now: Run, unit: str | None = UNIT, **options: object) -> dict[str, Finding]:
    found = baseline.judge(then, now, [A, B], RULE, {}, yardstick=unit, **options)  # type: ignore[arg-type]
    return {finding.cell: finding for finding in found}


def words(found: Mapping[str, Finding]) -> list[str]:
    return [found["a"].verdict, found["b"].verdict]


# --- verdicts ---------------------------------------------------------------------------------------


def test_a_slowdown_is_called_and_nothing_else() -> None:
    found = judge(run(), run(a=1.1, seed=1))
    assert words(found) == ["REGRESSION", "PASS"]
    change = found["a"].change
    assert change is not None and change.low is not None and change.high is not None
    assert change.low < 1.1 < change.high and change.point == pytest.approx(1.1, rel=0.005)
    assert found["a"].gate == "baseline" and found["a"].launches == 5 and found["a"].rounds == 60
    assert found["a"].tolerance == 0.05 and found["a"].clock == "cpu" and found["a"].wall is not None


def test_what_got_faster_passes_and_is_said_to() -> None:
    found = judge(run(), run(a=0.8, seed=1))
    assert words(found) == ["PASS", "PASS"] and found["a"].is_improved and not found["b"].is_improved


def test_what_cannot_be_told_is_not_decided() -> None:
    noisy = {"launch_noise": 0.05}
    assert words(judge(run(**noisy), run(a=1.04, seed=1, **noisy))) == ["INCONCLUSIVE"] * 2


def test_each_cell_has_its_own_tolerance() -> None:
    then, now = run(launch_noise=0.01), run(seed=1, launch_noise=0.01)
    found = baseline.judge(then, now, [A, B], RULE, {A: 0.2, B: 0.002}, yardstick=UNIT)
    assert [finding.verdict for finding in found] == ["PASS", "INCONCLUSIVE"]
    assert [finding.tolerance for finding in found] == [0.2, 0.002]
    assert found[1].reason == "neither a slowdown nor its absence within 0.2 % is shown"


def test_a_yardstick_tells_a_slower_machine_from_slower_code() -> None:
    then, now = run(), run(machine=1.21, seed=1)
    assert words(judge(then, now)) == ["PASS", "PASS"]
    assert words(judge(then, now, None)) == ["REGRESSION", "REGRESSION"]
    assert "The yardstick itself took ×1.209" in baseline.remarks(then, now, [A], UNIT)[0]
    assert "cannot be told from slower code" in baseline.notes(None)[0]


def test_drift_within_a_run_cancels_too() -> None:
    """20 % slower from the first round to the last: the ratio is off by less than half a percent."""

    def drifting(run: Run) -> Run:
        results = []
        for result in run:
            blocks = [
                replace(block, timing=stretched(block.timing, 1 + 0.2 * block.round / 11)) for block in result.blocks
            ]
            results.append(replace(result, blocks=tuple(blocks)))
        return replace(run, results=tuple(results))

    found = judge(run(), drifting(run(seed=1)))
    assert words(found) == ["PASS", "PASS"]
    assert found["a"].change is not None and found["a"].change.point == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("launches", [1, 2])
def test_too_few_launches_decide_nothing(launches: int) -> None:
    found = judge(run(), run(a=2.0, seed=1, launches=launches))
    assert words(found) == ["INCONCLUSIVE"] * 2
    assert found["a"].reason == f"{launches} launches on one side; 3 are needed" and found["a"].launches == launches


def test_no_scatter_is_no_proof() -> None:
    exact = {"noise": 0.0, "launch_noise": 0.0}
    for a in (1.0, 1.5):
        found = judge(run(**exact), run(a=a, **exact))
        assert words(found) == ["INCONCLUSIVE"] * 2 and found["a"].detectable is None


def test_a_disturbed_machine_is_no_slow_code() -> None:
    def one_in(n: int, whole: Run, cell: str) -> Run:
        results = tuple(
            replace(
                result,
                blocks=tuple(
                    replace(block, timing=replace(block.timing, flags=("run delay",) if number % n == 0 else ()))
                    for number, block in enumerate(result.blocks)
                ),
            )
            if result.cell.id == cell
            else result
            for result in whole
        )
        return replace(whole, results=results)

    slow = run(a=1.5, seed=1)
    assert words(judge(run(), one_in(5, slow, A))) == ["ENVIRONMENT", "PASS"]
    assert words(judge(one_in(5, run(), A), slow)) == ["ENVIRONMENT", "PASS"]
    # What disturbs the unit disturbs everything.
    assert words(judge(run(), one_in(5, slow, UNIT))) == ["ENVIRONMENT"] * 2
    tenth = judge(run(), one_in(10, slow, A))
    assert words(tenth) == ["REGRESSION", "PASS"] and tenth["a"].set_aside == 6


def test_what_is_not_steady_never_passes_but_can_fail() -> None:
    def unsteady(run: Run) -> Run:
        launches = tuple(
            replace(launch, warmups={cell: replace(each, steady=False) for cell, each in launch.warmups.items()})
            for launch in run.launches
        )
        return replace(run, launches=launches)

    found = judge(run(), unsteady(run(a=1.2, seed=1)))
    assert words(found) == ["REGRESSION", "INCONCLUSIVE"]
    assert found["b"].reason == "the candidate did not reach a steady state"
    assert words(judge(unsteady(run()), run(seed=1))) == ["INCONCLUSIVE"] * 2


def test_waiting_that_cpu_time_does_not_see_is_called() -> None:
    def waiting(by: float) -> Run:
        return with_blocks(run(seed=1), A, lambda timing: replace(timing, wall_ns=round(timing.wall_ns * by)))

    found = judge(run(), waiting(1.3))
    assert words(found) == ["REGRESSION", "PASS"]
    assert found["a"].reason == "it waits longer: more than 10 % slower in wall time"
    assert words(judge(run(), waiting(1.05))) == ["PASS", "PASS"]


def test_what_does_not_run_any_more_fails_and_what_is_new_does_not() -> None:
    then, now = run(), run(seed=1)
    broken = tuple(replace(r, blocks=(), skipped="ValueError") if r.cell.id == A else r for r in now)
    found = judge(then, replace(now, results=broken))
    assert words(found) == ["REGRESSION", "PASS"] and found["a"].reason == "it does not run: ValueError"
    lacking = replace(then, results=tuple(result for result in then if result.cell.id != A))
    assert words(judge(lacking, now)) == ["NEW", "PASS"]
    assert Decision(tuple(judge(lacking, now).values())).verdict == "PASS"
    failed = tuple(replace(r, blocks=(), skipped="ValueError") if r.cell.id == A else r for r in then)
    found = judge(replace(then, results=failed), now)
    assert words(found) == ["INCONCLUSIVE", "PASS"] and "did not run in the baseline: ValueError" in found["a"].reason


def test_other_costs_are_shown_and_fail_where_that_is_asked_for() -> None:
    then, now = run(), run(seed=1)
    dearer = tuple(
        replace(r, cost=replace(r.cost, madds=1100)) if r.cell.id == A and r.cost is not None else r for r in now
    )
    now = replace(now, results=dearer)
    shown = judge(then, now)
    assert words(shown) == ["PASS", "PASS"] and shown["a"].costs[0].rule == "" and shown["b"].costs == ()
    held = judge(then, now, same_costs=True)
    assert words(held) == ["REGRESSION", "PASS"] and held["a"].reason == "it costs something else: madds"


# --- statistics -------------------------------------------------------------------------------------

_LOGS = st.lists(st.floats(-1, 1).map(lambda value: round(value, 6)), min_size=3, max_size=9)


@settings(deadline=None, max_examples=60)
@given(_LOGS, _LOGS, st.floats(0.0, 0.3))
def test_the_test_is_welchs(before: list[float], after: list[float], share: float) -> None:
    from scipy.stats import ttest_ind

    sides = LaunchTimes(before, after)
    if math.sqrt(sum((value - sum(before) / len(before)) ** 2 for value in before)) < 1e-3 or len(set(after)) == 1:
        return
    for found, alternative, threshold in (
        (sides.p_above(share), "greater", math.log1p(share)),
        (sides.p_below(share), "less", math.log1p(share)),
    ):
        moved = [value - threshold for value in after]
        assert found == pytest.approx(ttest_ind(moved, before, equal_var=False, alternative=alternative).pvalue)


def test_the_smallest_detectable_slowdown_is_called_four_times_in_five() -> None:
    draw, alpha, scatter = random.Random(5), 0.05, 0.01
    unit = [value * scatter / math.sqrt(2.5) for value in (-2, -1, 0, 1, 2)]  # whose deviation is the scatter
    slowdown = LaunchTimes(unit, unit).detectable(alpha, 0.01)
    assert slowdown is not None
    called = 0
    for _ in range(1000):
        before, after = ([draw.gauss(centre, scatter) for _ in range(5)] for centre in (0, math.log1p(slowdown)))
        called += LaunchTimes(before, after).p_above(0.01) <= alpha
    assert called / 1000 == pytest.approx(0.8, abs=0.04)


def test_suites_of_twelve_equal_cells_raise_few_false_alarms() -> None:
    """The same truth on both sides at the border of what counts as slower: at most 5 % of suites by Holm."""
    draw, alarms, suites = random.Random(1), 0, 400
    import numpy

    from effbench.analysis import stats

    for _ in range(suites):
        cells = [
            LaunchTimes([draw.gauss(0, 0.02) for _ in range(5)], [draw.gauss(math.log1p(0.01), 0.02) for _ in range(5)])
            for _ in range(12)
        ]
        alarms += stats.holm(numpy.array([[cell.p_above(0.01) for cell in cells]])).min() <= 0.05
    assert alarms / suites < 0.075  # 5 %, plus two standard errors of 400 draws


def test_the_mean_over_cells_is_geometric() -> None:
    exact = {"noise": 0.0}
    mean = baseline.geomean(run(**exact), run(a=1.5, b=1.5, **exact), [A, B], UNIT)
    assert mean is not None and mean.point == pytest.approx(1.5, rel=1e-6)
    mixed = baseline.geomean(run(**exact), run(a=2.0, b=0.5, **exact), [A, B], UNIT)
    assert mixed is not None and mixed.point == pytest.approx(1.0, rel=1e-6)
    assert baseline.geomean(run(), run(launches=0), [A, B], UNIT) is None


# --- what is compared -------------------------------------------------------------------------------


def test_only_a_network_that_no_change_reaches_is_a_yardstick() -> None:
    assert baseline.yardstick_of(run(), [A, B]) == UNIT
    assert baseline.yardstick_of(run(), [UNIT, A, B]) is None
    own = run_of({UNIT: 1e-3, A: 1e-3}, experiment=study("yardstick", "a", spec="nets.py:unit"))
    assert baseline.yardstick_of(own, [A]) is None
    absent = replace(run(), results=tuple(result for result in run() if result.cell.id != UNIT))
    assert baseline.yardstick_of(absent, [A, B]) is None


def test_an_unlike_machine_is_named_field_by_field() -> None:
    found = baseline.findings_on_other_machine(
        [Difference("cpu.model", "A", "B"), Difference("run.threads", 1, 2)], ["a", "b"]
    )
    assert [finding.verdict for finding in found] == ["ENVIRONMENT"] * 2
    assert "cpu.model (A / B), run.threads (1 / 2)" in found[0].reason
    assert Decision(found).exit_code == 4


def test_names_are_those_that_people_gave() -> None:
    assert baseline.name_of(Case("x.py:f", (3,), labels={"model": "small"})) == "small"
    assert baseline.name_of(Case("probe", (3,), labels={"scale": "x1", "groups": 2})) == "scale=x1,groups=2"


def stretched(timing: Timing, by: float) -> Timing:
    assert timing.cpu_ns is not None
    return dataclasses.replace(timing, wall_ns=round(timing.wall_ns * by), cpu_ns=round(timing.cpu_ns * by))


def test_a_gate_measures_as_often_as_a_baseline_that_stopped_by_itself() -> None:
    """It does not stop by itself, too: two runs are compared, and each would stop on its own luck."""
    stored = run(facts={"run.allocator": "retain"})
    stored = replace(stored, sampling=replace(stored.sampling, until="faster", launches=13), stop=Stop("decided", 4))
    planned = run_gates._plan_for(stored, [result.cell for result in stored], Config())
    assert (planned.sampling.until, planned.sampling.launches) == ("launches", 4)


def test_a_gate_does_not_wait_where_its_baseline_was_spread() -> None:
    stored = run(facts={"run.allocator": "retain"})
    stored = replace(stored, sampling=replace(stored.sampling, spread_s=7200.0))
    assert run_gates._plan_for(stored, [result.cell for result in stored], Config()).sampling.spread_s == 0


def test_a_run_of_a_gate_is_not_one_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline is: once it is complete, gates compare with it."""
    seen: list[bool] = []

    def execute(*_: Any, can_resume: bool, **options: Any) -> Run:
        seen.append(can_resume)
        raise NotComparable("elsewhere")

    stored = run(facts={"run.allocator": "retain"})
    monkeypatch.setattr(run_gates.run_file, "load", lambda path: stored)
    monkeypatch.setattr(run_gates, "_known_differences", lambda run: ())
    monkeypatch.setattr(run_gates.runner, "execute", execute)
    run_gates.compare_with_run(Config(), tmp_path / "stored", tmp_path / "new")
    with pytest.raises(NotComparable):
        run_gates.save_baseline(Config((Subject("lenet5", "lenet5"),), device="fake"), tmp_path / "baseline")
    assert seen == [False, True]
