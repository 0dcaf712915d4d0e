"""The GPU session: all steps on the scripted device and on the CPU, and its handling of failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measuring
import pytest
from nursery import HANGS_S, nursery
from shell import effbench, environment

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "gpu").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("sessions are for Linux", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu import agreement, datasheets, files, page, peaks, secondary_metrics, session, studies  # noqa: E402
from benchmarks.gpu.__main__ import main  # noqa: E402
from benchmarks.gpu.context import Context  # noqa: E402
from benchmarks.gpu.outcome import Outcome  # noqa: E402
from benchmarks.gpu.steps import STEPS  # noqa: E402


def run(*words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """A session as its users start it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def carry_out(*words: str, cwd: Path, code: int = 0, **variables: str) -> tuple[str, str]:
    """What a session prints, and what it says on standard error.

    It is a fork of a process that has everything imported, and so are its steps and their measuring processes. Its
    figures are blank. In a folder that holds an effbench it would import that one (tests/support/nursery.py).
    """
    ended, printed, said = nursery().run(words, cwd, {**environment(), **variables}, program="benchmarks.gpu")
    assert ended == code, printed[-3000:] + said[-3000:]
    return printed, said


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What each step of a session found, as it is on disk."""
    return {path.parent.name[3:]: json.loads(path.read_text()) for path in folder.glob("*/result.json")}


def verdicts_of(result: dict[str, Any]) -> dict[str, str]:
    return {check["what"]: check["verdict"] for check in result["checks"]}


# --- all of it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("gpu") / "fake"
    words = ("--device", "fake", "--tiny", "--minutes", "14", "--out", str(folder))
    return folder, carry_out(*words, cwd=folder.parent)[0]


def test_every_step_passes_on_the_scripted_device(fake: tuple[Path, str]) -> None:
    folder, printed = fake
    found = results(folder)
    assert set(found) == set(STEPS)
    for name, result in found.items():
        assert result["ended"] == "complete" and result["device"] == "fake", name
        assert result["checks"] and "fail" not in verdicts_of(result).values(), (name, result["checks"])
    text = (folder / page.PAGE).read_text()
    assert text in printed, "the page is printed as it is on disk"
    assert "proves nothing" in text and f"{len(STEPS)} pass of {len(STEPS)} steps." in text
    for name in STEPS:
        assert f"| {name} | pass |" in text
    assert json.loads((folder / page.DOCUMENT).read_text())["counts"]["pass"] == len(STEPS)


def test_numbers_of_the_scripted_device_are_those_of_its_roofline(fake: tuple[Path, str]) -> None:
    """50 G multiply-adds/s, 20 GB/s, 20 W (`effbench.devices.fake`): known without running anything."""
    found = results(fake[0])
    assert found["peaks"]["numbers"]["fp32"]["tflops"] == pytest.approx(0.1, rel=0.05)
    assert found["peaks"]["numbers"]["fp32"]["gb_per_s"] == pytest.approx(20, rel=0.05)
    energies = [check for check in found["secondary_metrics"]["checks"] if check["what"].endswith("energy")]
    assert len(energies) == 2 and all("20 W at work" in check["found"] for check in energies)
    assert found["repeat"]["numbers"]["ratios_apart"] == {"channels=ARM,scale=x1,groups=8,block=conv,widths=paper": 0.0}
    assert verdicts_of(found["repeat"])["ratios of two runs, median difference"] == "pass"
    assert verdicts_of(found["agreement"]) == {
        "arithmetic: the scripted clock": "pass",
        "traffic: the scripted clock": "pass",
    }
    shares = found["breakdown"]["numbers"]["breakdown of model=shufflenet_v2_x0_5"]
    assert shares["Conv"] == pytest.approx(0.6, abs=0.02) and shares["Elemwise"] == pytest.approx(0.2, abs=0.02)
    assert found["contract"]["numbers"]["tests"] == {"passed": 2, "failed": 0, "skipped": 0}


def test_every_runtime_has_a_row_and_the_saturating_batch_is_used(fake: tuple[Path, str]) -> None:
    found = results(fake[0])
    for step in ("runtimes", "runtimes_saturated"):
        assert {f"under {name}" for name in studies.RUNTIMES} <= set(verdicts_of(found[step]))
    assert found["runtimes"]["numbers"]["batch"] == 1 and found["runtimes_saturated"]["numbers"]["batch"] == 2
    assert found["batch_sweep"]["numbers"]["saturating_batch"] in (1, 2)


def test_the_archive_holds_the_session(fake: tuple[Path, str]) -> None:
    with tarfile.open(fake[0] / files.ARCHIVE) as archive:
        names = set(archive.getnames())
    assert {f"session/{page.PAGE}", "session/03_first_command/runs/g2_groups/run.jsonl"} <= names
    assert not [name for name in names if name.endswith(files.ARCHIVE)], "not itself"


def test_a_second_session_in_the_same_folder_has_nothing_to_do(fake: tuple[Path, str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in fake[0].glob("*/result.json")}
    words = ("--device", "fake", "--tiny", "--out", str(fake[0]))
    assert f"{len(STEPS)} pass" in carry_out(*words, cwd=fake[0].parent)[0]
    assert {path: path.stat().st_mtime_ns for path in fake[0].glob("*/result.json")} == before


def test_runs_are_collected_as_they_are_committed(fake: tuple[Path, str], tmp_path: Path) -> None:
    session_folder = tmp_path / "copy"
    shutil.copytree(fake[0], session_folder)
    cut = session_folder / "08_guidelines_saturated" / "runs" / "guidelines_by_runtime_batch_2" / "run.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-2]))
    assert "proves nothing" in run("collect", str(session_folder), code=2).stderr
    done = run("collect", str(session_folder), "--to", str(tmp_path / "card"))
    places = {path.name for path in (tmp_path / "card").iterdir()}
    assert {"g2_groups", "g2_groups_again", "full_models", "batch_sweep", "runtime_breakdown"} <= places
    assert cut.parent.name not in places and f"{cut.parent.name}: left out, it was not finished" in done.stderr
    kept = {path.name for path in (tmp_path / "card" / "g2_groups").iterdir()}
    assert {"run.jsonl", "table.md", "table.csv", "figure.png", "figure.svg", "verdicts.md"} <= kept
    header = json.loads((tmp_path / "card" / "g2_groups" / "run.jsonl").read_text().partition("\n")[0])
    assert "--out runs/g2_groups" in header["command"], "no path of the machine that measured"


def test_a_run_that_was_cut_short_is_finished(fake: tuple[Path, str], tmp_path: Path) -> None:
    """The first launch of two is there: the second is measured, and the first one's blocks stay."""
    folder = tmp_path / "session"
    step = folder / "03_first_command"
    (step / "runs").mkdir(parents=True)
    words = ["run", "g2_groups", "--device", "fake", "--scale", "x1", "--select", "groups=1,8", "--launches", "2"]
    assert effbench(*words, "--budget", "1s", "--out", step / "runs" / "g2_groups", cwd=tmp_path).code == 0
    file = step / "runs" / "g2_groups" / "run.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    (second,) = (n for n, line in enumerate(lines) if '"kind":"launch"' in line and '"launch":1' in line)
    file.write_text("".join(lines[:second]))
    context = Context(step, "fake", 5.0, 60.0, True, Outcome(step, "first_command", "fake"))
    context.command = lambda *words, **how: (None, "")  # type: ignore[method-assign, assignment]
    assert context.study("g2_groups", studies.G2) is None
    assert context.outcome.verdict == "incomplete" and "finishes it" in context.outcome.checks[0]["reason"]
    del context.command
    context._keep_partial("g2_groups", step / "runs" / "g2_groups.json")
    assert context.outcome.checks[-1]["found"] == "2 of 2 cells in 1 launches"
    words = ["--device", "fake", "--tiny", "--only", "first_command", "--out", str(folder)]
    carry_out(*words, cwd=tmp_path)
    assert file.read_text().startswith("".join(lines[:second]))
    document = json.loads((step / "runs" / "g2_groups.json").read_text())
    assert document["complete"] and all(cell["launches"] == 2 for cell in document["cells"])


