"""kill -9 of a run and of its measuring processes at 120 seeded moments: what was measured stays, and only that.

A run that is killed ends where it is: no handler runs, no buffer is flushed. To afford so many, one process imports
everything and goes through a run once; each run to be killed is a fork of it, with a measuring process of its own as
always. Half of the moments are numbers of function calls, which a slow machine does not move; the others are times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from shell import environment, kinds, study_file

from effbench import storage

LAUNCHES, ROUNDS, CELLS = 3, 6, 2
SAMPLING = f"launches={LAUNCHES}, min_rounds={ROUNDS}, max_rounds={ROUNDS}, warmup_s=0.0, max_warmup_s=0.05"
WORDS = ("run", "tiny.py", "--device", "fake", "--out", "run")
RESUME = ("run", "--resume", "run")
SEED = 20261122

FORKS = """
import json, os, signal, sys

from effbench import cli, storage

FOLDER = os.getcwd()
told = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
cli.main(["run", "tiny.py", "--device", "fake", "--out", "rehearsal"])
append = storage.RunWriter.append
print("ready", file=told)


def acknowledged(writer, kind, **values):
    append(writer, kind, **values)
    os.write(9, kind.encode() + b" %d\\n" % calls)


calls = 0


def carry_out(order):
    os.dup2(os.open(order["said"], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(1, 2)
    os.dup2(os.open(order["acknowledged"], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), 9)
    os.environ["MARK"] = order["mark"]
    os.chdir(order["folder"])
    storage.RunWriter.append = acknowledged

    def count(frame, event, argument):
        global calls
        calls += 1
        if calls == order["at_call"]:
            os.kill(os.getpid(), signal.SIGKILL)

    really, lines = os.write, 0

    def torn(descriptor, data):
        nonlocal lines
        lines += data.startswith(b'{"kind"')
        if lines == order["in_line"]:
            really(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return really(descriptor, data)

    if order["in_line"]:
        os.write = torn
    if order["at_call"]:
        sys.setprofile(count)
    code = cli.main(order["words"])
    sys.setprofile(None)
    os.write(9, b"over %d\\n" % calls)
    sys.stdout.flush()
    os._exit(code)


while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        carry_out(json.loads(line))
    print(child, file=told)
    sys.stdin.readline()  # until then its number belongs to it, even when it has ended
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=told)

told.close()
"""


@dataclass
class Ended:
    """How one fork ended: its exit code (-9 when killed), what it said, the kinds of records that it saw written."""

    code: int
    said: str
    acknowledged: list[str]
    calls: list[int]
    """How many function calls and returns there had been after each of these records; the last is of the whole run."""


class Forks:
    """A process that has everything imported and forks once an order, and the folders that its forks live in."""

    def __init__(self, home: Path) -> None:
        self.home, self._number = home, 0
        self.work, self.own = home / "work", home / "home"
        for folder in (self.work, self.own, home / "tmp", home / "notes"):
            folder.mkdir()
        study_file(self.work, SAMPLING)
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            cwd=self.work,
            # Everything that a run could reach for by a name of its own lies in the folder that is watched.
            env={
                **environment(),
                "HOME": str(self.own),
                "TMPDIR": str(home / "tmp"),
                "XDG_CACHE_HOME": str(self.own / "cache"),
                "XDG_CONFIG_HOME": str(self.own / "config"),
                "MPLCONFIGDIR": str(self.own / "matplotlib"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "COVERAGE_PROCESS_CONFIG": "",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def start(self, *words: str, at_call: int = 0, in_line: int = 0) -> int:
        """Fork off one run and return its process id."""
        self._number += 1
        self.mark = f"{os.getpid()}-{self._number}"
        notes = self.home / "notes"
        order = {"words": words, "folder": str(self.work), "mark": self.mark, "at_call": at_call, "in_line": in_line}
        order |= {"said": str(notes / "said"), "acknowledged": str(notes / "acknowledged")}
        self._tell(json.dumps(order))
        return int(self._line())

    def end(self) -> Ended:
        """Wait for the fork, and for whatever it started."""
        self._tell("wait for it")
        code = int(self._line())
        limit = time.monotonic() + 10
        while left := self.started():
            assert time.monotonic() < limit, f"left over: {left}"
            time.sleep(0.01)
        notes = self.home / "notes"
        seen = [line.split() for line in (notes / "acknowledged").read_text().splitlines()]
        return Ended(code, (notes / "said").read_text(), [kind for kind, _ in seen], [int(at) for _, at in seen])

    def carry_out(self, *words: str, **moment: int) -> Ended:
        self.start(*words, **moment)
        return self.end()

    def started(self) -> list[psutil.Process]:
        """Every process of the last order that is still there, wherever it was passed on to."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def outside(self) -> dict[str, tuple[int, int]]:
        """All files but those of the output folder, with size and time of change."""
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for folder in (self.work, self.own, self.home / "tmp")
            for path in folder.rglob("*")
            if path.is_file() and self.work / "run" not in path.parents
        }

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the forking process has ended"
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _fresh(forks: Forks) -> None:
    empty(forks)


def empty(forks: Forks) -> None:
    for path in sorted((forks.work / "run").rglob("*"), reverse=True):
        path.unlink()


def lines_of(forks: Forks) -> bytes:
    """The file's whole lines."""
    path = forks.work / "run" / "run.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def lost_nothing(forks: Forks, ended: Ended, before: bytes, outside: dict[str, Any]) -> str:
    """What must hold after any kill. Returns how far the run had come."""
    assert ended.code == -signal.SIGKILL and "Traceback" not in ended.said, ended
    assert forks.outside() == outside, "written outside the output folder"
    data = lines_of(forks)
    assert data.startswith(before), "what an earlier process wrote is there, byte for byte"
    new = [json.loads(line)["kind"] for line in data[len(before) :].splitlines()]
    # Written to the kernel before the next thing happens: at most one record beyond what was known to be written.
    known = [kind for kind in ended.acknowledged if kind != "over"]
    assert new[: len(known)] == known and len(new) - len(known) in (0, 1)
    if not data:
        return "nothing"
    run = storage.load(forks.work / "run")
    blocks = [block for result in run.results for block in result.blocks]
    assert len(blocks) == kinds(forks.work / "run").count("block")
    assert all(block.timing.wall_ns > 0 for block in blocks)
    return "complete" if run.complete else "blocks" if blocks else "header"


def finish(forks: Forks) -> None:
    """Go on after a kill, as its user would: the result is the whole plan, once."""
    before = lines_of(forks)
    if len([line for line in before.splitlines() if b'"kind":"cell"' in line]) == CELLS:
        ended = forks.carry_out(*RESUME)
        assert ended.code == 0, ended
    elif before:
        ended = forks.carry_out(*RESUME)
        assert ended.code == 2 and ended.said.count("\n") == 1 and "delete it and begin again" in ended.said
        return
    else:
        ended = forks.carry_out(*WORDS)
        assert ended.code == 0, ended
    assert lines_of(forks).startswith(before)
    run = storage.load(forks.work / "run")
    assert run.complete and (forks.work / "run" / "table.md").is_file()
    blocks = [block for result in run for block in result.blocks]
    slots = {launch.number: launch.slot for launch in run.launches}
    last = [launch.number for launch in run.launches if launch.stopped != "interrupted"]
    assert sorted(slots[number] for number in last) == list(range(LAUNCHES))
    for number in last:
        assert sum(block.launch == number for block in blocks) == ROUNDS * CELLS, "a fresh process measures in full"
    visits = [(slots[block.launch], block.round, block.cell) for block in blocks]
    assert len(visits) == len(set(visits)), "nothing is measured twice"
    for slot in range(LAUNCHES):
        rounds = {round for at, round, _ in visits if at == slot}
        assert rounds == set(range(len(rounds)))


@pytest.fixture(scope="module")
def whole(forks: Forks) -> Ended:
    """A run that is left alone, in which the calls are counted."""
    ended = forks.carry_out(*WORDS, at_call=-1)
    assert ended.code == 0
    return ended


STAGES = (("", "header", 10), ("header", "warmup", 5), ("warmup", "complete", 20), ("complete", "over", 15))
"""From one record to the next, so many kills: counting; the header and the plan; the launches; verdicts and figures."""


def test_kill_9_at_any_call_loses_nothing(forks: Forks, whole: Ended) -> None:
    draw, outside, seen = random.Random(SEED), forks.outside(), []
    at = {"": 0} | dict(zip(reversed(whole.acknowledged), reversed(whole.calls), strict=True))
    for first, last, kills in STAGES:
        for number in range(kills):
            empty(forks)
            ended = forks.carry_out(*WORDS, at_call=draw.randint(at[first] + 1, at[last]))
            seen.append(lost_nothing(forks, ended, b"", outside))
            if number % 5 == 0:
                finish(forks)
    assert set(seen) == {"nothing", "header", "blocks", "complete"}
    assert len(seen) == 50


def test_an_end_in_the_middle_of_a_line_costs_that_line(forks: Forks, whole: Ended) -> None:
    """What a power cut leaves behind, and what a resumed run then leaves behind."""
    draw, outside, before, words = random.Random(SEED + 1), forks.outside(), b"", WORDS
    lines = whole.acknowledged.index("end")
    for number in range(6):
        at = draw.randint(lines - 14, lines) if number == 0 else draw.randint(1, 8)
        ended = forks.carry_out(*words, in_line=at)
        assert (forks.work / "run" / "run.jsonl").read_bytes()[-1:] != b"\n"
        lost_nothing(forks, ended, before, outside)
        assert len(ended.acknowledged) == at - 1
        before, words = lines_of(forks), RESUME
    finish(forks)


def test_kill_9_at_any_time_loses_nothing(forks: Forks) -> None:
    """From outside: the run, and every attempt to go on with it, at moments over the length of an undisturbed one."""
    draw, outside = random.Random(SEED + 2), forks.outside()
    start = time.monotonic()
    assert forks.carry_out(*WORDS).code == 0
    length, kills = time.monotonic() - start, 0
    while kills < 40:
        empty(forks)
        words, before = WORDS, b""
        for _ in range(8):
            process = forks.start(*words)
            time.sleep(length * draw.random())
            os.kill(process, signal.SIGKILL)
            ended = forks.end()
            if ended.code == 0:
                break  # it was done before
            kills += 1
            lost_nothing(forks, ended, before, outside)
            before = lines_of(forks)
            if before.count(b'"kind":"cell"') == CELLS:
                words = RESUME
            elif before:
                break
        finish(forks)


# --- the measuring process ---------------------------------------------------------------------------


def test_a_killed_measuring_process_costs_its_cell_and_no_more(forks: Forks) -> None:
    """A study of many cells, whose process is killed in each launch as long as two cells are left."""
    cells, draw, killed = 24, random.Random(SEED + 3), 0
    text = (forks.work / "tiny.py").read_text().replace(SAMPLING, SAMPLING_OF_MANY)
    text = text.replace("cases=(case(1), case(2))", f"cases=tuple(map(case, range(1, {cells + 1})))")
    (forks.work / "many.py").write_text(text.replace('"groups": groups, "blocks"', '"groups": 1, "blocks"'))
    outside = forks.outside()
    for _ in range(6):
        empty(forks)
        process = psutil.Process(forks.start("run", "many.py", "--device", "fake", "--out", "run", "--json"))
        for launch in range(cells - 2):
            if not wait_for_launch(forks, launch, process):
                break
            time.sleep(0.02 * draw.random())
            for worker in process.children():
                worker.kill()
        ended = forks.end()
        assert ended.code == 0, ended
        assert forks.outside() == outside
        shown = json.loads(ended.said)["cells"]
        reasons = [cell["skipped"] for cell in shown if cell["skipped"] is not None]
        run = storage.load(forks.work / "run")
        interrupted = [launch for launch in run.launches if launch.stopped == "interrupted"]
        assert len(reasons) == len(interrupted) and all("SIGKILL" in reason for reason in reasons)
        assert run.complete and run.launches[-1].stopped == "rounds"
        blocks = kinds(forks.work / "run").count("block")
        assert sum(len(result.blocks) for result in run) == sum(cell["blocks"] for cell in shown) == blocks
        killed += len(reasons)
        print("KILLED", killed)
        if killed >= 20:
            return
    raise AssertionError(f"only {killed} processes were killed before their end")


SAMPLING_OF_MANY = "launches=1, min_rounds=600, max_rounds=600, warmup_s=0.0, max_warmup_s=0.05, budget_s=1e9"
"""So many rounds that a launch on the scripted clock takes longer than it takes to notice that it has begun."""


def wait_for_launch(forks: Forks, launch: int, process: psutil.Process) -> bool:
    """Until the first cell of this launch is warm, as the file says. False where the run ends before."""
    path, seen = forks.work / "run" / "run.jsonl", f'{{"kind":"warmup","launch":{launch},'.encode()
    while process.status() != psutil.STATUS_ZOMBIE:
        if path.exists() and seen in path.read_bytes():
            return True
        time.sleep(0.002)
    return False
