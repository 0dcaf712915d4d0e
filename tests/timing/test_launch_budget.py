"""The budget of each launch: independent of interruptions, and never more than what is left."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import study
from scripted_runs import Killed, cost_of, in_process

from effbench.core.errors import StorageError
from effbench.core.run import Run
from effbench.core.study import Sampling
from effbench.devices.fake import Fake
from effbench.runs import launch_history, run_file, runner
from effbench.studies import plan
from effbench.timing.launch_budget import Stopwatch, rounds_s, with_settling
from effbench.timing.sampling import MIN_ROUNDS_ON_BUDGET

SAMPLING = {"launches": 4, "min_rounds": 4, "max_rounds": 100_000, "precision": 1e-9, "max_warmup_s": 0.1}
ROUND_S = 0.07
"""A round on the scripted clock takes less: three blocks of 5 ms or a little more, and a call before each."""


def begin(folder: Path, **sampling: Any) -> Run:
    planned = plan.make(study(), device="fake", sampling={**SAMPLING, **sampling})
    return runner.execute(planned, folder, profile=cost_of)


def carry_out(folder: Path, ends: Sequence[tuple[int, str]], **sampling: Any) -> list[dict[str, Any]]:
    """A run that is interrupted and resumed until it is complete. Checks every slice; returns the records."""
    with in_process(folder) as stand_in:
        stand_in.ends = list(ends)
        started = False
        while True:
            asked = len(stand_in.jobs)
            try:
                (runner.resume(folder) if started else begin(folder, **sampling))
                return records(folder)
            except runner.Interrupted:
                pass
            except Killed as killed:
                if killed.size:
                    os.truncate(folder / run_file.RUN_FILE, killed.size)
            finally:
                # Before its first block a run has no file yet, and is begun anew.
                started = (folder / run_file.RUN_FILE).exists()
                if started:
                    check_slices(records(folder), stand_in.jobs[asked:])


def check_slices(seen: list[dict[str, Any]], jobs: Sequence[dict[str, Any]]) -> None:
    """Each job's slice against what the file said of the launches before it, added up here."""
    budget, planned = seen[0]["sampling"]["budget_s"], seen[0]["sampling"]["launches"]
    for job in jobs:
        used: dict[int, float] = defaultdict(float)
        slots = by_launch(seen, "launch", "slot")
        for record in seen:
            if record.get("launch", job["launch"]) < job["launch"] and "at_s" in record:
                used[record["launch"]] = max(used[record["launch"]], record["at_s"])
        own = sum(spent for launch, spent in used.items() if slots[launch] == slots.get(job["launch"], planned))
        if job["launch"] in slots:
            assert job["budget_s"] == pytest.approx(max(0.0, budget / planned - own), abs=1e-6)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run_file.RUN_FILE).read_text().splitlines()]


def by_launch(seen: list[dict[str, Any]], kind: str, name: str) -> dict[int, Any]:
    return {record["launch"]: record[name] for record in seen if record["kind"] == kind}


# --- whole runs --------------------------------------------------------------------------------------


def test_launches_of_one_run_share_its_budget(tmp_path: Path) -> None:
    seen = carry_out(tmp_path / "run", [], budget_s=8.0)
    took = by_launch(seen, "end", "seconds")
    assert set(by_launch(seen, "end", "stopped").values()) == {"budget"}
    assert max(took.values()) - min(took.values()) < 2 * ROUND_S
    total = sum(by_launch(seen, "exit", "at_s").values())
    assert total == pytest.approx(8.0, abs=2 * ROUND_S)


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_a_run_resumed_after_every_launch_takes_what_one_in_one_go_takes(tmp_path: Path, how: str) -> None:
    """Five launches of a budget of 100 s once took 20, 25, 33, 50 and 100 s."""
    whole = carry_out(tmp_path / "whole", [], launches=5, budget_s=10.0)
    parts = carry_out(tmp_path / "parts", [(-3, how)] * 4, launches=5, budget_s=10.0)
    assert len(by_launch(parts, "launch", "slot")) == 5 and len(by_launch(parts, "end", "at_s")) == 5
    for seen in (whole, parts):
        used, took = by_launch(seen, "end", "at_s").values(), by_launch(seen, "end", "seconds").values()
        assert list(used) == pytest.approx([2.0] * 5, abs=2 * ROUND_S)
        assert list(took) == pytest.approx([sum(took) / 5] * 5, abs=2 * ROUND_S)


