"""Runs that are spread over time, carried out launch by launch, or stopped because others disturb them."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import run_of, study
from scripted_runs import cost_of, in_process

from effbench.core.errors import InvalidValue
from effbench.core.inputs import Input
from effbench.core.run import Launch, Result, Run, Stop, Timing
from effbench.core.study import Cell, Sampling
from effbench.devices.fake import Fake
from effbench.report import text
from effbench.runs import run_file, runner, schedule
from effbench.runs.progress import Progress
from effbench.runs.schedule import Schedule, Timer
from effbench.studies import plan

SAMPLING = {"launches": 5, "min_rounds": 3, "max_rounds": 3, "warmup_s": 0.0, "max_warmup_s": 0.05}
HOUR = 3600.0


class Clock:
    """A timer that only counts."""

    def __init__(self, now: float | None = None) -> None:
        self.time = time.time() if now is None else now
        self.sleeps: list[float] = []

    @property
    def timer(self) -> Timer:
        return Timer(lambda: self.time, self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps.append(seconds)
        self.time += seconds


def execute(folder: Path, *, sampling: dict[str, Any] | None = None, **options: Any) -> Run:
    planned = plan.make(study(), device="fake", sampling={**SAMPLING, **(sampling or {})})
    with in_process(folder):
        return runner.execute(planned, folder, profile=cost_of, **options)


def resume(folder: Path, **options: Any) -> Run:
    with in_process(folder):
        return runner.resume(folder, **options)


def slots(run: Run) -> list[int]:
    return [launch.slot for launch in run.launches]


# --- spread -------------------------------------------------------------------------------------------


def test_launches_begin_at_equal_distances_and_each_is_announced_once(tmp_path: Path) -> None:
    clock, begun, told = Clock(), [], list[Progress]()

    def watch(step: Progress) -> None:
        told.append(step)
        if re.fullmatch(r"launch \d/5: warming up", step.doing) and (not begun or clock.time != begun[-1]):
            begun.append(clock.time)

    run = execute(tmp_path / "run", sampling={"spread_s": 2 * HOUR}, watch=watch, timer=clock.timer)
    assert run.complete and run.sampling.spread_s == 2 * HOUR
    assert [at - begun[0] for at in begun] == pytest.approx([n * HOUR / 2 for n in range(5)])
    notes = [step.note for step in told if step.note]
    assert [note[:19] for note in notes] == [f"launch {n}/5 begins at"[:19] for n in (2, 3, 4, 5)]
    assert all(re.fullmatch(r"launch \d/5 begins at (\d{4}-\d\d-\d\d )?\d\d:\d\d", note) for note in notes)
    assert [step.done for step in told] == sorted(step.done for step in told)


def test_one_launch_or_no_spread_waits_for_nothing(tmp_path: Path) -> None:
    clock = Clock()
    execute(tmp_path / "one", sampling={"launches": 1, "spread_s": HOUR}, timer=clock.timer)
    execute(tmp_path / "none", timer=clock.timer)
    assert clock.sleeps == []


def test_a_resumed_run_waits_for_what_is_left_and_not_for_times_that_have_passed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(folder, sampling={"spread_s": 4 * HOUR}, launches_now=1)
    begun = schedule.begun_s(run_file.load(folder))
    assert begun is not None
    clock = Clock(begun + 2.25 * HOUR)  # the second and third launch are late
    run = resume(folder, timer=clock.timer)
    assert run.complete and sum(clock.sleeps) == pytest.approx(1.75 * HOUR)
    assert clock.time == pytest.approx(begun + 4 * HOUR)


def test_ctrl_c_during_the_wait_says_how_to_go_on(tmp_path: Path) -> None:
    folder, clock = tmp_path / "run", Clock()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    timer = replace(clock.timer, sleep=interrupted)
    with pytest.raises(runner.Interrupted, match=r"interrupted; .*effbench\.resume"):
        execute(folder, sampling={"spread_s": HOUR}, timer=timer)
    stored = run_file.load(folder)
    assert slots(stored) == [0] and stored.launches[0].stopped == "rounds" and not stored.complete
    assert resume(folder).complete


def test_on_the_scripted_clock_waiting_takes_no_time(tmp_path: Path) -> None:
    assert execute(tmp_path / "run", sampling={"spread_s": 1000 * HOUR}).complete


@pytest.mark.parametrize("spread", [-1.0, float("inf"), float("nan"), True, "2h", 4e7, 10**400])
def test_a_spread_that_is_no_time_is_refused(spread: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^spread \(="):
        plan.make(study(), device="fake", sampling={"spread_s": spread})


def test_a_launch_is_announced_in_the_words_of_the_progress_bar() -> None:
    """Of a run that stops by itself, nobody knows how many launches there will be."""
    clock, told = Clock(), list[str]()
    times = Schedule(Sampling(launches=13, until="faster", spread_s=12 * HOUR), clock.timer, begun_s=clock.time)
    times.wait_for(1, lambda step: told.append(step.doing))
    assert told
    assert all(line.startswith("launch 2 (until decided, at most 13) begins at ") for line in told)
    times.end_launch(1, "others disturbed it", lambda step: told.append(step.doing), "")
    assert told[-1] == "launch 2 (until decided, at most 13): done"


def test_a_run_of_before_there_was_a_spread_is_read(tmp_path: Path) -> None:
    execute(tmp_path / "run", launches_now=1)
    path = tmp_path / "run" / run_file.RUN_FILE
    header, rest = path.read_text().split("\n", 1)
    old = json.loads(header)
    del old["sampling"]["spread_s"]
    path.write_text(json.dumps(old) + "\n" + rest)
    assert resume(tmp_path / "run").sampling.spread_s == 0


# --- launch by launch ---------------------------------------------------------------------------------


def test_a_run_can_be_carried_out_launch_by_launch(tmp_path: Path) -> None:
    """Without waiting for the times that were planned. What is asked for beyond the last launch is nothing."""
    folder, clock = tmp_path / "run", Clock()
    run = execute(folder, sampling={"spread_s": HOUR}, launches_now=1, timer=clock.timer)
    assert slots(run) == [0] and not run.complete
    run = resume(folder, launches_now=2, timer=clock.timer)
    assert slots(run) == [0, 1, 2] and not run.complete
    run = resume(folder, launches_now=9, timer=clock.timer)
    assert slots(run) == [0, 1, 2, 3, 4] and run.complete and clock.sleeps == []
    size = (folder / run_file.RUN_FILE).stat().st_size
    assert resume(folder, launches_now=1).complete and (folder / run_file.RUN_FILE).stat().st_size == size


def test_each_launch_has_the_same_share_of_the_budget(tmp_path: Path) -> None:
    """Shares of what is left grew from launch to launch where the launches before had ended early."""
    folder = tmp_path / "run"
    planned = plan.make(study(), device="fake", sampling={**SAMPLING, "budget_s": 100.0})
    with in_process(folder) as stand_in:
        runner.execute(planned, folder, profile=cost_of, launches_now=1)
        while not runner.resume(folder, launches_now=1).complete:
            pass
    assert [job["budget_s"] for job in stand_in.jobs] == [20.0] * 5


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_no_launch_at_all_is_refused(number: Any, tmp_path: Path) -> None:
    for begin in (execute, resume):
        with pytest.raises(InvalidValue, match="launches_now"):
            begin(tmp_path / "run", launches_now=number)
    assert not (tmp_path / "run" / run_file.RUN_FILE).exists()


# --- where it stands ----------------------------------------------------------------------------------


def test_an_incomplete_run_says_where_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = execute(folder, sampling={"spread_s": 4 * HOUR}, launches_now=2)
    line = f"2 of 5 launches done; go on with: effbench run --resume {folder}"
    assert schedule.standing(run) == line
    assert f"The run is not complete: {line}." in text.notes(run, ())
    assert schedule.standing(run, tmp_path).startswith("2 of 5 launches done; go on with: effbench run-bundle ")
    first = datetime.datetime.fromisoformat(run.launches[0].start)
    planned = datetime.datetime.fromisoformat(str(schedule.next_launch_at(run)))
    assert planned - first == pytest.approx(datetime.timedelta(hours=2), abs=datetime.timedelta(seconds=1))
    assert schedule.standing(replace(run, path=None)) == "2 of 5 launches done"
    done = resume(folder)
    assert schedule.standing(done) == "" and schedule.next_launch_at(done) is None


def test_nothing_is_planned_for_a_run_without_a_spread_or_with_an_impossible_one() -> None:
    launches = (Launch(0, 0, "rounds", start="2026-01-01T00:00:00+00:00"),)
    run = replace(run_of({}), complete=False, launches=launches)
    assert schedule.next_launch_at(run) is None
    assert schedule.next_launch_at(replace(run, sampling=Sampling(spread_s=4e30))) is None
    for start in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        odd = replace(run, launches=(replace(launches[0], start=start),), sampling=Sampling(spread_s=4 * HOUR))
        schedule.next_launch_at(odd)  # raises nothing
    assert schedule.next_launch_at(replace(run, sampling=Sampling(spread_s=4 * HOUR))) == "2026-01-01T01:00:00+00:00"


def cells_in_memory(kind: str) -> tuple[Cell, ...]:
    """Cells that only this session can measure: a module, or a tensor as input."""
    case = study().cases[0]
    given = Input((4, 8, 8), "x", sha256="0123456789abcdef")
    case = replace(case, model="pickle:net") if kind == "module" else replace(case, inputs=(given,))
    return (Cell(study().cases[1]), Cell(case))


def test_what_cannot_be_resumed_says_why() -> None:
    module, tensor = map(cells_in_memory, ("module", "tensor"))
    name = module[1].id
    assert schedule.why_no_resume(module[:1], False) == ""
    assert schedule.why_no_resume(module, False) == f"{name} is a module of a Python session"
    said = f"input x=4x8x8 of {name} is a tensor of a Python session (SHA-256 0123456789ab…)"
    assert schedule.why_no_resume(tensor, False) == said
    assert schedule.why_no_resume(tensor, True) == "", "a bundle holds the values"


@pytest.mark.parametrize("kind", ["module", "tensor"])
def test_a_run_of_what_was_in_memory_does_not_say_how_to_go_on(kind: str, tmp_path: Path) -> None:
    run = replace(run_of({}), complete=False, path=str(tmp_path / "run.jsonl"))
    assert "; go on with: " in schedule.standing(run)
    run = replace(run, results=tuple(Result(cell, None) for cell in cells_in_memory(kind)))
    assert schedule.standing(run) == "5 of 5 launches done"


# --- disturbed by others ------------------------------------------------------------------------------


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Let others disturb every block of these launches, counted from 0."""
    really, begin = Fake.time_block, Fake.__init__

    def script(launches: set[int]) -> None:
        def disturbed(self: Fake, call: Any, calls: int) -> Timing:
            is_hit = self._random_seed in launches  # type: ignore[attr-defined]
            return replace(really(self, call, calls), flags=("waited for a core",) if is_hit else ())

        def seeded(self: Fake, seed: int = 0, **options: Any) -> None:
            begin(self, seed, **options)
            self._random_seed = seed  # type: ignore[attr-defined]

        monkeypatch.setattr(Fake, "__init__", seeded)
        monkeypatch.setattr(Fake, "time_block", disturbed)

    return script


