"""Runs that end early lose no measured block: models that crash, full disks, Ctrl-C, kill -9."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import measuring
import psutil
import pytest
from nursery import HANGS_S
from shell import (
    EFFBENCH,
    QUICKLY,
    Done,
    Running,
    effbench,
    environment,
    kinds,
    refusal,
    started,
    study_file,
    wait_until,
)

from effbench.runs import run_file, schema

HALF = QUICKLY.replace("launches=2", "launches=12")

UNTIMED = {measuring.UNTIMED_LAUNCHES: "1"}
"""For runs on the real device that look at ends and not at times: their measuring processes start at once."""

NETS = """
import os, sys, time, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.conv, self.mode, self.calls = nn.Conv2d(3, 4, 1), mode, 0

    def forward(self, x):
        really, self.calls = not torch._C.TensorBase.is_meta.__get__(x), self.calls + 1
        if self.mode == "raises":
            raise RuntimeError("no luck\\nand a second line")
        if self.mode == "raises when run" and really:
            raise ValueError("only with numbers")
        if self.mode == "raises later" and really and self.calls > 3:
            raise ValueError("only the fourth time")
        if self.mode == "crashes" or (self.mode == "crashes when run" and really):
            os.kill(os.getpid(), 11)
        if self.mode == "exits":
            sys.exit("so long")
        if self.mode == "exits when run" and really:
            sys.exit(0)
        if self.mode == "vanishes" and really:
            os._exit(0)
        if self.mode == "hangs" and really:
            time.sleep(100_000)
        if self.mode == "asks" and really:
            input("Continue?")
        return self.conv(x)

def net(mode):
    if mode == "is no network":
        return 3
    return Net(mode)

def raises(): return Net("raises")
def exits(): return Net("exits")
def fine(): return Net("fine")
"""

NETS_STUDY = """
from effbench.core.study import Case, Claim, Experiment, Sampling

MODES = {modes!r}
case = lambda mode, shape=(3, 8, 8): Case("nets.py:net", shape, {{"mode": mode}}, labels={{"mode": mode}})
EXPERIMENT = Experiment(
    name="nets", title="Nets", claim="", factor="mode", levels=tuple(MODES), reference="fine",
    cases=(*map(case, MODES), *{more}),
    claims=(Claim("all alike", "No network is slower.", (("also fine", "fine"),), ("also fine", "fine")),),
    sampling=Sampling({sampling}),
)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    study_file(folder)
    (folder / "nets.py").write_text(NETS)
    return folder


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A complete run on the scripted clock. Tests copy it before they harm it."""
    assert effbench("run", "tiny.py", "--device", "fake", "--out", "finished", cwd=home).code == 0
    return home / "finished"


def ended(process: Running, timeout: float = HANGS_S) -> Done:
    out, err = process.communicate(timeout=timeout)
    return Done(process.returncode, out, err)


def wait_for(run: Path, kind: str, number: int, process: Running) -> None:
    """Until the run's file holds so many records of this kind."""
    wait_until(lambda: (run / "run.jsonl").exists() and kinds(run).count(kind) >= number, process)


def blocks_of(run: Path) -> int:
    return sum(len(result.blocks) for result in run_file.load(run).results)


def resume_words(message: str) -> list[str]:
    """The command that a message names, as a shell would split it, without the program's name."""
    words = shlex.split(message[message.index("effbench run --resume") :])
    assert words[0] == "effbench"
    return words[1:]


def is_whole(run: Path, launches: int) -> bool:
    """Every launch of the plan was finished once, no round of a cell was measured twice."""
    loaded = run_file.load(run)
    slots = [launch.slot for launch in loaded.launches if launch.stopped != "interrupted"]
    slot_of = {launch.number: launch.slot for launch in loaded.launches}
    visits = [(slot_of[b.launch], b.round, b.cell) for result in loaded.results for b in result.blocks]
    return loaded.complete and sorted(slots) == list(range(launches)) and len(visits) == len(set(visits))


# --- networks that misbehave -------------------------------------------------------------------------

REASONS = {
    "raises": "no luck",
    "raises when run": "ValueError: only with numbers",
    "raises later": "ValueError: only the fourth time",
    "crashes": "SIGSEGV",
    "crashes when run": "SIGSEGV",
    "exits": "sys.exit('so long')",
    "exits when run": "sys.exit(0)",
    "vanishes": "ended the process without an error",
    "asks": "EOFError",
    "is no network": "int, not a torch.nn.Module",
    "too big": "does not run on input 1x4x8x8",
}


