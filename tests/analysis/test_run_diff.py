"""Comparison of two stored runs: known changes get their verdicts, identical code raises no alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest
from runs import CELLS, run_of, with_blocks

from effbench.analysis.run_diff import compare_runs, require_shared
from effbench.core.errors import InvalidValue

pytestmark = pytest.mark.quick

TIMES = dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))


def test_known_changes_get_their_verdicts() -> None:
    before = run_of(TIMES)
    after = run_of({**TIMES, CELLS[1]: 0.0143, CELLS[2]: 0.018}, seed=1)
    found = {item.cell: item for item in compare_runs(before, after)}
    assert [found[cell].verdict for cell in CELLS] == ["same", "slower", "faster"]
    change = found[CELLS[1]].change
    assert change and change.low and change.high and change.low <= 1.1 <= change.high


def test_missing_is_not_equal() -> None:
    run = run_of(TIMES)
    fewer = replace(run, results=run.results[:2])
    other_batch = replace(
        run, results=(replace(run.results[0], cell=replace(run.results[0].cell, batch=2)), *run.results[1:])
    )
    skipped = replace(run, results=(*run.results[:2], replace(run.results[2], blocks=(), skipped="crashed")))
    assert compare_runs(run, fewer)[2].verdict == compare_runs(fewer, run)[2].verdict == "missing"
    assert compare_runs(run, other_batch)[0].verdict == "missing"
    assert compare_runs(run, skipped)[2].reason == "crashed"


@pytest.mark.parametrize("launches", [1, 2])
def test_few_launches_do_not_convict(launches: int) -> None:
    """One launch has no interval; two have one too wide for 5 %. Neither may be called slower or same."""
    before = run_of(TIMES, launches=launches, launch_noise=0.02)
    after = run_of(
        {cell: seconds * 1.05 for cell, seconds in TIMES.items()}, launches=launches, launch_noise=0.02, seed=3
    )
    assert {item.verdict for item in compare_runs(before, after)} == {"unsure"}


def test_zero_variance_and_unequal_counts_are_handled() -> None:
    exact = run_of(TIMES, noise=0.0, launch_noise=0.0)
    longer = run_of(TIMES, noise=0.0, launch_noise=0.0, launches=8, rounds=30)
    assert {item.verdict for item in compare_runs(exact, longer)} == {"same"}


def test_identical_code_rarely_alarms() -> None:
    alarms = 0
    for seed in range(60):
        pair = [run_of(TIMES, launch_noise=0.02, noise=0.03, seed=1000 * side + seed) for side in (0, 1)]
        alarms += sum(item.verdict in ("slower", "faster") for item in compare_runs(*pair))
    assert alarms <= 9, "5 % of 180 cells"


def test_a_disturbed_cell_convicts_nobody() -> None:
    before = run_of(TIMES)
    after = run_of({**TIMES, CELLS[1]: 0.02}, seed=1)
    disturbed = with_blocks(after, CELLS[1], lambda timing: replace(timing, flags=("steal",)))
    assert compare_runs(before, after)[1].verdict == "slower"
    found = compare_runs(before, disturbed)[1]
    assert (found.verdict, found.reason) == ("unsure", "contaminated")


def test_counts_that_differ_are_named() -> None:
    """A cell of the same name whose network became another one: where both have counts, whatever the times say."""
    before, after = run_of(TIMES), run_of(TIMES, seed=1)
    assert [item.costs for item in compare_runs(before, after)] == [{}, {}, {}]
    cost = after.results[1].cost
    assert cost is not None
    other = replace(after.results[1], cost=replace(cost, madds=4 * cost.madds))
    changed = replace(after, results=(after.results[0], other, after.results[2]))
    found = compare_runs(before, changed)
    assert found[1].costs == {"madds": (cost.madds, 4 * cost.madds)} and found[1].verdict == "same"
    assert "its counts differ: madds " in found[1].reason and found[1].reason.endswith("(×4)")
    assert not found[0].costs and not found[0].reason


def test_runs_without_a_common_cell_are_refused() -> None:
    run = run_of(TIMES)
    require_shared(run, replace(run, results=run.results[1:]))
    for others in (run.results[1:], ()):
        with pytest.raises(InvalidValue, match=f"no cell in common: the baseline has {CELLS[0]}, the candidate"):
            require_shared(replace(run, results=run.results[:1]), replace(run, results=others))
