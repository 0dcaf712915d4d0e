"""Latency percentiles: exact intervals against scipy's binomial, number of calls, display."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run_of
from scipy import stats as reference

from effbench.analysis import stats
from effbench.core.run import Metric, Run
from effbench.devices import OutOfMemory
from effbench.devices.fake import Fake, ScriptedCall
from effbench.metrics import base, percentiles
from effbench.report.tables.table_model import render_markdown
from effbench.results import Results
from effbench.runs import run_file
from effbench.runtimes import Unsupported

pytestmark = pytest.mark.usefixtures("forked_launches")

SECONDS = [index * 1e-3 for index in range(1, 501)]


# --- the interval -------------------------------------------------------------------------------------


@given(n=st.integers(1, 900), q=st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99]), confidence=st.sampled_from([0.8, 0.95]))
@settings(deadline=None, max_examples=60)
def test_each_bound_is_the_tightest_order_statistic_that_the_binomial_allows(n: int, q: float, confidence: float):
    found = stats.quantile_interval(list(range(n)), q, confidence)
    tail, below = (1 - confidence) / 2, reference.binom(n, q)
    wrongly_low, wrongly_high = below.cdf(range(n)), below.sf(range(n))
    assert found.low == max((r for r in range(n) if wrongly_low[r] <= tail), default=None)
    assert found.high == min((r for r in range(n) if wrongly_high[r] <= tail), default=None)
    assert found.n == n and found.confidence == confidence
    if found.low is not None and found.high is not None:
        assert below.cdf(found.high) - below.cdf(found.low) >= confidence
        assert found.low <= found.point <= found.high


def test_the_99th_percentile_has_an_upper_bound_from_368_values_on():
    """The largest of n values lies below it with probability 0.99^n: 2.5 % at n = 367.04."""
    assert 0.99**367 > 0.025 > 0.99**368
    assert stats.quantile_interval(list(range(367)), 0.99).high is None
    assert stats.quantile_interval(list(range(368)), 0.99).high == 367


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
@settings(deadline=None, max_examples=40)
def test_at_one_half_it_is_the_interval_of_the_median(values: list[float]):
    ours, median = stats.quantile_interval(values, 0.5), stats.median_interval(values)
    assert (ours.point, ours.low, ours.high) == (median.point, median.low, median.high)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_at_the_edge_has_no_interval(q: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.quantile_interval([1.0, 2.0], q)
    with pytest.raises(ValueError, match="at least one"):
        stats.quantile_interval([], 0.5)


# --- the calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [
        (1e-6, 5000, 5499),  # never more than are needed
        (1e-3, 2900, 3200),  # three seconds' worth
        (0.02, 500, 520),  # enough for the 99th percentile takes longer than that
        (0.1, 195, 205),  # and at most twenty seconds
        (60.0, 1, 1),
    ],
)
def test_so_many_calls_as_the_time_allows(seconds: float, least: int, most: int):
    device = Fake(noise=0.0)
    spent = percentiles.single_calls(device, ScriptedCall(seconds))
    assert least <= len(spent) <= most
    assert set(spent) == {round(seconds * 1e9)}


def test_the_summary_is_that_of_the_calls_in_seconds():
    nanoseconds = [round(value * 1e9) for value in reversed(SECONDS)]
    values = percentiles.summarise_calls(nanoseconds)
    assert values["n"] == 500 and values["max_s"] == pytest.approx(0.5)
    below = reference.binom(500, 0.99)
    assert values["p99_s"] == pytest.approx(0.49501)
    assert values["p99_low_s"] == pytest.approx(SECONDS[max(r for r in range(500) if below.cdf(r) <= 0.025)])
    assert values["p99_high_s"] == pytest.approx(SECONDS[min(r for r in range(500) if below.sf(r) <= 0.025)])
    assert percentiles.summarise_calls(nanoseconds[:100])["p99_high_s"] is None


# --- what keeps it from being read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemory("tried 3 GB\nmore"), "out of memory: tried 3 GB"),
        (Unsupported("it has no such mode"), "it has no such mode"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_network_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str):
    def fail(*_: Any) -> None:
        raise error

    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(percentiles, "measure", fail)
    base.measure({"task": "percentiles"}, lambda event, **fields: told.append((event, fields)))
    assert told == [("skip", {"reason": reason})]


# --- where it is shown ---------------------------------------------------------------------------------


def with_metrics(run: Run, *found: Metric | None) -> Run:
    pairs = zip(run.results, found, strict=True)
    return replace(run, results=tuple(replace(item, metrics=(read,) if read else ()) for item, read in pairs))


@pytest.fixture(scope="module")
def shown() -> Results:
    few = percentiles.summarise_calls([round(value * 1e9) for value in SECONDS[:200]])
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0, "scale=x1,groups=4": 4.0})
    values = percentiles.summarise_calls([round(value * 1e9) for value in SECONDS])
    return Results(
        with_metrics(
            run,
            Metric("percentiles", {**values, "steady": True, "calls_ns": [1, 2]}),
            Metric("percentiles", {**few, "steady": True, "calls_ns": [1, 2]}),
            Metric("percentiles", missing="it ran dry"),
        )
    )


def test_the_table_has_a_column_a_percentile(shown: Results):
    found = shown.tables()[0]
    titles = [column.title for column in found.columns]
    p99 = [row[titles.index("p99 (ms)")] for row in found.rows]
    assert [value.text for value in p99] == ["495 [490, 500]", "198 [195, –]", "–"]
    assert p99[0].raw.point == pytest.approx(0.49501), "seconds in full"
    assert "no percentiles: it ran dry" in found.rows[2][titles.index("flags")].text
    text = render_markdown(found)
    assert "200 to 500 single calls" in text and "Too few calls for every upper bound of p99." in text


def test_json_has_them_without_the_raw_calls(shown: Results):
    first, _, last = shown.to_dict()["cells"]
    assert first["percentiles"]["p90_s"] == pytest.approx(0.4501)
    assert "calls_ns" not in first["percentiles"]
    assert last["percentiles"] == {"missing": "it ran dry"}


def test_without_a_reading_there_is_no_column():
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0, "scale=x1,groups=4": 4.0})
    titles = [column.title for column in Results(run).tables()[0].columns]
    assert not {"p50 (ms)", "peak memory (MB)", "weights (MB)", "error vs float32"} & set(titles)


def test_a_scripted_run_reads_them_in_processes_of_their_own(tmp_path: Path):
    """Stored with every call, found again by whoever loads the run, and not taken twice by a resumed one."""
    import effbench

    results = effbench.run(
        "g2_groups",
        scale="x1",
        select={"groups": ["1"]},
        device="fake",
        quick=True,
        launches=1,
        metrics=("percentiles", "peak_memory"),
        out=tmp_path / "run",
    )
    (cell,) = run_file.load(tmp_path / "run").results
    metric = cell.metric("percentiles")
    assert metric is not None and metric.missing is None
    calls = metric.values["calls_ns"]
    assert len(calls) == metric.values["n"] >= percentiles.MIN_CALLS
    middle = stats.quantile_interval([call * 1e-9 for call in calls], 0.5)
    assert metric.values["p50_s"] == pytest.approx(middle.point)
    assert metric.values["p50_low_s"] == pytest.approx(middle.low)
    assert results.cells[0].read("percentiles")["p50_s"] == pytest.approx(results.cells[0].latency.point, rel=0.02)
    memory = results.cells[0].read("peak_memory")
    assert memory["peak_memory_bytes"] == cell.cost.memory_access_bytes and memory["baseline_bytes"] == 0
    assert memory["weights_bytes"] == 4 * cell.cost.params