def test_a_run_that_others_disturb_goes_on_in_the_same_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time on a GPU is rare: the launches that are left are measured at once."""
    context = Context(tmp_path, "cuda", 60.0, 60.0, False, Outcome(tmp_path, "first_command", "cuda"))
    asked: list[Any] = []

    def command(words: Any, out: Path, **how: Any) -> tuple[int, str]:
        asked.append(words)
        (tmp_path / "runs" / "g2_groups").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "g2_groups" / "run.jsonl").write_text('{"kind":"block"}\n')
        out.write_text(json.dumps({"complete": len(asked) > 1, "cells": []}))
        return (4, "stopped after launch 2 of 5") if len(asked) == 1 else (0, "")

    monkeypatch.setattr(context, "command", command)
    monkeypatch.setattr(context, "_known", lambda name, found: found)
    assert context.study("g2_groups", studies.G2) == {"complete": True, "cells": []}
    assert [words[:2] for words in asked] == [["run", "g2_groups"], ["run", "--resume"]]
    assert not context.outcome.checks


def test_what_the_scripted_device_has_not_is_carried_out_on_the_cpu(tmp_path: Path) -> None:
    """Other clocks, networks that fail, real memory: that all was done and gave numbers, not how fast anything was."""
    steps = ("agreement", "faults", "secondary_metrics")
    folder = tmp_path / "session"
    words = ("--device", "cpu", "--tiny", "--minutes", "14", "--only", ",".join(steps), "--out", str(folder))
    carry_out(*words, cwd=tmp_path, **{measuring.UNTIMED_LAUNCHES: "1"})
    found = results(folder)
    assert set(found) == set(steps) and {result["ended"] for result in found.values()} == {"complete"}
    faults = {check["what"]: check["found"] for check in found["faults"]["checks"]}
    assert faults["too_big, eager"].startswith("out of memory") and "IndexError" in faults["out_of_bounds, eager"]
    assert faults["fits_too, eager"] == faults["synchronises, eager"] == "a time", "the run went on"
    for name in ("1x1", "small", "mobilenet_v2"):
        measured = found["agreement"]["numbers"][name]
        assert measured["effbench"] > 0 and measured["Timer"] > 0
    read = verdicts_of(found["secondary_metrics"])
    for name in studies.TINY_NETWORKS:
        assert read[f"{name}: percentiles"] == read[f"{name}: peak memory"] == "pass"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--device cudda", "no device named 'cudda'. Did you mean 'cuda'?"),
        ("--device cuda:99", "device 'cuda:99' cannot be used"),
        ("--only fist_command", "no step fist_command; known: environment, contract, first_command"),
        ("--minutes 0", "must be more than 0"),
        ("--lst", "unrecognized arguments: --lst"),
    ],
)
def test_what_cannot_be_carried_out_is_one_line_and_begins_nothing(words: str, reason: str, tmp_path: Path) -> None:
    _, said = carry_out(*words.split(), "--out", str(tmp_path / "new"), cwd=tmp_path, code=2)
    assert reason in said and said.count("\n") == 1 and not (tmp_path / "new").exists()


def test_it_runs_where_packages_are_missing(tmp_path: Path) -> None:
    """No effbench installed, no figures, no fvcore: the study is measured all the same, the page says so."""
    absent = ("fvcore", "iopath", "yacs", "termcolor", "pynvml", "pytest_benchmark", "rich", "jinja2", "cloudpickle")
    absent += ("matplotlib", "pandas")
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys
            class Absent:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in {absent}:
                        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
            sys.meta_path.insert(0, Absent())
        """)
    )
    words = ["--device", "fake", "--tiny", "--only", "environment,first_command", "--out", str(tmp_path / "out")]
    run(*words, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    text = (tmp_path / "out" / page.PAGE).read_text()
    for missing in ("fvcore (profile --crosscheck)", "rich (a progress bar)", "matplotlib (figures)"):
        assert missing in text
    assert "| first_command | pass |" in text


# --- what goes wrong --------------------------------------------------------------------------------

DRIVER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from benchmarks.gpu import __main__, one_step, page, processes, session, steps

HOME = Path(sys.argv.pop(1))

def noted(name):
    with (HOME / name).open("a") as stream:
        stream.write("x")

def first(context):
    noted("first")
    context.outcome.check("one", True, "1")

def hang(context):
    context.outcome.check("before it hung", True, "kept")
    context.outcome.number("half", 0.5)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "100000"], start_new_session=True)
    (HOME / "grandchild").write_text(str(child.pid))
    while True:
        time.sleep(1)