ROUNDS = {"min_rounds": 10, "max_rounds": 10}


def test_a_run_stops_after_the_second_disturbed_launch_and_goes_on_when_told(
    tmp_path: Path, disturb: Callable[[set[int]], None]
) -> None:
    disturb({0, 2, 3, 4})
    notes: list[str] = []
    watch = lambda step: notes.append(step.note) if step.note else None  # noqa: E731
    folder = tmp_path / "run"
    run = execute(folder, sampling=ROUNDS, watch=watch, stops_if_disturbed=True)
    assert slots(run) == [0, 1, 2] and not run.complete
    assert re.fullmatch(
        r"stopped after launch 3 of 5, the second that was disturbed: "
        r"others disturbed 100 % of the blocks \(waited for a core\)",
        run.disturbance,
    )
    (told,) = notes
    assert re.match(r"others disturbed 100 % of the blocks \(waited for a core\) in launch 1; the result may be", told)
    assert told.endswith(f"stop other work, or Ctrl-C and finish later with: effbench run --resume {folder}")
    assert f"It {run.disturbance}." in text.notes(run, ())
    again = resume(folder)
    assert again.complete and again.disturbance == ""


@pytest.mark.parametrize("kind", ["module", "tensor", "not kept"])
def test_a_disturbed_run_that_cannot_be_resumed_goes_on_and_does_not_say_how_to(
    kind: str, tmp_path: Path, disturb: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb({0, 2})
    if kind != "not kept":
        monkeypatch.setattr(schedule, "why_no_resume", lambda *_: f"it is a {kind}")
    notes: list[str] = []
    watch = lambda step: notes.append(step.note) if step.note else None  # noqa: E731
    options = {"stops_if_disturbed": True, "can_resume": kind != "not kept"}
    assert execute(tmp_path / "run", sampling=ROUNDS, watch=watch, **options).complete
    assert len(notes) == 2
    assert all(note.endswith("; the result may be flagged contaminated; stop other work") for note in notes)


@pytest.mark.parametrize(
    ("why", "can_resume", "said"),
    [
        ("", False, "reads it"),
        ("a is a module", True, "reads it (a is a module, so it cannot be finished later)"),
    ],
)
def test_ctrl_c_in_a_run_that_cannot_be_resumed_says_what_reads_it(
    why: str, can_resume: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "why_no_resume", lambda *_: why)
    timer = replace(Clock().timer, sleep=interrupted)
    with pytest.raises(runner.Interrupted) as stopped:
        execute(tmp_path / "run", sampling={"spread_s": HOUR}, timer=timer, can_resume=can_resume)
    assert str(stopped.value).endswith(f"; effbench.load({str(tmp_path / 'run')!r}) {said}")


def test_a_disturbed_run_with_little_left_to_do_goes_on(tmp_path: Path, disturb: Callable[[set[int]], None]) -> None:
    disturb({0, 1})
    assert execute(tmp_path / "little", sampling={**ROUNDS, "budget_s": 16.0}, stops_if_disturbed=True).complete
    assert not execute(tmp_path / "much", sampling={**ROUNDS, "budget_s": 17.0}, stops_if_disturbed=True).complete


def test_a_run_that_is_decided_where_others_disturb_it_is_complete(
    tmp_path: Path, disturb: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second launch that was disturbed used up the budget too: nothing is left to do."""
    disturb({0, 2})
    monkeypatch.setattr(schedule, "WORTH_SAVING_S", 0.0)
    sampling = {**ROUNDS, "until": "precision", "precision": 1e-9, "budget_s": 1e-3, "launches": 13}
    run = execute(tmp_path / "run", sampling=sampling, stops_if_disturbed=True)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / run_file.RUN_FILE).read_text().splitlines()]
    assert kinds[-3:] == ["disturbance", "stop", "complete"]
    assert run.complete and run.stop == Stop("budget", 3) and run.disturbance == ""


def test_a_run_that_nobody_disturbs_or_that_may_not_stop_goes_on(
    tmp_path: Path, disturb: Callable[[set[int]], None]
) -> None:
    disturb({0, 1, 2})
    assert execute(tmp_path / "to the end", sampling=ROUNDS).complete
    last = execute(tmp_path / "last", sampling={**ROUNDS, "launches": 2}, stops_if_disturbed=True)
    assert last.complete and not last.disturbance
    disturb(set())
    assert execute(tmp_path / "quiet", sampling=ROUNDS, stops_if_disturbed=True).complete


def test_the_last_launch_gives_no_advice_to_stop() -> None:
    notes: list[str] = []
    times = Schedule(Sampling(launches=1), Clock().timer, stops_if_disturbed=True)
    times.end_launch(0, "others disturbed 50 % of the blocks", lambda step: notes.append(step.note), "effbench run")
    assert notes == ["others disturbed 50 % of the blocks in launch 1; the result may be flagged contaminated"]
