"""The commands that measure: runs carried out launch by launch, and how they end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer
from runs import run_of
from schemas import validate
from shell import effbench, refusal, study_file

from effbench.cli import measure, output
from effbench.results import Results


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    study_file(folder)
    return folder


def test_now_carries_out_a_launch_and_exits_with_5_until_the_run_is_complete(home: Path) -> None:
    words = ("run", "tiny.py", "--device", "fake", "--launches", "3", "--spread", "2h", "--out", "run", "--now", "1")
    begun = effbench(*words, cwd=home)
    told = "1 of 3 launches done; go on with: effbench run --resume run"
    assert begun.code == 5 and begun.err.splitlines()[-1] == f"effbench: {told}" and told in begun.out
    more = effbench("run", "--resume", "run", "--now", "1", "--json", cwd=home)
    validate(more.json, "run")
    assert more.code == 5 and not more.json["complete"] and more.json["sampling"]["spread_s"] == 7200
    assert (more.json["launches_done"], more.json["launches_planned"]) == (2, 3) and more.json["next_launch_at"]
    assert told.replace("1 of", "2 of") in more.err
    last = effbench("run", "--resume", "run", "--now", "5", "--json", cwd=home)
    assert last.code == 0 and last.json["complete"] and last.json["next_launch_at"] is None
    stored = (home / "run" / "run.jsonl").read_bytes()
    again = effbench("run", "--resume", "run", "--now", "1", cwd=home)
    assert again.code == 0 and again.out and (home / "run" / "run.jsonl").read_bytes() == stored


def test_a_spread_run_says_when_the_next_launch_begins(home: Path) -> None:
    done = effbench("run", "tiny.py", "--device", "fake", "--launches", "2", "--spread", "1.5h", cwd=home)
    assert done.code == 0 and done.err.startswith("effbench: launch 2/2 begins at ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run tiny.py --device fake --now 0", "--now 0: expected the number of launches to carry out now, 1 or more"),
        ("run --resume run --now -2", "--now -2: expected"),
        ("compare lenet5 nin_cifar --device fake --now 0", "--now 0: expected"),
        ("run tiny.py --device fake --spread soon", "--spread soon: expected a time above zero"),
        (
            "run tiny.py --device fake --spread 999999999h",
            "spread (=3599999996400.0) must be a number of seconds, from",
        ),
        ("run --resume run --spread 2h", "--resume goes on with the options of the stored run; leave out spread"),
    ],
)
def test_a_number_of_launches_or_a_time_that_is_none_is_one_line(words: str, said: str, home: Path) -> None:
    assert said in refusal(effbench(*words.split(), cwd=home))


@pytest.mark.parametrize(("reason", "code"), [("", 5), ("stopped after launch 2 of 5: others disturbed it", 4)])
def test_the_exit_code_follows_the_recorded_reason(reason: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of({})
    run = dataclasses.replace(
        run, complete=False, disturbance=reason, path="somewhere/run.jsonl", launches=run.launches[:2]
    )
    with pytest.raises(typer.Exit) as ended:
        measure._exit_unless_complete(Results(run), None)
    assert ended.value.exit_code == code
    told = capsys.readouterr().err
    assert reason in told and told.endswith("2 of 5 launches done; go on with: effbench run --resume somewhere\n")
    measure._exit_unless_complete(Results(dataclasses.replace(run, complete=True)), None)


@pytest.mark.parametrize("is_complete", [True, False])
def test_ctrl_c_while_figures_are_drawn_says_what_the_run_is(
    is_complete: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To resume a run with launches left would measure them all."""

    def interrupted(self: Results) -> None:
        raise KeyboardInterrupt

    run = run_of({})
    run = dataclasses.replace(run, complete=is_complete, path=f"{tmp_path}/run.jsonl", launches=run.launches[:2])
    monkeypatch.setattr(Results, "write", interrupted)
    monkeypatch.setattr(measure, "_show", lambda *_: None)
    monkeypatch.setattr(output, "ignore_signals", lambda: None)
    with pytest.raises(typer.Exit) as ended:
        measure.finish(lambda watch: Results(run), as_json=False)
    assert ended.value.exit_code == 130
    stands = "the run is complete, this shows it:" if is_complete else "2 of 5 launches done; go on with:"
    assert capsys.readouterr().err == f"effbench: interrupted; {stands} effbench run --resume {tmp_path}\n"