@given(
    budget_s=st.floats(0.2, 6.0),
    planned=st.integers(1, 5),
    ends=st.lists(st.tuples(st.integers(1, 260), st.sampled_from(["ctrl-c", "kill"])), max_size=8),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_no_pattern_of_interruptions_measures_beyond_the_budget(
    budget_s: float, planned: int, ends: list[tuple[int, str]]
) -> None:
    with tempfile.TemporaryDirectory() as home:
        seen = carry_out(Path(home) / "run", ends, budget_s=budget_s, launches=planned)
    slots = by_launch(seen, "launch", "slot")
    begun, last = by_launch(seen, "null", "at_s"), {}
    for record in seen:
        if "launch" in record and "at_s" in record:
            last[record["launch"]] = max(last.get(record["launch"], 0.0), record["at_s"])
    rounds = sum(last[launch] - at for launch, at in begun.items())
    assert rounds <= budget_s + len(slots) * MIN_ROUNDS_ON_BUDGET * ROUND_S
    ended = by_launch(seen, "end", "stopped")
    assert sorted(slots[launch] for launch in ended) == list(range(planned)), "every slot ends once"
    counted = Counter((r["launch"], r["cell"]) for r in seen if r["kind"] == "block")
    for launch in ended:
        assert min(counted[launch, cell] for cell in {cell for _, cell in counted}) >= MIN_ROUNDS_ON_BUDGET


def test_a_budget_that_is_used_up_leaves_the_least_of_rounds_and_says_so(tmp_path: Path) -> None:
    seen = carry_out(tmp_path / "run", [], budget_s=0.01)
    assert set(by_launch(seen, "null", "budget_s").values()) == {0.0}
    counted = Counter(record["launch"] for record in seen if record["kind"] == "block")
    assert set(counted.values()) == {3 * MIN_ROUNDS_ON_BUDGET} and len(counted) == 4
    said = launch_history.remarks(run_file.load(tmp_path / "run"))
    assert said == ("The budget of 0.01 s left no time for more than the least (3 rounds) in launches 1, 2, 3 and 4.",)


def test_a_resumed_run_without_time_left_says_so_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with in_process(folder) as stand_in:
        stand_in.ends = [(200, "ctrl-c")]
        with pytest.raises(runner.Interrupted):
            begin(folder, budget_s=6.0, launches=2)
        lines = (folder / run_file.RUN_FILE).read_text().splitlines()
        # As if the first launch had hung for a minute before it was interrupted.
        last = json.loads(lines[-1])
        assert last["kind"] == "exit"
        lines[-1] = json.dumps({**last, "at_s": 66.0})
        (folder / run_file.RUN_FILE).write_text("\n".join(lines) + "\n")
        told: list[str] = []
        runner.resume(folder, watch=lambda step: told.append(step.doing))
    assert sum("no time is left of the budget" in line for line in told) == 1
    given_s = by_launch(records(folder), "null", "budget_s")
    assert given_s[1] == 0 and given_s[2] > 2, "it takes nothing from the other slot"


def test_rounds_as_a_budget_are_not_touched_by_time(tmp_path: Path) -> None:
    """A launch that goes on measures in full, as a fresh process must, and no time ends it."""
    sampling = {"budget_s": 1e9, "min_rounds": 7, "max_rounds": 7, "launches": 2}
    seen = carry_out(tmp_path / "run", [(30, "kill"), (34, "ctrl-c")], **sampling)
    assert list(by_launch(seen, "end", "stopped").values()) == ["rounds", "rounds"]
    counted = Counter(record["launch"] for record in seen if record["kind"] == "block")
    assert [counted[launch] for launch in by_launch(seen, "end", "stopped")] == [21, 21]


def test_an_interruption_during_warm_up_is_paid_for(tmp_path: Path) -> None:
    """Launches that never reached a round used time all the same, and the slot is measured once."""
    seen = carry_out(tmp_path / "run", [(15, "kill")] * 3, budget_s=2.0, launches=2)
    nulls, slots = by_launch(seen, "null", "budget_s"), by_launch(seen, "launch", "slot")
    assert list(slots.values()) == [0, 0, 0, 0, 1] and sorted(nulls) == [3, 4]
    lost = sum(max(r["at_s"] for r in seen if r.get("launch") == launch and "at_s" in r) for launch in range(3))
    assert lost > 0.25
    overhead = by_launch(seen, "null", "at_s")[3]
    assert nulls[3] == pytest.approx(1.0 - lost - overhead, abs=0.01)
    assert nulls[4] == pytest.approx(1.0 - by_launch(seen, "null", "at_s")[4], abs=0.01), "which costs no other slot"


def test_an_older_run_is_charged_what_its_blocks_and_warm_ups_took(tmp_path: Path) -> None:
    """Up to schema 2 no record said when it was."""
    new = ("at_s", "start", "conditions", "budget_s")
    seen = carry_out(tmp_path / "run", [], budget_s=4.0)
    ends = [number for number, record in enumerate(seen) if record["kind"] == "end"]
    old = []
    for record in seen[: ends[1] + 1]:
        if record["kind"] != "exit":
            kept = {key: value for key, value in record.items() if key not in new}
            old.append(kept | ({"schema": 2} if record["kind"] == "header" else {}))
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / run_file.RUN_FILE).write_text("".join(json.dumps(record) + "\n" for record in old))
    warm = sum(record["seconds"] for record in old if record["kind"] == "warmup")
    used = warm + sum(record["seconds"] for record in old if record["kind"] == "end")
    assert launch_history.total_used_s(run_file.load(folder)) == pytest.approx(used)
    with in_process(folder) as stand_in:
        run = runner.resume(folder)
        assert [job["budget_s"] for job in stand_in.jobs] == [1.0, 1.0]
    assert run.complete and [launch.used_s is None for launch in run.launches] == [True, True, False, False]