def crash(context):
    context.outcome.check("before it crashed", True, "kept")
    os.kill(os.getpid(), signal.SIGKILL)

def error(context):
    raise ZeroDivisionError("from the step")

def wrong(context):
    context.outcome.check("a number", False, "2", "3")

def lazy(context):
    context.outcome.skip("something", "not on this device")

def wait(context):
    context.outcome.check("before it waited", True)
    noted("waiting")
    end = time.monotonic() + 100_000
    while not (HOME / "go on").exists() and time.monotonic() < end:
        time.sleep(0.02)

def last(context):
    noted("last")
    context.outcome.check("two", True, "2")

names = os.environ["TRIAL"].split(",")
sys.modules["benchmarks.gpu.trial"] = SimpleNamespace(**{name: globals()[name] for name in names})
found = {name: steps.Step(name, name.title(), f"trial:{name}", 10.0, 1.0) for name in names}
for module in (__main__, one_step, page, session, steps):
    module.STEPS = found
processes._HEAVY = ()
session.processes.GRACE_S = 0.5
sys.exit(__main__.main(sys.argv[1:]))
"""


class Trial:
    """A session of made-up steps, in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.out = home, home / "out"
        (home / "driver.py").write_text(DRIVER)

    def start(self, steps: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "driver.py", str(self.home), "--device", "fake", "--tiny", "--out", str(self.out), *words],
            cwd=self.home,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TRIAL": steps},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, steps: str, *words: str) -> tuple[int, str, str]:
        process = self.start(steps, *words)
        printed, said = process.communicate(timeout=HANGS_S)
        return process.returncode, printed, said

    def page(self) -> str:
        return (self.out / page.PAGE).read_text()

    def times(self, name: str) -> int:
        return len((self.home / name).read_text()) if (self.home / name).exists() else 0


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    yield Trial(tmp_path)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = HANGS_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_a_step_that_hangs_is_killed_with_what_it_started_and_the_next_goes_on(trial: Trial) -> None:
    code, printed, _ = trial.run("first,hang,last", "--step-limit", "2")
    assert code == 1
    found = results(trial.out)
    assert found["hang"]["ended"] == "time" and found["hang"]["numbers"] == {"half": 0.5}
    assert verdicts_of(found["hang"]) == {"before it hung": "pass"}, "what it had found is kept"
    assert verdicts_of(found["last"]) == {"two": "pass"}
    grandchild = int((trial.home / "grandchild").read_text())
    until(lambda: not is_running(grandchild), 5)
    assert "| hang | **incomplete** |" in printed and "stopped at its time limit" in printed
    assert "2 pass, 1 incomplete of 3 steps." in printed