@pytest.fixture(scope="module")
def hanging(home: Path) -> Iterator[Running]:
    """A run in which one network hangs. It mostly waits, so it starts before the tests that need the processor."""
    text = NETS_STUDY.format(modes=["fine", "hangs", "also fine"], more=(), sampling=f"{QUICKLY}, silence_s=20.0")
    (home / "hanging.py").write_text(text.replace("launches=2", "launches=1"))
    with started("run", "hanging.py", "--json", "--out", "hung", cwd=home, variables=UNTIMED) as process:
        yield process


@pytest.fixture(scope="module")
def misbehaved(home: Path, hanging: Running) -> Done:
    modes = ["fine", *(mode for mode in REASONS if mode != "too big"), "also fine"]
    text = NETS_STUDY.format(modes=modes, more='(case("too big", (4, 8, 8)),)', sampling=QUICKLY)
    (home / "misbehaving.py").write_text(text.replace("launches=2", "launches=1"))
    return effbench("run", "misbehaving.py", "--json", "--out", "misbehaved", cwd=home, variables=UNTIMED)


@pytest.mark.parametrize("mode", REASONS)
def test_a_network_that_fails_is_a_recorded_skip(mode: str, misbehaved: Done) -> None:
    assert misbehaved.code == 0, misbehaved.err
    cell = next(cell for cell in misbehaved.json["cells"] if cell["labels"]["mode"] == mode)
    assert REASONS[mode] in cell["skipped"] and "\n" not in cell["skipped"]
    assert cell["ratio"] is None and cell["throughput"] is None


def test_the_others_go_on(misbehaved: Done, home: Path) -> None:
    alive = {cell["labels"]["mode"]: cell for cell in misbehaved.json["cells"] if cell["skipped"] is None}
    assert alive.keys() == {"fine", "also fine"}
    assert all(cell["latency_s"]["median"] > 0 and cell["ratio"] for cell in alive.values())
    assert misbehaved.err == ""
    assert (home / "misbehaved" / "table.md").read_text().count("skipped: ") == len(REASONS)


def test_nothing_but_failing_networks_is_an_error_with_the_reason(home: Path) -> None:
    words = "compare nets.py:raises nets.py:exits --device fake --input 3x8x8 --out nothing"
    line = refusal(effbench(*words.split(), cwd=home))
    assert "nets.py:raises" in line and "no luck" in line
    assert not (home / "nothing").exists(), "an empty run leaves no folder behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nets.py:fine --input 5x8x8", "does not run on input 1x5x8x8"),
        ("nets.py:exits --input 3x8x8", "sys.exit('so long')"),
        ("gone.py:net", "there is no file gone.py"),
    ],
)
def test_profile_of_a_network_that_fails_is_one_line(words: str, message: str, home: Path) -> None:
    assert message in refusal(effbench("profile", *words.split(), cwd=home))


# --- folders and files -------------------------------------------------------------------------------


def copy(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.parent / name))


def test_a_run_of_a_newer_effbench_is_refused(finished: Path) -> None:
    run = copy(finished, "newer")
    path = run / "run.jsonl"
    path.write_text(path.read_text().replace(f'"schema":{schema.SCHEMA}', '"schema":99', 1))
    for words in (["diff", finished, run], ["run", "--resume", run]):
        line = refusal(effbench(*words, cwd=run.parent))
        assert "schema 99" in line and "upgrade effbench" in line


def test_garbage_in_the_middle_names_the_line_and_a_torn_end_loads(finished: Path) -> None:
    run = copy(finished, "damaged")
    path = run / "run.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"\x00\xff garbage\n", *lines[6:]]))
    line = refusal(effbench("diff", finished, run, cwd=run.parent))
    assert f"{path}, line 6" in line
    path.write_bytes(whole[:-20])
    assert effbench("diff", finished, run, cwd=run.parent).code == 0


def test_a_folder_without_a_run_is_not_resumed(finished: Path) -> None:
    for name in ("bare", "begun"):
        (finished.parent / name).mkdir()
    (finished.parent / "begun" / "run.jsonl").touch()
    assert "no run at bare" in refusal(effbench("run", "--resume", "bare", cwd=finished.parent))
    assert "before anything was measured" in refusal(effbench("run", "--resume", "begun", cwd=finished.parent))
    assert list((finished.parent / "bare").iterdir()) == []