def test_two_resumes_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with in_process(folder) as stand_in:
        stand_in.ends = [(40, "kill")]
        with pytest.raises(Killed):
            begin(folder, budget_s=2.0)
        with run_file.RunWriter(folder, resume=True):
            before = (folder / run_file.RUN_FILE).read_bytes()
            with pytest.raises(StorageError, match=r"another run is writing to .*; wait until it has ended"):
                runner.resume(folder)
        assert (folder / run_file.RUN_FILE).read_bytes() == before
        assert runner.resume(folder).complete


# --- one share ---------------------------------------------------------------------------------------


@given(slice_s=st.floats(0, 200), usual_s=st.floats(0, 20), once_s=st.floats(0, 100), after_s=st.floats(0, 5))
def test_only_its_own_overhead_shortens_a_launch(slice_s: float, usual_s: float, once_s: float, after_s: float) -> None:
    """The first launch exports for `once_s`; each spends `usual_s` before and `after_s` after its rounds."""
    first = rounds_s(slice_s, overhead_s=usual_s + once_s, after_s=after_s)
    later = rounds_s(slice_s, overhead_s=usual_s, after_s=after_s)
    assert 0 <= first <= later <= slice_s
    assert later == max(0.0, slice_s - usual_s - after_s)


def test_an_export_takes_no_rounds_from_later_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ninety seconds of compilation once left no launch of a budget of 90 s any time."""
    really = Fake.setup

    def exporting(self: Fake) -> None:
        really(self)
        self.sleep(50.0 if not (tmp_path / "exported").exists() else 1.0)
        (tmp_path / "exported").touch()

    monkeypatch.setattr(Fake, "setup", exporting)
    seen = carry_out(tmp_path / "run", [], budget_s=20.0)
    given_s, overhead_s = by_launch(seen, "null", "budget_s"), by_launch(seen, "null", "at_s")
    assert given_s[0] == 0 and overhead_s[0] > 50
    assert [given_s[n] for n in (1, 2, 3)] == pytest.approx([5.0 - overhead_s[n] for n in (1, 2, 3)], abs=0.01)
    assert min(given_s[n] for n in (1, 2, 3)) > 3


@pytest.mark.parametrize(
    ("settle_s", "slice_s", "cells", "limit_s"),
    [(0.0, 100.0, 1, 1.5), (3.5, 100.0, 2, 5.0), (3.5, 24.0, 2, 3.0), (3.5, 24.0, 40, 1.5), (3.5, 0.0, 1, 1.5)],
)
def test_a_longer_warm_up_stays_within_its_part_of_the_budget(
    settle_s: float, slice_s: float, cells: int, limit_s: float
) -> None:
    sampling = with_settling(Sampling(), settle_s, slice_s, cells)
    assert sampling.max_warmup_s == limit_s and sampling.warmup_s == Sampling().warmup_s


def test_the_start_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's clock is the worker's; a scripted clock has no start to pay for. A clock set back costs nothing."""
    from effbench.devices.cpu import Cpu
    from effbench.timing import launch_budget

    monkeypatch.setattr(launch_budget.time, "monotonic", lambda: 107.0)
    now = iter([50.0, 50.0, 53.0, 40.0])
    device = Cpu()
    monkeypatch.setattr(device, "now_s", lambda: next(now))
    watch = Stopwatch({"budget_s": 1.0, "begun_s": 100.0, "cells": []}, device)
    assert [watch.at_s() for _ in range(3)] == [7.0, 10.0, 7.0]
    assert Stopwatch({"budget_s": 1.0, "begun_s": 100.0, "cells": []}, Fake()).at_s() == 0.0