def test_a_step_that_crashes_costs_itself_and_no_other(trial: Trial) -> None:
    code, printed, _ = trial.run("first,crash,error,last")
    found = results(trial.out)
    assert code == 1 and {found[name]["ended"] for name in ("crash", "error")} == {"crash"}
    assert "signal SIGKILL" in found["crash"]["reason"] and verdicts_of(found["crash"]) == {"before it crashed": "pass"}
    assert found["error"]["reason"] == "ZeroDivisionError: from the step"
    assert "Traceback" in (trial.out / "03_error" / "log.txt").read_text()
    assert found["last"]["ended"] == "complete" and "| error | **incomplete** |" in printed


def test_a_failed_check_fails_the_session_and_a_skipped_step_does_not(trial: Trial) -> None:
    code, printed, _ = trial.run("first,lazy,wrong")
    assert code == 1 and "| wrong | **FAIL** |" in printed and "a number: 2 (wanted 3)" in printed
    assert "1 pass, 1 fail, 1 skip of 3 steps." in printed and "| lazy | skipped |" in printed
    assert trial.run("first,lazy,wrong", "--only", "first,lazy")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_in_the_middle_it_keeps_what_it_has_and_goes_on_later(trial: Trial, number: signal.Signals) -> None:
    process = trial.start("first,wait,last")
    until(lambda: trial.times("waiting") == 1)
    process.send_signal(number)
    printed, said = process.communicate(timeout=HANGS_S)
    hint = f"go on with: python -m benchmarks.gpu --out {trial.out} --device fake --tiny\n"
    assert process.returncode == 130 and said.endswith(hint)
    found = results(trial.out)
    assert set(found) == {"first", "wait"} and found["wait"]["ended"] == "stopped"
    assert verdicts_of(found["wait"]) == {"before it waited": "pass"}
    assert "1 pass, 1 incomplete, 1 missing of 3 steps." in printed and printed.strip() == trial.page().strip()
    (trial.home / "go on").touch()
    code, printed, _ = trial.run("first,wait,last")
    assert code == 0 and "3 pass of 3 steps." in printed
    assert [trial.times(name) for name in ("first", "waiting", "last")] == [1, 2, 1], "the first is not done again"


