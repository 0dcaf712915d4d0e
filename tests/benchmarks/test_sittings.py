"""The benchmarks of intervals over sittings: what runs and rows say, and a simulation with a known truth."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import run_of
from scipy import stats as scipy_stats

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "peers").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.peers import honest_decisions, recomputed_intervals, sitting_coverage, sittings  # noqa: E402
from benchmarks.peers.session import Ledger, Row  # noqa: E402
from benchmarks.peers.spread import CASES  # noqa: E402
from effbench.analysis import stats  # noqa: E402
from effbench.analysis.between_sittings import NO_HISTORY  # noqa: E402
from effbench.analysis.intervals import interval  # noqa: E402
from effbench.core.run import Run  # noqa: E402
from effbench.core.study import Claim, Experiment  # noqa: E402

NAMES = [str(case.labels["cell"]) for case in CASES]
SUITE = Experiment("peers", "", "", "cell", tuple(NAMES), NAMES[0], CASES)


def sitting(number: int, factor: float) -> Run:
    """A run of the suite in a sitting half an hour after the last, whose second cell is slower by a factor."""
    times = {case.id: 0.01 * (factor if place == 1 else 1) for place, case in enumerate(CASES)}
    run = run_of(times, experiment=SUITE, seed=number)
    start = f"2026-11-28T{10 + number // 2:02}:{30 * (number % 2):02}:00+00:00"
    return replace(run, launches=tuple(replace(launch, start=start, end=start) for launch in run.launches))


def test_each_run_has_the_history_that_its_machine_had_then() -> None:
    runs = list(sittings.with_history([sitting(number, factor) for number, factor in enumerate((1.0, 1.2, 0.9, 1.1))]))
    cell = CASES[1].id
    told = [run.between_sittings for run in runs]
    assert [between and between.sittings for between in told] == [0, 0, 2, 3]
    taus = [between.of(cell, "ratio").tau for between in told if between]
    assert taus[:2] == [0.025, 0.025] and min(taus[2:]) > 0.05, "two sittings show a scatter"


def test_intervals_with_history_hold_where_those_within_a_sitting_do_not() -> None:
    runs = [sitting(number, factor) for number, factor in enumerate((1.0, 1.2, 0.9, 1.1, 0.95, 1.05))]
    rows = [
        {"run": number, "tool": "effbench", **row}
        for number, run in enumerate(sittings.with_history(runs))
        for row in sittings.rows_of_suite(run)
    ]
    mine = [row for row in rows if row["cell"] == NAMES[1]]
    covered = sittings._claims(mine)
    held = {(figure, name): (hold, every) for figure, name, hold, every, *_ in covered}
    assert held["ratio", "within the sitting"][0] <= 1
    assert held["ratio", "with the scatter between sittings"][0] >= 3
    section = sittings.section(rows)
    met = {target.what: target.is_met for target in section.targets}
    assert met["their median half width: ratio"] is not None
    assert "6 sittings, which began at 10:00, 10:30, 11:00, 11:30, 12:00, 12:30 (UTC)" in section.blocks[0]


def test_a_spread_run_has_one_launch_of_each_sitting_and_shows_their_scatter() -> None:
    runs = [sitting(number, factor) for number, factor in enumerate((1.0, 1.2, 0.9, 1.1, 0.95, 1.05))]
    rows = sittings.rows_of_spread_runs(sittings.with_history(runs), 3)
    mine = [row for row in rows if row["cell"] == NAMES[1]]
    launches = len(runs[0].launches)
    assert [(row["sittings"], row["launch"]) for row in mine] == [
        (pair, place) for pair in ([0, 2], [3, 5]) for place in range(launches)
    ]
    for row, factors in ((mine[0], (1.0, 1.2, 0.9)), (mine[-1], (1.1, 0.95, 1.05))):
        assert row["ratio"] == pytest.approx(statistics.median(factors), rel=0.01)
        low, high = scipy_stats.t.interval(
            0.95, 2, loc=statistics.fmean(map(math.log, factors)), scale=scipy_stats.sem([math.log(x) for x in factors])
        )
        assert math.log(row["low"]) == pytest.approx(low, abs=0.02)
        assert math.log(row["high"]) == pytest.approx(high, abs=0.02)


def test_a_spread_interval_is_judged_by_the_sittings_that_it_has_no_launch_in() -> None:
    def row(run: int, value: float, **more: object) -> Row:
        figures = dict.fromkeys(("ratio", "latency_s"), value)
        low, high = dict.fromkeys(("low", "latency_low_s"), 0.9), dict.fromkeys(("high", "latency_high_s"), 1.1)
        return {"run": run, "cell": "a", **figures, **low, **high, **more}

    ours = [row(run, value) for run, value in enumerate((1.0, 1.0, 1.0, 2.0, 2.0))]
    within, without = row(5, 1.0, sittings=[3, 4]), row(5, 1.0, sittings=[0, 2])
    assert "| ratio | 1 of 2 |" in sittings._spread_table(ours, [within, without])


def verdict_row(run: int, verdict: str, group: str = "x1") -> Row:
    return {"run": run, "study": "g2_groups", "claim": "slower", "group": group, "verdict": verdict, "within": "holds"}


def test_a_flip_is_a_claim_that_held_and_failed_at_one_scale() -> None:
    steady = [
        verdict_row(0, "holds"),
        verdict_row(1, "unsure"),
        verdict_row(0, "fails", "x2"),
        verdict_row(1, "fails", "x2"),
    ]
    (target,) = sittings.section(steady).targets
    assert target.is_met is True and target.found == "0 of 2 claims" and "2 repetitions" in target.what
    (target,) = sittings.section([*steady, verdict_row(1, "fails")]).targets
    assert target.is_met is False and target.found == "1 of 2 claims"


def test_verdicts_are_judged_with_and_without_the_scatter() -> None:
    times = {f"scale=x1,groups={groups}": 0.01 * factor for groups, factor in ((1, 1.0), (2, 1.05), (4, 1.2))}
    runs = []
    for number in range(2):
        run = run_of(times, seed=number)
        start = f"2026-11-28T{10 + number}:00:00+00:00"
        runs.append(replace(run, launches=tuple(replace(each, start=start, end=start) for each in run.launches)))
    first, *_ = sittings.rows_of_study(sittings.with_history(runs)[0])
    assert isinstance(runs[0].experiment.claims[0], Claim)
    assert (first["verdict"], first["within"]) == ("unsure", "holds"), "5 % is less than reference machines scatter"


def test_a_sitting_waits_for_another_quarter_of_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(sittings.time, "sleep", slept.append)
    quarters = iter([7, 7, 8, 7])
    monkeypatch.setattr(sittings, "_quarter", lambda at: 7 if at == "earlier" else next(quarters))
    monkeypatch.setattr(sittings, "_entries", lambda folder: [{"task": {"run": 0}, "at": "earlier"}])
    sittings._wait_for_quarter({"run": 1}, tmp_path)
    assert len(slept) == 2
    sittings._wait_for_quarter({"run": 0, "study": "g2_groups"}, tmp_path / "the same sitting does not wait")


def test_the_simulation_holds_its_confidence_with_a_history_and_not_without(tmp_path: Path) -> None:
    found = {}
    for history in (0, 6):
        task = {"tau": 0.05, "history": history, "of": "the same cell", "spread": 1, "trials": 150}
        (found[history],) = sitting_coverage.measure(task, tmp_path)
        Ledger(tmp_path / "rows.jsonl").add(task, [found[history]], 1.0)
    spread = {"tau": 0.05, "history": 0, "of": "the same cell", "spread": 5, "trials": 150}
    (over,) = sitting_coverage.measure(spread, tmp_path)
    assert over["held"] >= 0.92 * 150 and over["half_width"] < 0.7 * found[6]["half_width"]
    assert found[6]["held"] >= 0.92 * 150 > found[0]["held"] > found[0]["held_within"]
    text = "\n".join(sitting_coverage.section(Ledger(tmp_path / "rows.jsonl").rows()).blocks)
    assert "none: reference machines" in text and "6 of the same cell" in text


def test_the_recomputed_coverage_that_the_method_page_quotes() -> None:
    spread = ROOT / "results" / "benchmarks" / "amd-epyc-zen5-kvm-2-cores" / "spread.jsonl"
    entries = [entry for entry in Ledger(spread).entries() if entry["task"]["tool"] == "effbench"]
    found = recomputed_intervals.coverage(entries)
    held = {key: f"{hold} of {every}" for key, (hold, every, _) in found.items()}
    assert held["ratio", "within"] == "38 of 48" and held["latency", "within"] == "45 of 60"
    assert held["ratio", "none"] == held["ratio", "history"] == "46 of 48"
    assert held["latency", "none"] == held["latency", "history"] == "58 of 60"
    widths = {key: round(100 * half, 1) for key, (_, _, half) in found.items()}
    assert (widths["ratio", "within"], widths["latency", "within"]) == (2.5, 3.4)
    assert 6.5 < widths["ratio", "none"] < widths["ratio", "history"] < 8.5
    assert 9.5 < widths["latency", "none"] < 10.5 and 9.5 < widths["latency", "history"] < 10.5
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").replace("\n", " ")
    assert "46 of 48 intervals of ratios and 58 of 60 of times" in page and "38 of 48 and 45 of 60" in page


def test_an_interval_that_is_computed_anew_is_that_of_a_run() -> None:
    """The same launches give the same interval, by way of what 0.4 printed of them."""
    medians = [0.01, 0.03, -0.01]
    within = stats.t_interval(medians)
    assert within.low is not None and within.high is not None
    row = {"cell": "c", "ratio": math.exp(0.01), "low": math.exp(within.low), "high": math.exp(within.high)}
    row |= {"latency_s": 1.0, "latency_low_s": None, "latency_high_s": None}
    ((_, error),) = recomputed_intervals._values([row])["c"].values()
    expected = interval([medians], NO_HISTORY.ratio)
    assert expected.high is not None
    assert recomputed_intervals._half(error, NO_HISTORY.ratio) == pytest.approx(math.log(expected.high) - 0.01)


def test_the_simulated_figures_that_the_method_page_quotes() -> None:
    folder = ROOT / "results" / "benchmarks" / "amd-epyc-zen3-kvm-2-cores"
    text = " ".join((ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").split())
    wrong, covered = honest_decisions.section(Ledger(folder / "honest_decisions.jsonl").rows()).targets
    assert f"at most {wrong.found} decided wrongly, and at least {covered.found} of the printed intervals" in text
    plain = [target.peers.removeprefix("plain 95 % intervals ") for target in (wrong, covered)]
    assert f"at every look it would be {plain[0]} and {plain[1]}." in text
    held = {
        (row["history"], row["of"], row["spread"]): row["held"] / row["trials"]
        for row in Ledger(folder / "sitting_coverage.jsonl").rows()
        if row["tau"] == 0.05
    }
    same = sitting_coverage.KINDS[0]
    quoted = [held[0, same, 1], held[3, same, 1], held[11, same, 1], held[0, same, sitting_coverage.LAUNCHES]]
    first, three, eleven, spread = (f"{100 * share:.0f} %" for share in quoted)
    assert (
        f"first intervals hold in {first} of cases" in text and f"same cell {three} hold, with eleven {eleven}" in text
    )
    assert f"over five sittings hold in {spread} of cases" in text
