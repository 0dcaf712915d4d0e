"""effbench as its users run it, in real processes, and the files they give it. Shared by the command line's tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

import nursery
from nursery import HANGS_S

Running: TypeAlias = "subprocess.Popen[str] | nursery.Started"

EFFBENCH = (sys.executable, "-m", "effbench")

STUDY = """
from effbench.core.study import Case, Claim, Experiment, Sampling

def case(groups):
    arguments = {{"channels": 8, "groups": groups, "blocks": 1}}
    return Case("probe_groups", (8, 8, 8), arguments, labels={{"groups": groups}})

EXPERIMENT = Experiment(
    name={name!r}, title="Tiny", claim="More groups run slower.", factor="groups", levels=(1, 2), reference=1,
    cases=(case(1), case(2)), claims=(Claim("slower", "2 is slower than 1.", ((2, 1),), headline=(2, 1)),),
    sampling=Sampling({sampling}),
)
"""
"""Two cells that are measured in no time."""

QUICKLY = "launches=2, min_rounds=3, max_rounds=4, warmup_s=0.0, max_warmup_s=0.05, block_s=0.001"


@dataclass(frozen=True)
class Done:
    """How a process ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@contextmanager
def started(
    *words: object, cwd: Path, variables: Mapping[str, str] | None = None, terminal: int | None = None
) -> Iterator[Running]:
    """A command that runs while the test does something to it; ended afterwards in any case.

    With a `terminal` its standard error goes there.
    """
    env = {**environment(), **(variables or {})}
    if terminal is not None:
        env |= {"TERM": "xterm", "COLUMNS": "160"}
    if nursery.suits(env):
        process = nursery.nursery().start(list(map(str, words)), cwd, env, terminal)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.close()
        return
    with subprocess.Popen(
        [*EFFBENCH, *map(str, words)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(condition: Callable[[], bool], process: Running, seconds: float = HANGS_S) -> None:
    """Until the condition holds. Fails where the process ends before, and where it takes longer than that."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < limit, process.communicate(timeout=1)
        time.sleep(0.02)


def effbench(
    *words: object,
    cwd: Path,
    timeout: float = HANGS_S,
    variables: Mapping[str, str] | None = None,
    fresh: bool = False,
    figures: bool = False,
    paths: bool = False,
    **options: Any,
) -> Done:
    """Run one command to its end, in a process of its own that takes its imported libraries from another one.

    What wants a process that imports everything itself says `fresh`, or passes options of `subprocess.run`. Pictures
    are blank unless it is to draw `figures`; a page always has its own. What reads nothing but user code from
    another PYTHONPATH says `paths`.
    """
    typed, env = list(map(str, words)), {**environment(), **(variables or {})}
    if not (fresh or options) and nursery.suits(env, paths):
        figures = figures or typed[:1] == ["report"]
        return Done(*nursery.nursery().run(typed, cwd, env, timeout, figures=figures))
    done = subprocess.run(
        [*EFFBENCH, *typed], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, **options
    )
    return Done(done.returncode, done.stdout, done.stderr)


def forked_pytest(*words: str, cwd: Path) -> Done:
    """pytest as a user's project runs it, without our settings, in a fork of a process that has torch imported.

    Of the plug-ins that are installed it has effbench's and the one that this builds on: others take seconds to import.
    """
    env = {key: value for key, value in environment().items() if not key.startswith("PYTEST_")}
    others = {found.name for found in entry_points(group="pytest11")} - {"effbench", "benchmark"}
    typed = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", *words]
    typed += [f"-pno:{name}" for name in sorted(others)]
    return Done(*nursery.nursery().run(typed, cwd, env, program="pytest"))


def refusal(done: Done, code: int = 2) -> str:
    """The one line with which a command refused. Fails unless that is all it said."""
    assert done.code == code, (done.code, done.err)
    assert done.out == ""
    assert done.err.startswith("effbench: ") and done.err.endswith("\n"), done.err
    line = done.err[:-1]
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line), line
    assert "Traceback" not in line and len(line) < 1000, line
    return line.removeprefix("effbench: ")


def study_file(folder: Path, sampling: str = QUICKLY, name: str = "tiny") -> Path:
    path = folder / "tiny.py"
    path.write_text(STUDY.format(name=name, sampling=sampling))
    return path


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's file, parsed without effbench."""
    whole = (run / "run.jsonl").read_bytes()
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]


def kinds(run: Path) -> list[str]:
    return [record["kind"] for record in records(run)]