def test_killed_outright_it_leaves_nothing_running_and_goes_on_later(trial: Trial) -> None:
    process = trial.start("first,wait,last")
    until(lambda: trial.times("waiting") == 1)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as listing:
        children = [int(word) for word in listing.read().split()]
    process.kill()
    process.communicate(timeout=HANGS_S)
    until(lambda: not any(map(is_running, children)), 10)
    assert results(trial.out)["first"]["ended"] == "complete" and "| first | pass |" in trial.page()
    (trial.home / "go on").touch()
    assert trial.run("first,wait,last")[0] == 0 and trial.times("first") == 1


def test_steps_are_chosen_listed_and_done_again(trial: Trial) -> None:
    assert trial.run("first,last", "--only", "first")[0] == 0
    assert trial.times("last") == 0
    code, printed, _ = trial.run("first,last", "--list")
    assert code == 0 and printed.splitlines()[0].startswith("first") and "pass (ended by itself)" in printed
    assert printed.splitlines()[1].split() == ["last", "Last"]
    assert trial.run("first,last", "--only", "first")[0] == 0 and trial.times("first") == 1
    assert trial.run("first,last", "--again", "first")[0] == 0
    assert (trial.times("first"), trial.times("last")) == (2, 1)


def test_what_cannot_be_done_is_said_in_one_line(trial: Trial) -> None:
    process = trial.start("wait")
    until(lambda: trial.times("waiting") == 1)
    code, _, said = trial.run("wait")
    assert code == 2 and "another session is at work in" in said and "Traceback" not in said
    (trial.home / "go on").touch()
    process.communicate(timeout=HANGS_S)
    for words, expected in (
        (("--device", "cpu"), "holds a session of device fake, tiny"),
        (("--only", "nothing"), "there is no step nothing; known: wait"),
        (("--minutes", "0"), "--minutes (=0) must be more than 0"),
    ):
        code, _, said = trial.run("wait", *words)
        assert code == 2 and expected in said and "Traceback" not in said


