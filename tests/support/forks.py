"""Many real runs for little: one process imports everything and goes through a run once, and each run is a fork of it.

Each fork is a process of its own, with a measuring process of its own, in a folder that is watched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nursery import HANGS_S
from shell import environment, study_file

from effbench.host import temporary_folders

LAUNCHES, ROUNDS, CELLS = 3, 6, 2
SAMPLING = f"launches={LAUNCHES}, min_rounds={ROUNDS}, max_rounds={ROUNDS}, warmup_s=0.0, max_warmup_s=0.05"
WORDS = ("run", "tiny.py", "--device", "fake", "--out", "run")
RESUME = ("run", "--resume", "run")
FORKS = """
import gc, json, os, resource, signal, sys

from effbench.cli import app as cli
from effbench.runs import run_file as storage

FOLDER = os.getcwd()
told = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
cli.main(["run", "tiny.py", "--device", "fake", "--out", "rehearsal"])
append = storage.RunWriter.append
print("ready", file=told)


def acknowledged(writer, kind, **values):
    global own
    own = writer._descriptor
    append(writer, kind, **values)
    os.write(9, kind.encode() + b" %d\\n" % calls)
    if counted and kind == after and sys.getprofile() is None:
        sys.setprofile(counted)


calls, after, counted, own = 0, "", None, -1
sys.path.insert(0, sys.argv[2])
import measuring
import nursery_child

del sys.path[0]
measuring.install(afresh=False)
gc.collect()
gc.freeze()


def carry_out(order):
    global after, counted
    os.dup2(os.open(order["said"], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(1, 2)
    os.dup2(os.open(order["acknowledged"], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), 9)
    os.environ["MARK"] = order["mark"]
    os.chdir(order["folder"])
    nursery_child.begin(afresh=False, figures=order["figures"])
    storage.RunWriter.append = acknowledged

    at_call, after = order["at_call"], order["after"]

    def count(frame, event, argument):
        global calls
        calls += 1
        if calls == at_call:
            os.kill(os.getpid(), signal.SIGKILL)

    really, lines = os.write, 0

    def torn(descriptor, data):
        nonlocal lines
        # Orders to a measuring process and our own notes are written by the same function.
        is_line = descriptor == own
        lines += is_line
        if is_line and lines == order["in_line"]:
            really(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        written = really(descriptor, data)
        if is_line and order["after_line"] and data.startswith(order["after_line"].encode()):
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    if order["in_line"] or order["after_line"]:
        os.write = torn
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    counted = count if at_call else None
    if counted and not after:
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
            [sys.executable, "-c", FORKS, str(home), str(Path(__file__).parent)],
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
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def start(
        self,
        *words: str,
        at_call: int = 0,
        after: str = "",
        in_line: int = 0,
        after_line: str = "",
        file_limit: int = 0,
        figures: bool = False,
    ) -> int:
        """Fork off one run and return its process id.

        It kills itself at this function call, counted from the first record of the kind `after` on, in the middle of
        this line, or after the first line that begins so; no file may grow beyond `file_limit`. Figures are blank
        unless it is to draw `figures`: kills would hit little but the drawing of them.
        """
        self._number += 1
        self.mark = f"{os.getpid()}-{self._number}"
        notes = self.home / "notes"
        order = {"words": words, "folder": str(self.work), "mark": self.mark}
        order |= {"at_call": at_call, "after": after, "file_limit": file_limit}
        order |= {"in_line": in_line, "after_line": after_line, "figures": figures}
        order |= {"said": str(notes / "said"), "acknowledged": str(notes / "acknowledged")}
        for note in ("said", "acknowledged"):
            (notes / note).write_text("")  # here: a fork that is killed at once would leave those of the run before
        self._tell(json.dumps(order))
        return int(self._line())

    def end(self) -> Ended:
        """Wait for the fork, and for whatever it started."""
        self._tell("wait for it")
        code = int(self._line())
        limit = time.monotonic() + HANGS_S
        while left := self.started():
            assert time.monotonic() < limit, f"left over: {left}"
            time.sleep(0.01)
        notes = self.home / "notes"
        seen = [line.split() for line in (notes / "acknowledged").read_text().splitlines()]
        return Ended(code, (notes / "said").read_text(), [kind for kind, _ in seen], [int(at) for _, at in seen])

    def carry_out(self, *words: str, **moment: Any) -> Ended:
        self.start(*words, **moment)
        return self.end()

    def empty(self) -> None:
        """An output folder that holds nothing."""
        for path in sorted((self.work / "run").rglob("*"), reverse=True):
            path.unlink()

    def lines(self) -> bytes:
        """The whole lines of the run's file."""
        path = self.work / "run" / "run.jsonl"
        data = path.read_bytes() if path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def started(self) -> list[psutil.Process]:
        """Every process of the last order that is still there, wherever it was passed on to."""
        found, ours = [], self._process.args
        for process in psutil.process_iter():
            try:
                is_fork = process.cmdline() == ours and process.pid != self._process.pid
                if is_fork or process.environ().get("MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def outside(self) -> dict[str, tuple[int, int]]:
        """All files but those of the output folder and of temporary ones, which the next process removes, with size and
        time of change.
        """
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for folder in (self.work, self.own, self.home / "tmp")
            for path in folder.rglob("*")
            if path.is_file() and self.work / "run" not in path.parents and path.name != temporary_folders.LOCK
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
