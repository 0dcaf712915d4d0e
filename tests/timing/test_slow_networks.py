"""Slow models: steady state from few calls, budget forecasts from the first calls, limits as shares of a block.

On scripted clocks, so that the tests are fast.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from projects import commit, repository
from runs import CELLS, run_of, study, with_blocks
from scripted_runs import cost_of, events_of, in_process, job
from shell import effbench

from effbench.analysis.summary import summarise
from effbench.core.cost import Cost
from effbench.core.run import Block, Timing, Warmup
from effbench.core.study import Cell, Sampling
from effbench.devices import cpu
from effbench.devices.cpu import Cpu
from effbench.devices.fake import PEAK_MADDS, Fake, ScriptedCall
from effbench.gates import ab_pairs
from effbench.report import json_document
from effbench.runs import launch_history, runner
from effbench.studies import plan
from effbench.timing import block_loop, least_duration
from effbench.timing import sampling as sampling_rules

QUICK = replace(Sampling(), **plan.QUICK)


class Clock(Fake):
    """The n-th call, from 1 on, takes `seconds(n)`; with `waits` all beyond the first second was for a core."""

    def __init__(self, seconds: Callable[[int], float], noise: float = 0.0, seed: int = 0, waits: bool = False) -> None:
        super().__init__(seed, noise)
        self._seconds, self._waits, self.made = seconds, waits, 0

    def time_block(self, call: Any, calls: int) -> Timing:
        spent = 0.0
        for _ in range(calls):
            self.made += 1
            spent += self._seconds(self.made)
        found = super().time_block(ScriptedCall(spent / calls), calls)
        return replace(found, run_delay_ns=max(0, found.wall_ns - 10**9)) if self._waits else found


def warm(clock: Clock, sampling: Sampling | None = None) -> Warmup:
    return block_loop.warm_up(clock, ScriptedCall(1.0), "cell", None, sampling or Sampling())[0]


# --- steadiness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.03])
@pytest.mark.parametrize("seconds", [0.02, 0.03, 0.11, 0.12, 0.2, 0.3, 1.0, 2.0, 90.0])
@pytest.mark.parametrize("sampling", [Sampling(), QUICK], ids=["default", "quick"])
def test_a_steady_network_is_called_steady_however_slow(seconds: float, noise: float, sampling: Sampling) -> None:
    found = [warm(Clock(lambda n: seconds, noise, seed), sampling) for seed in range(8)]
    assert sum(each.steady for each in found) >= 7
    if seconds >= 0.3:
        assert {each.calls for each in found} == {sampling_rules.FEWEST_VALUES + 1}
    assert found[0].call_s == pytest.approx(seconds, rel=0.1)


DRIFTS: Mapping[str, Callable[[int], float]] = {
    "a cache that fills": lambda n: 1 + 0.3 / n,
    "a compiler at the fourth call": lambda n: 3.0 if n < 4 else 1.0,
    "a decay": lambda n: 1 + 2 * 0.6**n,
    "a slow decay": lambda n: 1 + 0.5 * 0.9**n,
    "slower with every call": lambda n: 1 + 0.02 * n,
}


@pytest.mark.parametrize("seconds", [0.3, 2.0])
@pytest.mark.parametrize("name", DRIFTS)
@pytest.mark.parametrize("sampling", [Sampling(), QUICK], ids=["default", "quick"])
def test_a_slow_network_that_drifts_is_told(name: str, seconds: float, sampling: Sampling) -> None:
    found = [warm(Clock(lambda n: seconds * DRIFTS[name](n), 0.001, seed), sampling) for seed in range(8)]
    assert sum(each.steady for each in found) <= 1


@pytest.mark.parametrize("seconds", [0.12, 0.2])
def test_where_ten_blocks_hardly_fit_a_drift_is_told_too(seconds: float) -> None:
    assert not warm(Clock(lambda n: seconds * DRIFTS["slower with every call"](n), 0.001)).steady
    assert not warm(Clock(lambda n: seconds * DRIFTS["a slow decay"](n), 0.001)).steady


def test_the_first_call_pays_for_more_than_the_network() -> None:
    assert warm(Clock(lambda n: 5.0 if n == 1 else 0.3, 0.001)).steady


def test_waiting_for_a_core_is_no_drift_of_the_network() -> None:
    slower = lambda n: 1.0 + 0.3 * n  # noqa: E731
    assert warm(Clock(slower, 0.0, waits=True)).steady and not warm(Clock(slower, 0.0)).steady


def test_fast_networks_are_judged_as_before() -> None:
    """Twenty blocks and more: only two windows of five that agree are steady."""
    found = warm(Clock(lambda n: 0.001 * (1 + 0.02 * (n % 2)) * (1.003**n), 0.0), Sampling(max_warmup_s=0.5))
    assert not found.steady
    assert block_loop.warm_up(Fake(noise=0.001), ScriptedCall(0.001), "cell", None, Sampling())[0].calls < 120


POWER = {
    ("step", 5): (35, 76, 96),
    ("step", 10): (94, 100, 100),
    ("drift", 5): (21, 60, 79),
    ("drift", 10): (65, 98, 100),
    ("drift", 20): (99, 100, 100),
    ("decay", 10): (21, 51, 67),
    ("decay", 20): (48, 79, 93),
    ("decay", 100): (99, 100, 100),
}
"""As the docstring of `is_steady_of_few` states it, for six, eight and ten values."""


@pytest.mark.parametrize(("kind", "size"), POWER)
def test_the_stated_power_is_true(kind: str, size: int) -> None:
    draw, scatter, tries = random.Random(11), 0.01, 400
    for values, stated in zip((6, 8, 10), POWER[kind, size], strict=True):
        first = (values + 2) // 3
        shape = {
            "step": lambda i, first=first: float(i < first),
            "drift": lambda i, values=values: 1 - i / (values - 1),
            "decay": lambda i: 0.5**i,
        }[kind]
        drawn = ([1 + size * scatter * shape(i) + draw.gauss(0, scatter) for i in range(values)] for _ in range(tries))
        found = 100 * sum(not sampling_rules.is_steady_of_few(times) for times in drawn) / tries
        assert found == pytest.approx(stated, abs=8), f"{values} values"


@pytest.mark.parametrize("scatter", [0.001, 0.01, 0.05])
def test_the_stated_rate_of_false_alarms_is_true(scatter: float) -> None:
    draw, tries = random.Random(7), 3000
    for values in range(sampling_rules.FEWEST_VALUES, sampling_rules.MOST_VALUES + 1):
        drawn = ([draw.gauss(1, scatter) for _ in range(values)] for _ in range(tries))
        assert sum(not sampling_rules.is_steady_of_few(times) for times in drawn) <= 0.017 * tries


def test_a_real_clock_takes_the_least_of_calls_and_no_more() -> None:
    end = 0.0

    def busy() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    sampling = Sampling(warmup_s=0.0, max_warmup_s=0.06)
    found, calls = block_loop.warm_up(Cpu(1, torch=False), busy, "cell", None, sampling)
    assert (found.calls, calls) == (sampling_rules.FEWEST_VALUES + 1, 1) and found.call_s >= 0.05 > end


# --- what slow calls are spared, and what is told of them --------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "cells", "calls"),
    [(0.01, 1, 2), (0.06, 1, 1), (0.06, 2, 2), (1.2, 2, 1)],
)
def test_a_long_block_needs_no_untimed_call(seconds: float, cells: int, calls: int) -> None:
    clock, sampling = Clock(lambda n: seconds), Sampling(min_rounds=3, max_rounds=3)
    names = [f"cell{number}" for number in range(cells)]
    blocks = dict.fromkeys(names, 1)
    ready = block_loop.cells_with_long_blocks(
        [Warmup(name, 7, 1.0, True, seconds) for name in names], blocks, alone=cells == 1
    )
    task = block_loop.LaunchTask(0, 0, 0, 1e9, {})
    found = list(
        block_loop.measure_rounds(
            clock, dict.fromkeys(names, ScriptedCall(1.0)), blocks, sampling, task, long_blocks=ready
        )
    )
    assert sum(isinstance(item, Block) for item in found) == 3 * cells
    assert clock.made == 3 * cells * calls


def test_slow_calls_are_signs_of_life() -> None:
    """A warm-up of minutes once said nothing, and was taken for hung."""
    seconds = {"a": 0.002, "b": 60.0}
    task = job()
    for spec in task["cells"]:
        spec["cost"] = {"madds": seconds[spec["id"]] * PEAK_MADDS, "memory_access_bytes": 0}
    told = [fields for kind, fields in events_of(task) if kind == "call"]
    assert [each["cell"] for each in told] == ["a"] * block_loop.MIN_WARMUP_CALLS + ["b"] * (
        sampling_rules.FEWEST_VALUES + 1
    )
    assert told[-1]["seconds"] == pytest.approx(60.0, rel=0.02)


# --- budgets ----------------------------------------------------------------------------------------


def slow_cost(seconds: Mapping[str, float]) -> Callable[[Cell], Cost]:
    return lambda cell: replace(cost_of(cell), madds=round(seconds[cell.id] * PEAK_MADDS))


@pytest.mark.parametrize(
    ("seconds", "budget_s", "notes"),
    [((2.0, 0.001, 0.001), 10.0, 1), ((2.0, 0.001, 0.001), 300.0, 0), ((0.001, 0.002, 0.003), 0.01, 0)],
)
def test_what_a_run_takes_is_said_as_soon_as_it_is_known(
    tmp_path: Path, seconds: tuple[float, ...], budget_s: float, notes: int
) -> None:
    told: list[runner.Progress] = []
    planned = plan.make(study(), device="fake", sampling={"launches": 5, "budget_s": budget_s})
    with in_process(tmp_path / "run"):
        cost = slow_cost(dict(zip(CELLS, seconds, strict=True)))
        run = runner.execute(planned, tmp_path / "run", profile=cost, watch=told.append)
    said = [step.note for step in told if step.note]
    assert len(said) == notes
    used = launch_history.total_used_s(run)
    remarks = " ".join(launch_history.remarks(run))
    assert ("used" in remarks) == bool(notes) == bool(launch_history.overrun(run))
    if notes:
        assert [step.note for step in told].index(said[0]) < 30, "before the first launch is over"
        assert said[0].startswith(
            f"{CELLS[0]} takes 2 s a call; at that pace the whole measurement takes 100 s or more, beyond"
        )
        least = least_duration.warmup_s(2.0, run.sampling) + least_duration.rounds_s(2.0, run.sampling, 3)
        assert 5 * least == pytest.approx(100.0) and 100 < used < 106
        shown = json_document.run_document(run, summarise(run), ())
        assert shown["used_s"] == pytest.approx(used, abs=1e-3) and "of a budget of 10 s" in shown["remarks"][1]
    assert all(len(result.blocks) >= 15 for result in run.results), "the least is measured whatever the budget"


def test_many_quick_networks_overrun_a_budget_before_their_calls_show_it() -> None:
    ahead = least_duration.Forecast(Sampling(launches=1), 10.0, cells=30, launches_left=1)
    events = [{"event": "call", "cell": "a", "seconds": 1e-4, "at_s": 3.0}] * 2
    events += [{"event": "prepared", "at_s": at_s} for at_s in (14.0, 16.0, 17.0)]
    said = [ahead.handle_event(event) for event in events]
    assert [bool(line) for line in said] == [False, False, False, True, False]
    assert said[3].startswith("preparing has taken 16 s and reached 1 of 30 cells, beyond the budget of 10 s; ")
    ahead = least_duration.Forecast(Sampling(launches=1), 10.0, cells=30, launches_left=1)
    assert not any(map(ahead.handle_event, ({"event": "null", "at_s": 3.0}, {"event": "block", "at_s": 40.0}))), (
        "in the rounds"
    )
    ahead = least_duration.Forecast(Sampling(launches=1), 10.0, cells=30, launches_left=1, used_s=11.0)
    assert not ahead.handle_event({"event": "ready", "at_s": 9.0}), (
        "no time was left at its start, which is said in other words"
    )


def test_a_forecast_names_what_takes_long_before_the_first_call() -> None:
    ahead = least_duration.Forecast(Sampling(launches=2), 10.0, cells=1, launches_left=2)
    lines = [ahead.handle_event({"event": "call", "cell": "a", "seconds": 1e-3, "at_s": 60.0}) for _ in range(2)]
    assert "everything before the first call takes 60 s; so the whole measurement takes" in "".join(lines)


def test_an_export_of_the_first_launch_takes_no_rounds_from_the_others() -> None:
    """Two launches of a gate: the first exports for 55 s of its 60 s, the second starts in 2 s."""
    sampling = Sampling(launches=2, max_rounds=500)
    ahead = least_duration.Forecast(sampling, 120.0, cells=1, launches_left=2, sides=2, min_rounds=4)
    for at_s in (55.1, 55.2):
        ahead.handle_event({"event": "call", "cell": "a", "seconds": 0.1, "at_s": at_s})
    first = ahead.rounds(500)
    ahead.begin_launch()
    for at_s in (2.1, 40.0):
        ahead.note_first_call({"event": "call", "cell": "a", "seconds": 0.1, "at_s": at_s})
    later = ahead.rounds(500)
    round_s = 2 * least_duration.rounds_s(0.1, sampling, 1)
    assert later - first == pytest.approx((55.0 - 2.0) / round_s, abs=1.5) and 4 <= first < later < 500


def test_a_forecast_that_doubles_is_said_again() -> None:
    calls = [("a", 2.0), ("a", 2.0), ("b", 1.0), ("b", 1.0), ("c", 9.0), ("c", 3.0)]
    ahead = least_duration.Forecast(Sampling(launches=2), 10.0, cells=3, launches_left=2)
    said = [ahead.handle_event({"event": "call", "cell": cell, "seconds": spent, "at_s": 2.0}) for cell, spent in calls]
    assert [bool(line) for line in said] == [False, True, False, False, False, True]
    alone = least_duration.Forecast(Sampling(launches=1), 10.0, cells=1, launches_left=1)
    line = alone.handle_event({"event": "call", "cell": "a", "seconds": 400.0, "at_s": 401.0})
    assert "takes 400 s a call" in line and "fewer launches" not in line, "one call beyond the budget is enough"


BIG = """
import torch
from torch import nn