def test_unlike_machines_are_not_compared_unless_told_to(finished: Path) -> None:
    run = copy(finished, "elsewhere")
    header, rest = (run / "run.jsonl").read_text().split("\n", 1)
    changed = json.loads(header)
    changed["environment"]["facts"].update({"cpu.model": "Another CPU", "torch.version": "1.0.0"})
    (run / "run.jsonl").write_text(json.dumps(changed) + "\n" + rest)
    line = refusal(effbench("diff", finished, run, cwd=run.parent))
    assert "cpu.model" in line and "Another CPU" in line and "torch.version" in line
    assert "python.version" not in line, "what agrees is not named"
    assert "--ignore-environment" in line
    done = effbench("diff", finished, run, "--ignore-environment", "--json", cwd=run.parent)
    assert done.code == 0 and len(done.json["comparisons"]) == 2


# --- full disks --------------------------------------------------------------------------------------


def lost_nothing(done: Done, run: Path, cwd: Path) -> None:
    """The run on a full disk said so, kept its blocks, and goes on from them once there is room."""
    line = refusal(done)
    assert f"{run.name}/run.jsonl" in line and f"is kept in {run}" in line
    before, measured = (run / "run.jsonl").read_bytes(), blocks_of(run)
    assert measured > 0 and before.endswith(b"\n") and not run_file.load(run).complete
    target = cwd / f"{run.name} with room"
    shutil.copytree(run, target)
    after = effbench("run", "--resume", target, cwd=cwd)
    assert after.code == 0, after.err
    assert (target / "run.jsonl").read_bytes().startswith(before)
    assert blocks_of(target) > measured and is_whole(target, 12)


def test_a_full_file_system_keeps_what_it_holds(tmp_path: Path) -> None:
    study_file(tmp_path, HALF)
    small = tmp_path / "small"
    small.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        done = effbench("run", "tiny.py", "--device", "fake", "--out", small / "run", cwd=tmp_path)
        assert "No space left on device" in done.err
        lost_nothing(done, small / "run", tmp_path)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- interruption ------------------------------------------------------------------------------------


