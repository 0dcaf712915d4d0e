"""What a step costs beside its launch: starting the interpreter, imports, loading the run, telling how far it is."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fleet import recorded
from benchmarks.fleet.record import Outcome, Target
from benchmarks.peers.session import ROOT
from effbench.fleet import readiness
from effbench.runs import run_file

COST_S = 1.0

PROGRAM = """
import resource, sys
from effbench.fleet import step
code = step.carry_out()
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
sys.exit(code)
"""
"""`effbench.fleet.step`, which then tells the CPU time of its own process, without that of the launch's."""


def measure(launches: int = 10) -> Outcome:
    """Carry out the launches of a run on the fake device, each by a step. The first, which also counts, is left out."""
    with tempfile.TemporaryDirectory(prefix="effbench-fleet-") as folder:
        steps = list(_steps(Path(folder), launches + 1))
    first, rest = steps[0], steps[1:]
    load_s = _load_s()
    beside = [step["wall_s"] - step["launch_s"] for step in rest]
    found = statistics.median(beside)
    imports_s = _import_s()
    targets = [
        Target("wall time of a step beside its launch", f"<= {COST_S:g} s", f"{found:.2f} s", found <= COST_S),
        Target("CPU time of its process", "", f"{statistics.median(step['cpu_s'] for step in rest):.2f} s"),
        Target("of that, an interpreter that imports what a step does", "", f"{imports_s:.2f} s"),
        Target("each time that a file of 0.37 MB is loaded", "", f"{load_s * 1e3:.0f} ms CPU"),
        Target("on a real device: the machine is watched before a launch", "", f"{readiness.WINDOW_S:g} s"),
        Target("the first step, which counts, in all", "", f"{first['wall_s']:.1f} s"),
    ]
    return Outcome(targets, {"launches": launches, "device": "fake"}, {"steps": steps, "load_s": load_s})


def _steps(folder: Path, launches: int) -> Iterator[dict[str, Any]]:
    order = {
        "run": "step-cost",
        "machine": "here",
        "study": "g2_groups",
        "arguments": {"scale": "x1"},
        "options": {"device": "fake", "launches": launches},
        "folder": str(folder),
        "lock": str(folder / "lock"),
    }
    for number in range(launches):
        begun = time.perf_counter()
        with _python("-c", PROGRAM) as step:
            assert step.stdin is not None and step.stdout is not None and step.stderr is not None
            step.stdin.write(json.dumps(order).encode() + b"\n")
            step.stdin.flush()
            said = step.stdout.read()  # its input stays open until it has ended
            code = step.wait()
            wall_s = time.perf_counter() - begun
            end, errors = json.loads(said.splitlines()[-1]), step.stderr.read().decode()
        if code not in (0, 5):
            raise RuntimeError(f"a step ended with {code}: {end} {errors[-500:]}")
        times = [
            json.loads(line) for line in (folder / "runs" / "step-cost" / run_file.RUN_FILE).read_bytes().splitlines()
        ]
        start = next(item["start"] for item in times if item["kind"] == "launch" and item["launch"] == number)
        ended = next(item["end"] for item in times if item["kind"] == "exit" and item["launch"] == number)
        launch_s = (datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(start)).total_seconds()
        yield {"wall_s": wall_s, "cpu_s": float(errors.splitlines()[-1]), "launch_s": launch_s, "size": end["size"]}


def _python(*words: str) -> subprocess.Popen[bytes]:
    """Start Python, which keeps its bytecode whatever the environment says: an installed package has it."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=variables, **pipes)


def _import_s() -> float:
    """Return the CPU seconds of a process that only imports what a step imports."""
    program = "import time, effbench.fleet.step, effbench.api; print(time.process_time())"
    taken = [float(_python("-c", program).communicate()[0]) for _ in range(4)]
    return statistics.median(taken[1:])


def _load_s() -> float:
    """Return the CPU seconds to load a real run of five launches."""
    taken = []
    for _ in range(5):
        begun = time.process_time()
        run_file.load(recorded.RUN)
        taken.append(time.process_time() - begun)
    return statistics.median(taken)
