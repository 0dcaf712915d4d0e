"""effbench in a process of its own without the price of importing torch: each is a fork of a process that did.

The fork has effbench imported as well, and has its own folder, variables and streams, and ends as Python ends. Its
measuring processes are forks of it in turn where that changes nothing (tests/support/measuring.py). Where coverage
looks, or a file of the folder could be taken for effbench, it imports effbench afresh.

The files that a run leaves beside its own hold a blank picture, unless a test asks for `figures`: to draw them takes
longer than all the rest of a small run.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
import tracing

ROOT = Path(__file__).resolve().parents[2]

LIBRARIES = (
    *("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch.utils.flop_counter", "torch.profiler"),
    *(
        "fvcore.nn",
        "matplotlib.pyplot",
        "pandas",
        "scipy.stats",
        "typer",
        "typer._adapters",
        "rich.progress",
        "jinja2",
        "psutil",
        "coverage",
    ),
)
"""What takes time to import and is not ours."""

DECIDED_AT_START = ("PYTHON", "LD_", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_")
"""Variables that Python and its libraries read once: a fork cannot have others than its parent."""

HANGS_S = 900
"""Seconds after which a process counts as hanging: many times what any takes on a slow machine.

A process that hangs on purpose sleeps far longer, or it would end in time.
"""

NURSERY = f"""
import atexit, contextlib, gc, importlib, json, os, runpy, signal, socket, sys, threading, traceback, warnings

door = socket.socket(fileno=int(sys.argv[1]))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in {LIBRARIES!r}:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
import measuring
import nursery_child
del sys.path[0]
measuring.install()
nursery_child.load_effbench()
gc.collect()
gc.freeze()
while True:
    data, streams, _, _ = socket.recv_fds(door, 65536, 4)
    if not data:
        door.close()
        sys.exit()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    while not data.endswith(b"\\n"):
        data += door.recv(65536)
    if len(streams) == 4:
        # One that goes on while others are asked for: a process between here and there waits for it.
        if os.fork():
            for stream in streams:
                os.close(stream)
            continue
        told = streams.pop()
        child = os.fork()
        if not child:
            os.close(told)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            break
        for stream in streams:
            os.close(stream)
        os.write(told, b"%d\\n" % child)
        os.write(told, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    child = os.fork()
    if not child:
        break
    for stream in streams:
        os.close(stream)
    door.sendall(b"%d\\n" % child)
    door.sendall(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

door.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
for number, name, how in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
    old = getattr(sys, name)
    new = open(number, how, 1 if number == 2 else -1, old.encoding, old.errors, closefd=False)
    setattr(sys, name, new)
    setattr(sys, "__" + name + "__", new)
order = json.loads(data)
if order["coverage"]:
    import coverage
    coverage.Coverage(**order["coverage"], data_suffix=True, auto_data=True).start()
os.chdir(order["cwd"])
program = order["program"]
is_ours = program in ("effbench", "benchmarks.gpu")
nursery_child.begin(afresh=bool(order["coverage"]) or not is_ours, figures=order["figures"])
os.environ.clear()
os.environ.update(order["env"])
sys.path[:1] = [os.getcwd(), *filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))]
sys.argv = ["-m", *order["words"]]
sys.orig_argv = [sys.executable, "-m", program, *order["words"]]
code = 0
try:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
# To take down all that was imported would mean to copy it first.
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


def fixed(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(DECIDED_AT_START)}


def suits(env: Mapping[str, str], paths: bool = False) -> bool:
    """Can a command with these variables be a fork? With `paths` PYTHONPATH may lead to other code of the user."""
    if not hasattr(os, "fork"):
        return False
    changed = dict(nursery().fixed.items() ^ fixed(env).items())
    return not changed or (paths and changed.keys() == {"PYTHONPATH"})


class Nursery:
    """A process with every library imported. It waits for orders and ends with whoever started it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.fixed = fixed(env)
        self._door, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", NURSERY, str(theirs.fileno())],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lines = self._door.makefile("rb")

    def _order(self, pipes: int, terminal: int | None = None, **order: Any) -> list[IO[str]]:
        """Ask for a command; the near ends of its standard output, its standard error and further pipes.

        With a `terminal` standard error goes there.
        """
        read = []
        self._door.settimeout(HANGS_S)
        with open(os.devnull, "rb") as nothing:
            theirs = [nothing.fileno()]
            for _ in range(pipes):
                ours, end = os.pipe()
                read.append(open(ours, encoding="utf-8", errors="strict"))  # noqa: SIM115 closed by the caller
                theirs.append(end)
            passed = theirs if terminal is None else [*theirs[:2], terminal, *theirs[3:]]
            socket.send_fds(self._door, [json.dumps(order).encode() + b"\n"], passed)
            for end in theirs[1:]:
                os.close(end)
        return read

    def start(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], terminal: int | None = None) -> Started:
        """A command that runs while the test goes on. Coverage does not look: Ctrl-C may find its lock taken."""
        order = {"program": "effbench", "words": words, "cwd": str(cwd), "env": dict(env)}
        streams = self._order(3, terminal, **order, coverage={}, figures=False)
        self._door.settimeout(None)
        return Started(*streams)

    def run(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        timeout: float = HANGS_S,
        *,
        figures: bool = False,
        program: str = "effbench",
    ) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of one command. Ends it and fails after `timeout` seconds.

        Coverage looks at effbench alone. A `program` that is not ours imports effbench afresh.
        """
        order = {"program": program, "words": words, "cwd": str(cwd), "env": dict(env), "figures": figures}
        read = self._order(2, **order, coverage=coverage_settings() if program == "effbench" else {})
        process = int(self._lines.readline())
        self._door.settimeout(None)
        with ThreadPoolExecutor(2) as readers:
            said = [readers.submit(stream.read) for stream in read]
            try:
                out, err = (one.result(timeout) for one in said)
            except TimeoutError:
                os.kill(process, signal.SIGKILL)
                self._lines.readline()
                pytest.fail(f"{program} {' '.join(words)} took more than {timeout} s")
        for stream in read:
            stream.close()
        return int(self._lines.readline()), out, err

    def close(self) -> None:
        self._lines.close()
        self._door.close()
        self._process.wait()


class Started:
    """A command that runs: as much of `subprocess.Popen` as tests ask for."""

    def __init__(self, stdout: IO[str], stderr: IO[str], told: IO[str]) -> None:
        self.stdout, self.stderr, self._told = stdout, stderr, told
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], seconds)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it says until its end."""
        with ThreadPoolExecutor(2) as readers:
            said = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                out, err = (one.result(timeout) for one in said)
            except TimeoutError:
                self.kill()
                raise
        self.wait(timeout)
        return out, err

    def close(self) -> None:
        for stream in (self.stdout, self.stderr, self._told):
            stream.close()


def coverage_settings() -> dict[str, Any]:
    """How the coverage that looks at this process looks at another one; nothing where there is none, or for a while."""
    ours = sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None
    if tracing.depth or ours is None:
        return {}
    files = {"config_file": str(ROOT / "pyproject.toml"), "data_file": str(ROOT / ".coverage")}
    return {**files, "branch": bool(ours.get_option("run:branch"))}  # where --cov-branch asks for them, they are in all


@cache
def nursery() -> Nursery:
    """The one of this test process, started when it is first needed."""
    from shell import environment

    found = Nursery(environment())
    atexit.register(found.close)
    return found