def big():
    return nn.Sequential(*[nn.Conv2d(512, 512, 3, padding=1, bias=False) for _ in range({layers})])
"""
"""A layer of 64 × 64 takes 0.0193 s on the scripted clock."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = repository(tmp_path_factory.mktemp("user") / "slow")
    (folder / "nets.py").write_text(BIG.format(layers=10))
    (folder / "effbench.toml").write_text('[models.big]\nmodel = "nets.py:big"\ninput = "512x64x64"\n')
    commit(folder, "slow")
    return folder


def test_a_slow_network_passes_the_gate_and_fails_it(project: Path) -> None:
    """0.19 s a call was INCONCLUSIVE, "no steady state", however well its ratio was known."""
    done = effbench("check", "--against", "HEAD", "--device", "fake", "--json", cwd=project)
    assert done.code == 0 and done.json["cells"][0]["verdict"] == "PASS", done.out + done.err
    found = ab_pairs.load(project / done.json["run_dir"])
    assert len(ab_pairs.rounds(found, found.cells[0])) == 80, "twenty rounds in each of four launches"
    (project / "nets.py").write_text(BIG.format(layers=11))
    words = ("--against", "HEAD", "--device", "fake", "--budget", "20s", "--json")
    slower = effbench("check", *words, cwd=project)
    assert slower.code == 1 and slower.json["cells"][0]["ratio"]["point"] == pytest.approx(1.1, abs=0.02)
    assert any(note.startswith("8 rounds a launch instead of 20") for note in slower.json["notes"])
    assert "beyond the budget of 20 s" in slower.err


