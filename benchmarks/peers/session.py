"""Run a part task by task, write each result to disk before the next task starts, and continue where a session
stopped.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "benchmarks"
INSIDE = Path(__file__).resolve().parent / "inside"
PACKAGES = (
    *("effbench", "torch", "torchvision", "pytest", "pytest-benchmark", "pyperf", "asv", "asv_runner"),
    *("fvcore", "ptflops", "torchinfo", "numpy", "scipy"),
)
REPORT_INTERVAL_S = 30.0
"""Seconds between two lines of progress if standard error is no terminal."""

Task = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What was promised, what was measured, and what the peers reach. `is_met` is None if nothing was measured."""

    what: str
    wanted: str
    found: str
    peers: str
    is_met: bool | None


@dataclass(frozen=True)
class Section:
    """The page's section on one part: blocks of Markdown, and the targets that it decides."""

    blocks: Sequence[str]
    targets: Sequence[Target] = ()


@dataclass(frozen=True)
class Part:
    """One question. `plan(is_smoke)` lists its tasks in order of execution; `measure` runs one task.

    `measure` may leave raw files in the machine's folder. `seconds` estimates a task on a quiet machine. `section`
    reads all rows, each joined with its task.
    """

    name: str
    title: str
    plan: Callable[[bool], list[Task]]
    measure: Callable[[Task, Path], Iterable[Row]]
    seconds: Callable[[Task], float]
    section: Callable[[list[Row]], Section]


@dataclass(frozen=True)
class Ledger:
    """The results of one part: JSON lines, one per task, each written at once."""

    path: Path

    def entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in _whole_lines(self.path.read_bytes())]

    def rows(self) -> list[Row]:
        return [{**entry["task"], **row} for entry in self.entries() for row in entry["rows"]]

    def add(self, task: Task, rows: Iterable[Row], seconds: float) -> None:
        entry = {"task": task, "at": now(), "seconds": round(seconds, 3), "rows": list(rows)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")

    def mend(self) -> None:
        """Drop an incomplete last line, which an interrupted session leaves."""
        if self.path.exists():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                self.path.write_bytes(data[: data.rfind(b"\n") + 1])


def _whole_lines(data: bytes) -> list[bytes]:
    return data[: data.rfind(b"\n") + 1].splitlines()


@dataclass
class Report:
    """Show progress: a bar on a terminal, otherwise a line every half minute."""

    total_s: float
    done_s: float = 0.0
    _said: float = field(default=-1e9)

    def say(self, doing: str) -> None:
        share = min(self.done_s / self.total_s, 1.0) if self.total_s else 1.0
        left = (self.total_s - self.done_s) / 60
        text = f"{share:4.0%}  about {left:.0f} min left  {doing}"
        if sys.stderr.isatty():
            filled = int(30 * share)
            print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text[:80]:80}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > REPORT_INTERVAL_S:
            self._said = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def left_to_do(part: Part, folder: Path, is_smoke: bool) -> list[Task]:
    done = [entry["task"] for entry in Ledger(folder / f"{part.name}.jsonl").entries()]
    return [task for task in part.plan(is_smoke) if task not in done]


def carry_out(part: Part, folder: Path, is_smoke: bool, report: Report) -> None:
    ledger = Ledger(folder / f"{part.name}.jsonl")
    ledger.mend()
    for task in left_to_do(part, folder, is_smoke):
        report.say(f"{part.name}: " + ", ".join(f"{key} {value}" for key, value in task.items()))
        started = time.monotonic()
        rows = list(part.measure(task, folder))
        ledger.add(task, rows, time.monotonic() - started)
        report.done_s += part.seconds(task)


def begin(folder: Path, command: str, parts: Sequence[str]) -> None:
    """Record this session: time, command, machine and versions. Contains no user name and no path."""
    entry = {"at": now(), "command": command, "parts": list(parts), "machine": facts(), "versions": versions()}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sessions.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def facts() -> dict[str, Any]:
    from effbench.host import machine

    cpu = machine.cpu()
    return {
        "cpu": cpu["cpu.model"] or platform.machine(),
        "cores": cpu["cpu.logical"],
        "hypervisor": machine.hypervisor(),
        "container": machine.container(),
        "memory_gib": round(machine.memory().get("MemTotal", 0) / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_1m": machine.load_average(),
    }


def versions() -> dict[str, str]:
    from effbench.host import facts as host_facts

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    commit, is_dirty = host_facts.checkout(ROOT)
    if commit:
        found["effbench commit"] = commit[:10] + ("+changes" if is_dirty else "")
    return found


def machine_name() -> str:
    """Return a folder name for this machine, such as amd-epyc-2-cores."""
    found = facts()
    return re.sub(r"[^a-z0-9]+", "-", f"{found['cpu']} {found['cores']} cores".lower()).strip("-")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# --- processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A finished process: exit code, output, and its wall and CPU time in seconds.

    `answer_s` are the seconds until the last of its standard output; a tool may draw figures afterwards.
    """

    code: int
    out: str
    err: str
    wall_s: float
    cpu_s: float
    answer_s: float = 0.0


def process(
    command: Sequence[object],
    *,
    folder: Path = ROOT,
    codes: Sequence[int] = (0,),
    variables: Mapping[str, str] | None = None,
    limit_s: float = 3600.0,
) -> Ended:
    """Run a command on one thread until it ends. Raises RuntimeError with its last output for a code not in `codes`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(variables or {})}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [str(word) for word in command]
    parts, answer = [], 0.0
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors) as running,
    ):
        limit = threading.Timer(limit_s, running.kill)
        limit.start()
        assert running.stdout is not None
        while part := os.read(running.stdout.fileno(), 1 << 16):
            parts.append(part)
            answer = time.perf_counter() - started
        code = running.wait()
        wall = time.perf_counter() - started
        limit.cancel()
        errors.seek(0)
        out, err = b"".join(parts).decode(errors="replace"), errors.read().decode(errors="replace")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code not in codes:
        last = (err.strip() or out.strip()).splitlines()[-12:]
        raise RuntimeError(
            f"{Path(str(command[0])).name} {' '.join(map(str, command[1:4]))} ended with {code}: " + "\n".join(last)
        )
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return Ended(code, out, err, wall, spent, answer)


def beside_python(name: str) -> str:
    """Return the path of an installed command in this Python's environment."""
    return str(Path(sys.executable).parent / name)


def shuffled(groups: Iterable[Sequence[Task]], seed: int) -> list[Task]:
    """Shuffle the tasks within each repeat with a seeded generator, so that drift affects every tool alike."""
    generator, found = random.Random(seed), []
    for group in groups:
        found += generator.sample(list(group), len(group))
    return found