def test_ctrl_c_says_what_is_saved_and_how_to_go_on(tmp_path: Path) -> None:
    """In the middle of a launch of many rounds, which the next command carries on with."""
    study_file(tmp_path, "launches=3, min_rounds=1000, max_rounds=1000, max_warmup_s=0.05")
    run = tmp_path / "my run"
    with started("run", "tiny.py", "--device", "fake", "--out", "my run", cwd=tmp_path) as process:
        wait_for(run, "block", 20, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    line = refusal(done, code=130)
    assert not psutil.wait_procs(workers, timeout=HANGS_S)[1], "the measuring process has ended too"
    before, measured = (run / "run.jsonl").read_bytes(), blocks_of(run)
    assert f"{measured} blocks are saved" in line and measured >= 20
    assert run_file.load(run).launches[-1].stopped == "interrupted"
    after = effbench(*resume_words(line), cwd=tmp_path)
    assert after.code == 0, after.err
    assert (run / "run.jsonl").read_bytes().startswith(before), "byte for byte"
    assert blocks_of(run) > measured and is_whole(run, 3)


def test_ctrl_c_before_anything_was_measured(tmp_path: Path) -> None:
    study_file(tmp_path)
    with started("run", "tiny.py", "--device", "cpu", "--out", "run", cwd=tmp_path) as process:
        wait_until((tmp_path / "run" / "run.jsonl").exists, process)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert "before anything was measured" in refusal(done, code=130)
    assert not (tmp_path / "run").exists()


def killed_and_resumed(tmp_path: Path, delays: list[float], launches: int) -> None:
    """Kill the run, and each attempt to resume it, so long after its first block. Then let it finish."""
    run = tmp_path / "run"
    words = ["run", "tiny.py", "--device", "cpu", "--out", "run"]
    before, measured = b"", 0
    for delay in delays:
        with started(*words, cwd=tmp_path, variables=UNTIMED) as process:
            wait_for(run, "block", measured + 1, process)
            time.sleep(delay)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            done = ended(process)
        assert "Traceback" not in done.err
        assert workers and not psutil.wait_procs(workers, timeout=HANGS_S)[1], (
            "a measuring process ends with its parent"
        )
        kept, before = before, (run / "run.jsonl").read_bytes()
        assert before.startswith(kept[: kept.rfind(b"\n") + 1])
        assert blocks_of(run) > measured
        measured = blocks_of(run)
        words = ["run", "--resume", "run"]
    done = effbench(*words, cwd=tmp_path, variables=UNTIMED)
    assert done.code == 0, done.err
    assert (run / "run.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert is_whole(run, launches)


def test_kill_9_on_a_real_device(tmp_path: Path) -> None:
    study_file(tmp_path, QUICKLY.replace("min_rounds=3, max_rounds=4", "min_rounds=400, max_rounds=400"))
    draw = random.Random(7)
    killed_and_resumed(tmp_path, [draw.uniform(0.0, 0.3), draw.uniform(0.0, 0.3)], launches=2)


def test_a_network_that_hangs_does_not_outlive_the_run(home: Path, hanging: Running) -> None:
    """It writes nothing, so it cannot notice a closed pipe; and kill -9 leaves nobody to end it."""
    with started("run", "hanging.py", "--out", "orphaned", cwd=home, variables=UNTIMED) as process:
        wait_for(home / "orphaned", "launch", 1, process)
        time.sleep(0.5)
        (worker,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        assert not psutil.wait_procs([worker], timeout=HANGS_S)[1]


@dataclass(frozen=True)
class Busy:
    """What happened to a run on the CPU whose folder others wanted and whose measuring process was killed."""

    done: Done
    second: Done
    resumed: Done
    run: Path


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Busy:
    folder = tmp_path_factory.mktemp("busy")
    study_file(folder, "launches=1, min_rounds=150, max_rounds=150, warmup_s=0.0, max_warmup_s=0.05, block_s=0.005")
    words = ["run", "tiny.py", "--out", "run", "--json", "--budget", "600s"]
    with started(*words, cwd=folder, variables=UNTIMED) as process:
        wait_for(folder / "run", "block", 3, process)
        (worker,) = psutil.Process(process.pid).children()
        worker.suspend()  # the others may be slow
        second = effbench(*words, cwd=folder)
        resumed = effbench("run", "--resume", "run", cwd=folder)
        worker.kill()
        return Busy(ended(process), second, resumed, folder / "run")


def test_two_runs_do_not_share_a_folder(busy: Busy) -> None:
    for other in (busy.second, busy.resumed):
        assert "another run is writing to run" in refusal(other)


def test_a_killed_measuring_process_costs_one_cell(busy: Busy) -> None:
    assert busy.done.code == 0, busy.done.err
    skipped = [cell["skipped"] for cell in busy.done.json["cells"] if cell["skipped"] is not None]
    assert len(skipped) == 1 and "SIGKILL" in skipped[0]
    assert run_file.load(busy.run).complete
    assert all(cell["blocks"] >= 1 for cell in busy.done.json["cells"]), "what was measured before is kept"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always searches the current folder first")
def test_a_file_named_like_a_module_is_no_obstacle(tmp_path: Path) -> None:
    study_file(tmp_path, QUICKLY.replace("launches=2", "launches=1"))
    for name in ("random", "queue", "stop", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong file')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "effbench", "run", "tiny.py", "--device", "fake", "--out", "run"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    """Here because a file of the user's hides a module that it needs."""
    study_file(tmp_path)
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "sitecustomize.py").write_text(
        "import sys\nif 'effbench.runs.worker' in ' '.join(sys.orig_argv): raise SystemExit('shadowed')\n"
    )
    done = subprocess.run(
        [*EFFBENCH, "run", "tiny.py", "--device", "fake", "--out", "run"],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(shadow)},
        capture_output=True,
        text=True,
    )
    line = refusal(Done(done.returncode, done.stdout, done.stderr))
    assert "could not start" in line and "shadowed" in line


# --- a network that hangs -----------------------------------------------------------------------------


def test_a_network_that_hangs_is_ended_and_recorded(hanging: Running, misbehaved: Done) -> None:
    """The last test here: the run waits for a sign of life while the others are at work."""
    done = ended(hanging)
    assert done.code == 0, done.err
    skipped = {cell["labels"]["mode"]: cell["skipped"] for cell in done.json["cells"]}
    assert "no sign of life for 20 s" in skipped["hangs"]
    assert skipped["fine"] is None and skipped["also fine"] is None
