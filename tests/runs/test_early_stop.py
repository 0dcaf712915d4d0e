"""Runs that end once they are decided, on the scripted clock: when, with which record, after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import CELLS, run_of, study
from scripted_runs import cost_of

from effbench.analysis import decision
from effbench.analysis.summary import summarise
from effbench.core.run import Run, Stop
from effbench.core.sittings import BetweenSittings, Scatter
from effbench.core.study import Sampling
from effbench.report.json_document import run_decision_document
from effbench.runs import early_stop, run_file, runner
from effbench.studies import plan

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("forked_launches")]

SAMPLING = {"min_rounds": 4, "max_rounds": 6, "warmup_s": 0.0, "max_warmup_s": 0.2}


def execute(directory: Path, watch: Any = lambda step: None, **options: Any) -> Run:
    """A comparison: the study without its claims, which needs no fifth launch."""
    options = {"until": "faster", **options}
    planned = plan.make(replace(study(), claims=()), device="fake", sampling=SAMPLING, **options)
    return runner.execute(planned, directory, profile=cost_of, watch=watch)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / run_file.RUN_FILE).read_text().splitlines()]


def test_a_comparison_ends_at_the_first_look_that_decides(tmp_path: Path) -> None:
    seen: list[runner.Progress] = []
    run = execute(tmp_path / "run", seen.append)
    assert len(run.launches) == 3 and run.complete and run.stop == Stop("decided", 3)
    assert run.sampling.launches == 13 and run.sampling.until == "faster"
    assert {launch.budget_s for launch in run.launches} == {1.0}, "no launch has more time for rounds"
    assert [record["kind"] for record in records(tmp_path / "run")][-2:] == ["stop", "complete"]
    told = run_decision_document(run)
    assert told is not None and told["decided"] and told["stopped"] == "decided" and told["after_launches"] == 3
    assert [item["verdict"] for item in told["answers"]] == ["slower", "slower"]
    assert any(step.doing.startswith("launch 3 (until decided, at most 13): ") for step in seen)


def test_a_stored_run_says_the_same_again_and_measures_nothing(tmp_path: Path) -> None:
    run = execute(tmp_path / "run")
    before = (tmp_path / "run" / run_file.RUN_FILE).read_bytes()
    again = runner.resume(tmp_path / "run")
    assert (tmp_path / "run" / run_file.RUN_FILE).read_bytes() == before
    assert again == run and summarise(again) == summarise(run) and decision.decide(again) == decision.decide(run)


def test_an_interrupted_run_goes_on_with_the_same_looks(tmp_path: Path) -> None:
    """Cut in the second launch, and right before and after the record of the stop."""
    whole = execute(tmp_path / "whole")
    lines = (tmp_path / "whole" / run_file.RUN_FILE).read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in lines]
    second = [place for place, kind in enumerate(kinds) if kind == "launch"][1]
    for name, length in (("second", second + 4), ("before", len(lines) - 2), ("after", len(lines) - 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / run_file.RUN_FILE).write_bytes(b"".join(lines[:length]))
        run = runner.resume(folder)
        assert run.complete and run.stop == whole.stop == Stop("decided", 3), name
        assert decision.finished_launches(run) == 3
        assert [record["kind"] for record in records(folder)].count("stop") == 1


def test_the_budget_ends_a_run_that_is_undecided(tmp_path: Path) -> None:
    run = execute(tmp_path / "run", until="precision", precision=1e-9, budget_s=1e-3)
    assert run.stop == Stop("budget", 3) and len(run.launches) == 3 and run.complete
    told = run_decision_document(run)
    assert told is not None and not told["decided"] and told["stopped"] == "budget"


def test_a_run_that_never_decides_has_all_its_launches_and_no_record(tmp_path: Path) -> None:
    run = execute(tmp_path / "run", until="precision", precision=1e-9, launches=5)
    assert len(run.launches) == 5 and run.stop is None and run.complete
    told = run_decision_document(run)
    assert told is not None and told["stopped"] == "launches" and told["looks"] == [3, 4, 5]


def test_the_run_file_is_read_again_at_looks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def load(path: Path) -> Run:
        run = run_file.load(path)
        read.append(len(run.launches))
        return run

    monkeypatch.setattr(early_stop, "run_file", SimpleNamespace(load=load))
    run = execute(tmp_path / "run", until="precision", precision=1e-9, launches=8)
    assert len(run.launches) == 8 and read == [3, 4, 6]


def test_a_recorded_stop_holds_where_the_run_would_now_go_on(tmp_path: Path) -> None:
    """Such as one whose budget is counted anew."""
    folder = tmp_path / "run"
    execute(folder, until="precision", precision=1e-9, budget_s=1e-3)
    first, *rest = records(folder)
    first["sampling"]["budget_s"] = 1e6
    lines = (json.dumps(record) + "\n" for record in (first, *rest[:-1]))
    (folder / run_file.RUN_FILE).write_text("".join(lines))
    run = runner.resume(folder)
    assert run.complete and run.stop == Stop("budget", 3) and len(run.launches) == 3


def test_a_fixed_run_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stop, "find_stop", lambda *_: pytest.fail("it was judged"))
    run = execute(tmp_path / "run", until="launches", launches=4)
    assert len(run.launches) == 4 and run.stop is None and run_decision_document(run) is None


# --- the rule itself ---------------------------------------------------------------------------------------


def found(
    launches: int, used_s: float = 1.0, noise: float = 0.001, between: BetweenSittings | None = None
) -> Stop | None:
    times = dict(zip(CELLS, (0.001, 0.0012, 0.001), strict=True))
    run = run_of(times, launches=launches, experiment=replace(study(), claims=()), launch_noise=noise)
    run = replace(run, sampling=Sampling(launches=13, until="faster", budget_s=60.0), between_sittings=between)
    return early_stop.find_stop(run, launches, used_s)


def test_between_two_looks_nothing_is_decided() -> None:
    assert [found(number) for number in (3, 4, 5, 6, 7)] == [
        Stop("decided", 3),
        Stop("decided", 4),
        None,
        Stop("decided", 6),
        None,
    ]
    assert found(5, used_s=59.0) == Stop("decided", 5), "the budget is used up: judged in place of the next look"
    assert found(5, used_s=59.0, noise=0.3) == Stop("budget", 5)
    assert found(4, noise=0.3) is None


def test_what_cannot_be_decided_ends_after_the_second_look() -> None:
    differ = BetweenSittings(Scatter(0.3, 9.0), Scatter(0.3, 9.0))
    assert found(3, noise=0.3, between=differ) is None and found(4, noise=0.3, between=differ) == Stop("futile", 4)


def test_the_first_launches_share_the_budget() -> None:
    sampling = Sampling(launches=13, until="faster")
    assert [early_stop.launches_left(sampling, number) for number in (0, 2, 3, 12)] == [3, 1, 1, 1]
    assert [early_stop.launches_left(Sampling(launches=5), number) for number in (0, 4)] == [5, 1]