def test_where_no_time_is_left_a_step_is_not_begun(trial: Trial) -> None:
    code, printed, _ = trial.run("first,last", "--step-limit", "0.5")
    assert code == 1 and trial.times("first") == 0 and "it is not begun with less than" in printed
    assert trial.run("first,last")[0] == 0 and trial.times("first") == 1


# --- minutes ----------------------------------------------------------------------------------------


def test_unspent_time_is_passed_on_and_too_little_goes_to_the_first() -> None:
    needed = sum(step.need_s for step in STEPS.values())
    assert session.share_of_need(2 * needed, needed) == 2, "twice the time: twice for each"
    assert session.share_of_need(0.1 * needed, needed) == session.LEAST_SHARE
    limits, clock = allotted(12.0, spend=0.5)
    assert list(limits) == list(STEPS), "steps that need half of their time leave enough for all"
    assert limits["runtimes_saturated"] > STEPS["runtimes_saturated"].need_s
    limits, clock = allotted(12.0, spend=session.OVERRUN_FACTOR)
    assert clock <= 12 * 60 and len(limits) >= 8, "all overrun: what stands first is carried out, within the minutes"
    assert list(limits) == list(STEPS)[: len(limits)]


def allotted(minutes: float, spend: float) -> tuple[dict[str, float], float]:
    """The limit of every step that is begun where each spends so many times its share, and when the session ended."""
    clock, limits = SimpleNamespace(now=0.0), {}

    class Dry(session.Session):
        def left_s(self) -> float:
            return 60 * minutes - session.CLOSING_S - clock.now

        def _step(self, step: Any, seconds: float, limit: float) -> None:
            limits[step.name] = limit
            clock.now += min(spend * seconds, limit)

        def _leave_out(self, step: Any, limit: float) -> None: ...
        def _pack(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write", lambda *words: "")
        Dry(Path("nowhere"), "cuda", minutes)._pass(list(STEPS.values()))
    return limits, clock.now


# --- what is judged ---------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A step on a GPU that is not there."""
    folder = tmp_path / "04_step"
    return Context(folder, "cuda", 30.0, 60.0, False, Outcome(folder, "step", "cuda"))


def checks(context: Context) -> dict[str, str]:
    return {check["what"]: check["verdict"] for check in context.outcome.checks}


class Clock:
    """A GPU that takes these microseconds a call, as effbench sees it."""

    def __init__(self, device_us: float, bound: str) -> None:
        self.device_us, self.bound = device_us, bound

    def time_block(self, call: Any, calls: int) -> Any:
        spent = round(1e3 * self.device_us * calls)
        return SimpleNamespace(calls=calls, device_ns=spent, wall_ns=spent)

    def probe(self, call: Any, calls: int) -> dict[str, str]:
        return {"bound": self.bound}


@pytest.mark.parametrize(
    ("bound", "timer", "kernels", "bench", "expected"),
    [
        ("device", 100, 100, 102, {"limits": "pass", "Timer": "pass", "kernels": "pass", "do_bench": "pass"}),
        ("device", 96, 98, 96, {"limits": "pass", "Timer": "fail", "kernels": "pass", "do_bench": "fail"}),
        ("device", 100, 96, 100, {"limits": "pass", "Timer": "pass", "kernels": "fail", "do_bench": "pass"}),
        ("host", 130, 100, 100, {"limits": "pass", "Timer": "note", "kernels": "note"}),
        ("device", 130, 100, 100, {"limits": "fail", "Timer": "note", "kernels": "note"}),
        ("host", 100, 100, 100, {"limits": "fail", "Timer": "pass", "kernels": "pass", "do_bench": "pass"}),
        ("mixed", 110, 100, 100, {"limits": "pass", "Timer": "note", "kernels": "pass", "do_bench": "pass"}),
        ("device", 100, None, None, {"limits": "pass", "Timer": "pass", "kernels": "skip", "do_bench": "skip"}),
    ],
)
def test_device_time_is_held_against_three_clocks(
    context: Context, monkeypatch: pytest.MonkeyPatch, bound: str, timer: Any, kernels: Any, bench: Any, expected: Any
) -> None:
    monkeypatch.setattr(agreement, "_timer", lambda call, least: timer * 1e-6)
    monkeypatch.setattr(agreement, "_kernels", lambda call, calls, device: kernels and kernels * 1e-6)
    monkeypatch.setattr(agreement, "_do_bench", lambda call: bench and bench * 1e-6)
    gpu = Clock(100, bound)
    agreement._compare(context, "conv", lambda: None, gpu, gpu)
    found = {name.removeprefix("conv: ").replace("what limits it", "limits"): v for name, v in checks(context).items()}
    assert found == expected


def test_kernels_are_summed_and_operators_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's time on the device is that of its kernels once more."""
    import torch

    rows = [
        SimpleNamespace(key="aten::conv2d", device_type="DeviceType.CPU", self_device_time_total=600.0),
        SimpleNamespace(key="aten::conv2d", device_type="DeviceType.CUDA", self_device_time_total=600.0),
        SimpleNamespace(key="sm90_xmma_fprop", device_type="DeviceType.CUDA", self_device_time_total=550.0),
        SimpleNamespace(key="nchwToNhwcKernel", device_type="DeviceType.CUDA", self_device_time_total=50.0),
    ]

    class Profile:
        def __init__(self, **options: Any) -> None: ...
        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None: ...
        def key_averages(self) -> list[Any]:
            return rows

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    device = SimpleNamespace(synchronize=lambda: None)
    assert agreement._kernels(lambda: None, 10, device) == pytest.approx(60e-6)
    rows[2:] = []
    assert agreement._kernels(lambda: None, 10, device) is None


def test_the_workloads_are_those_that_were_promised() -> None:
    kinds = agreement.CONVOLUTIONS
    assert len(kinds) == 8 and len(agreement.NETWORKS) == 2
    for _, inner, outer, _, kernel, stride, groups, _ in kinds.values():
        assert inner % groups == 0 and outer % groups == 0 and stride in (1, 2) and kernel in (1, 3)
    assert kinds["depthwise"][6] == kinds["depthwise"][1] and kinds["channels_last"][7]


@pytest.mark.parametrize(
    ("name", "fp32", "tf32", "bf16", "traffic"),
    [
        ("NVIDIA H100 80GB HBM3", 67, 494.5, 989.5, 3350),
        ("NVIDIA H100 PCIe", 51, 378, 756.5, 2000),
        ("NVIDIA H200", 67, 494.5, 989.5, 4800),
        ("NVIDIA A100-SXM4-80GB", 19.5, 156, 312, 2039),
        ("NVIDIA L4", 30.3, 60, 121, 300),
        ("Tesla T4", 8.1, None, None, 320),
        ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2, 1008),
    ],
)
def test_data_sheets(name: str, fp32: float, tf32: float | None, bf16: float | None, traffic: float) -> None:
    sheet = datasheets.sheet_of(name)
    assert sheet is not None
    assert (sheet.fp32, sheet.tf32, sheet.bf16, sheet.gb_per_s) == (fp32, tf32, bf16, traffic)