# --- limits that are shares -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall_s", "steal_s", "flags"),
    [(2.0, 0.01, ()), (0.005, 0.01, ("steal",)), (0.19, 0.01, ("steal",)), (2.0, 0.1, ()), (2.0, 0.11, ("steal",))],
)
def test_steal_is_a_share_of_the_block(wall_s: float, steal_s: float, flags: tuple[str, ...]) -> None:
    assert cpu.disturbances(round(wall_s * 1e9), 0, round(steal_s * 1e9)) == flags


@pytest.mark.parametrize(
    ("blocks", "disturbed", "is_contaminated"),
    [(3, 1, False), (3, 2, True), (1, 1, True), (2, 1, False), (9, 1, False), (15, 2, True), (30, 3, False)],
)
def test_one_disturbed_block_of_few_is_set_aside(blocks: int, disturbed: int, is_contaminated: bool) -> None:
    run = run_of(dict(zip(CELLS, (2.0, 2.0, 2.0), strict=True)), launches=1, rounds=blocks)
    count = iter(range(blocks))
    bad = with_blocks(run, CELLS[1], lambda t: replace(t, flags=("steal",) if next(count) < disturbed else ()))
    cell = summarise(bad)[1]
    assert (cell.flags == ("contaminated",)) == is_contaminated
    assert cell.set_aside == (0 if is_contaminated else disturbed)


def test_page_faults_are_a_share_of_the_call() -> None:
    run = run_of(dict(zip(CELLS, (2.0, 0.001, 0.001), strict=True)))
    for cell in CELLS[:2]:
        run = with_blocks(run, cell, lambda timing: replace(timing, minor_faults=4))  # one a call
    found = summarise(run)
    assert found[0].notes == () and found[1].notes == ("1 page faults a call",)
