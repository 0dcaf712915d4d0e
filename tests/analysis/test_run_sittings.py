"""The sittings of stored runs, and the scatter that their intervals include."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from runs import run_of
from scipy import stats as scipy_stats

from effbench.analysis import intervals, run_diff, run_sittings, summary
from effbench.analysis.run_sittings import RunSittings, share_sitting, sitting_of_launches
from effbench.core.run import Launch
from effbench.core.sittings import BetweenSittings, Scatter


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
        assert run_sittings.scatter_of(pair, "scale=x1,groups=1", "busy") == Scatter(0.04, 4.0)
    assert run_sittings.scatter_of((run, run), "scale=x1,groups=1", "busy") is None


def test_diff_adds_the_scatter_only_between_sittings() -> None:
    cell = "scale=x1,groups=1"
    run = run_of({cell: 0.01})
    scatter = BetweenSittings(Scatter(0.025, 4.0), Scatter(0.035, 4.0))
    slower = replace(run_of({cell: 0.0105}, seed=1), between_sittings=scatter)

    def compared(start: str, end: str) -> str:
        timed = [at(start, end, number) for number in range(5)]
        runs = replace(run, launches=tuple(at("10:00:00", "10:00:20", number) for number in range(5)))
        return run_diff.compare_runs(runs, replace(slower, launches=tuple(timed)))[0].verdict

    scripted = replace(run, environment=replace(run.environment, device="fake"))
    assert run_sittings.change_note(scripted, scripted) == ""
    old = replace(run, environment=replace(run.environment, device="cpu"))
    assert run_sittings.change_note(old, old).startswith("Neither run recorded how far sittings differ"), "schema 3"
    assert run_sittings.change_note(run, slower).startswith("Changes include ±14.7 % between sittings for a cell")
    assert "±10.3 %" in run_sittings.change_note(run, slower, "ratio")
    assert run_sittings.change_note(slower, run) == run_sittings.change_note(run, slower), "either side knows"
    assert compared("10:00:30", "10:00:50") == "slower"
    assert compared("12:00:00", "12:00:20") == "unsure"


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
    assert intervals.half_width(Scatter(0.025, 4.0)) == pytest.approx(math.expm1(0.025 * scipy_stats.t.ppf(0.975, 4)))