@pytest.mark.parametrize("name", [None, "", "NVIDIA L40S", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA A10", "Tesla"])
def test_a_card_of_another_name_gets_no_verdict(name: str | None, context: Context) -> None:
    assert datasheets.sheet_of(name) is None
    peaks.against(context, "fp32 arithmetic", 50.0, None, "TFLOP/s")
    assert checks(context) == {"fp32 arithmetic": "note"} and "50 TFLOP/s" in context.outcome.checks[0]["found"]


@pytest.mark.parametrize(("measured", "verdict"), [(51.0, "pass"), (20.0, "fail"), (80.0, "fail"), (67.0, "pass")])
def test_a_peak_is_held_against_the_sheet(context: Context, measured: float, verdict: str) -> None:
    peaks.against(context, "fp32 arithmetic", measured, 67.0, "TFLOP/s")
    assert checks(context) == {"fp32 arithmetic": verdict}
    assert f"{100 * measured / 67:.0f} % of the sheet's 67" in context.outcome.checks[0]["found"]


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(1.0, "pass"), (1.09, "pass"), (1.2, "fail"), (0.4, "fail"), ("no", "skip")]
)
def test_energy_is_held_against_power_times_time(
    context: Context, monkeypatch: pytest.MonkeyPatch, theirs: Any, verdict: str
) -> None:
    monkeypatch.setattr(secondary_metrics, "power_times_time", lambda *words: theirs)
    cell = {"model": "net", "energy": {"energy_j_per_call": 1.0, "power_w": 300.0, "idle_w": 70.0}}
    secondary_metrics._energy(context, cell, 8)
    assert checks(context) == {"net: energy": verdict}


