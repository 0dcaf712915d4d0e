"""Processes of a fleet without the price of their imports: each is a fork of one process that has imported everything.

Whoever connects to its socket passes an order and three streams, gets a process id, and later the exit code. It serves
tests, and a launch's process, which a fleet's worker starts as ever: what that worker takes for its Python is `RELAY`,
which passes the streams on, lives as long as the fork does and ends as it ends. A worker has threads, so that it
cannot be forked itself.

Whatever is left over by a killed process becomes a child of the forking process, so that its descendants are all that
a fleet has running.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil
from nursery import ROOT, coverage_settings
from shell import environment

RELAY = """#!{python} -IS
import os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    order = b'{{"role": "step", "cwd": "", "words": ["fleet", "step"]}}\\n'
    socket.send_fds(door, [order], [0, 1, 2])
    with door.makefile("rb") as told:
        told.readline()
        code = int(told.readline() or 1)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""

SERVER = f"""
import atexit, ctypes, gc, json, os, resource, select, signal, socket, sys, threading, traceback

door = socket.socket(fileno=int(sys.argv[1]))
relay, settings = sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
import measuring
import nursery_child
del sys.path[0]
import psutil
import distributed
from effbench.fleet import dask_settings, serve, session, step
from effbench.cli import app
from effbench.cli import fleet_progress
from effbench.report.tables import fleet as tables
from effbench.runs import worker
from effbench import api
import effbench.runtimes.onnxruntime

# What a machine is like does not change from test to test, and to look at it takes a second.
facts = serve.machine_facts()
serve.machine_facts = lambda: facts
serve.serve_worker.__kwdefaults__["retry_s"] = settings["retry_s"]
measuring.install(afresh=False)
# A folder of data beside the packages is called effbench too. No test of a fleet has code that could be taken for it.
measuring._finds_the_same_effbench = lambda: True
libc = ctypes.CDLL(None)
libc.prctl(36, 1, 0, 0, 0)  # whoever has lost its parent becomes a child of this process


def call(order, streams):
    libc.prctl(15, order["role"].encode(), 0, 0, 0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number, name, how in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        new = open(number, how, 1 if number == 2 else -1, "utf-8", closefd=False)
        setattr(sys, name, new)
        setattr(sys, "__" + name + "__", new)
    if order["cwd"]:
        os.chdir(order["cwd"])
    if coverage := settings["coverage"]:
        import coverage as tool
        tool.Coverage(**coverage, data_suffix=True, auto_data=True).start()
    if order["role"] == "worker":
        sys.executable = relay
    if ttl := order.get("ttl"):
        dask_settings.SETTINGS["distributed.scheduler.worker-ttl"] = ttl
        distributed.scheduler.heartbeat_interval = lambda machines: 0.1  # of which ten are allowed to be late
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    code = 1
    try:
        code = step.carry_out() if order["role"] == "step" else app.main(order["words"])
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def attend(connection):
    # One process a caller: it tells how its child ends, and ends it when the caller goes away.
    libc.prctl(15, b"attendant", 0, 0, 0)
    data, streams, _, _ = socket.recv_fds(connection, 65536, 3)
    while not data.endswith(b"\\n"):
        data += connection.recv(65536)
    order = json.loads(data)
    child = os.fork()
    if not child:
        connection.close()
        call(order, streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    connection.sendall(b"%d\\n" % child)
    ready = select.select([connection, ended], [], [])[0]
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(b"%d\\n" % code)
    except OSError:
        pass
    os._exit(0)


gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, lambda *_: None)
wake, woken = socket.socketpair()
woken.setblocking(False)
signal.set_wakeup_fd(woken.fileno())
print("ready", flush=True)
while True:
    ready = select.select([door, wake, 0], [], [])[0]
    if 0 in ready:  # whoever started this has ended
        for left in psutil.Process().children(recursive=True):
            try:
                left.kill()
            except psutil.Error:
                pass
        os._exit(0)
    if wake in ready:
        wake.recv(4096)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    if door in ready:
        connection = door.accept()[0]
        if not os.fork():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            wake.close()
            woken.close()
            attend(connection)
        connection.close()
"""


class Process:
    """A fork that runs. What it says goes to a file, so that nothing waits for whoever reads it."""

    def __init__(self, door: str, role: str, words: Sequence[str], cwd: Path, said: Path, **limits: object) -> None:
        self.role, self.said, self.returncode = role, said, None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(door)
        order = {"role": role, "words": list(words), "cwd": str(cwd), **limits}
        with open(os.devnull, "rb") as nothing, said.with_suffix(".out").open("wb") as out, said.open("wb") as err:
            streams = [nothing.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._connection, [json.dumps(order).encode() + b"\n"], streams)
        self._told = self._connection.makefile("rb")
        self.pid = int(self._told.readline())

    returncode: int | None

    @property
    def out(self) -> str:
        return self.said.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.said.read_text()

    def wait(self, timeout: float | None = 60.0) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise AssertionError(f"{self.role} {self.pid} goes on after {timeout} s; it said: {self.err}")
            self.returncode = int(self._told.readline())
            self._told.close()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait()

    def sockets(self) -> set[str]:
        """The addresses at which it listens, without ports."""
        found = psutil.Process(self.pid).net_connections("inet")
        return {item.laddr.ip for item in found if item.status == psutil.CONN_LISTEN or item.type == socket.SOCK_DGRAM}


class Forks:
    """The process that forks. Its workers look for a lost scheduler every `retry_s`."""

    def __init__(self, home: Path, *, retry_s: float = 0.1) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="fleet-")  # a socket's path is short
        self.door = os.path.join(self._place.name, "door")
        self.home, self._number = home, 0
        relay = Path(self._place.name, "python")
        relay.write_text(RELAY.format(python=os.path.realpath(sys.executable), door=self.door))
        relay.chmod(0o700)
        settings = {"retry_s": retry_s, "coverage": coverage_settings()}
        (home / "tmp").mkdir()
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(self.door)
            door.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(door.fileno()), str(relay), json.dumps(settings)],
                env={**environment(), "TMPDIR": str(home / "tmp"), "PYTHONWARNINGS": "ignore"},
                cwd=home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[door.fileno()],
                start_new_session=True,
            )
        assert _stream(self._process.stdout).readline() == b"ready\n"

    def start(self, role: str, *words: object, cwd: Path | None = None, **limits: object) -> Process:
        """Start a scheduler, a worker or a client.

        `limits` are ``ttl`` (after how long a silent machine counts as gone) and ``file_limit`` (the most bytes of a
        file, as on a full disk).
        """
        self._number += 1
        said = self.home / f"{self._number}-{role}.err"
        return Process(self.door, role, list(map(str, words)), cwd or self.home, said, **limits)

    def running(self) -> list[psutil.Process]:
        """All that runs, but for those who attend to it."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if process.name() != "attendant" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def steps(self) -> list[psutil.Process]:
        """The processes of launches, without those that measure, which are forks of them."""
        found = []
        for process in self.running():
            try:
                parent = process.parent()
                if process.name() == "step" and parent is not None and parent.name() == "attendant":
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        _stream(self._process.stdin).close()
        self._process.wait(30)
        _stream(self._process.stdout).close()
        self._place.cleanup()


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