@pytest.mark.parametrize(("theirs", "verdict"), [(10**8, "pass"), (99 * 10**6 + 10**5, "pass"), (2 * 10**8, "fail")])
def test_peak_memory_is_held_against_torchs_own(
    context: Context, monkeypatch: pytest.MonkeyPatch, theirs: int, verdict: str
) -> None:
    monkeypatch.setattr(secondary_metrics, "_in_a_process", lambda *words: theirs)
    secondary_metrics._memory(
        context, {"model": "net", "peak_memory": {"peak_memory_bytes": 10**8, "source": "torch"}}, 8
    )
    assert checks(context) == {"net: peak memory": verdict}


def document(ratios: dict[str, float], word: str) -> dict[str, Any]:
    cells = [{"id": "1", "reference": "1", "ratio": {"point": 1.0}}]
    cells += [{"id": name, "reference": "1", "ratio": {"point": ratio}} for name, ratio in ratios.items()]
    return {"cells": cells, "verdicts": [{"claim": "slower", "group": {}, "verdict": word}]}


@pytest.mark.parametrize(
    ("first", "again", "flips", "ratios"),
    [
        (document({"8": 2.0, "4": 1.5}, "holds"), document({"8": 2.01, "4": 1.5}, "holds"), "pass", "pass"),
        (document({"8": 2.0, "4": 1.5}, "holds"), document({"8": 2.1, "4": 1.53}, "holds"), "pass", "fail"),
        (document({"8": 2.0}, "holds"), document({"8": 2.0}, "fails"), "fail", "pass"),
        (document({"8": 2.0}, "unsure"), document({"8": 2.0}, "fails"), "pass", "pass"),
    ],
)
def test_two_runs_are_held_against_each_other(
    context: Context, monkeypatch: pytest.MonkeyPatch, first: Any, again: Any, flips: str, ratios: str
) -> None:
    monkeypatch.setattr(context, "other_run", lambda *words: first)
    monkeypatch.setattr(context, "study", lambda *words, **how: again)
    studies.repeat(context)
    assert checks(context) == {"verdicts that flipped": flips, "ratios of two runs, median difference": ratios}


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_json(tmp_path / "a" / "result.json", {"step": 1})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        files.write_json(path, {"step": 2})
    assert files.read_json(path) == {"step": 1}
    path.write_text("{half")
    assert files.read_json(path) is None and files.read_json(tmp_path / "none") is None


def test_the_module_is_what_the_documentation_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--out", "no such folder"]) == 0
    printed = capsys.readouterr().out
    text = (ROOT / "docs" / "gpu.md").read_text()
    for name in STEPS:
        assert name in printed and f"| {name} |" in text
