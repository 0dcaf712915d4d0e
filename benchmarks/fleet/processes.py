"""A scheduler and workers as processes over TLS on loopback, as users start them, and what such a process costs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.session import ROOT
from effbench.core.errors import EffbenchError
from effbench.fleet import authority, certificates, session
from effbench.fleet.addresses import Address
from effbench.fleet.config import FleetConfig
from effbench.fleet.session import Place

UP_S = 60.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spent:
    """What a process has spent since it began, and what it holds."""

    cpu_s: float
    wake_ups: int
    """Of all of its threads: each voluntary switch ends with one."""
    preempted: int
    resident_bytes: int
    threads: int


def spent(pid: int) -> Spent:
    """Read what a process has spent, from /proc."""
    cpu_s, waits, preempted, threads = 0.0, 0, 0, 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        threads += 1
        for line in (thread / "status").read_text().splitlines():
            waits += int(line.split()[1]) if line.startswith("voluntary") else 0
            preempted += int(line.split()[1]) if line.startswith("nonvoluntary") else 0
        cpu_s += int((thread / "schedstat").read_text().split()[0]) * 1e-9  # finer than the ticks of /proc/PID/stat
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Spent(cpu_s, waits, preempted, pages * os.sysconf("SC_PAGE_SIZE"), threads)


class LocalFleet:
    """A scheduler and workers on this machine, each a process; use `local_fleet`."""

    def __init__(self, folder: Path, cores: Sequence[int] = ()) -> None:
        self._folder = folder
        self._pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
        self._started: list[subprocess.Popen[bytes]] = []
        authority.create(folder / "certs", ["all"])
        self._certs = folder / "certs" / "all"
        self.address = Address("tls", "127.0.0.1", _free_port())
        own = certificates.load(self._certs)
        self.place = Place(self.address, self._certs, own, FleetConfig())
        self.scheduler = self._start(
            "effbench", "fleet", "scheduler", "--port", self.address.port, "--certs", self._certs
        )

    def add_worker(self, name: str) -> int:
        """Start a worker as `effbench fleet worker` does, and wait until it is connected. Returns its process."""
        own = ["--folder", self._folder / name, "--lock", self._folder / f"{name}.lock", "--host", "127.0.0.1"]
        pid = self._start("effbench", "fleet", "worker", self.address, "--name", name, "--certs", self._certs, *own)
        self._await(lambda: name in session.machines(self.place))
        return pid

    def add_default_worker(self) -> int:
        """Start a worker with dask's own settings, and wait until it is connected. Returns its process."""
        tls = ["--tls-ca-file", self._certs / "ca.pem", "--tls-cert", self._certs / "cert.pem"]
        tls += ["--tls-key", self._certs / "key.pem"]
        log = self._folder / "default.log"
        with log.open("wb") as file:
            own = ["--no-nanny", "--nthreads", 2, "--local-directory", self._folder, "--host", "127.0.0.1", *tls]
            pid = self._start("distributed.cli.dask_worker", str(self.address), *own, log=file.fileno())
        self._await(lambda: b"Registered to" in log.read_bytes())
        return pid

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self._started):
            process.kill()
            process.wait()

    def _start(self, module: str, *words: object, log: int = subprocess.DEVNULL) -> int:
        command = [*self._pinned, sys.executable, "-m", module, *map(str, words)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        self._started.append(process)
        return process.pid

    def _await(self, is_there: object) -> None:
        assert callable(is_there)
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            for process in self._started:
                if process.poll() is not None:
                    raise RuntimeError(f"a process of the fleet ended with {process.returncode}: {process.args!r}")
            try:
                if is_there():
                    return
            except EffbenchError:  # the scheduler is not up yet
                pass
            time.sleep(0.3)
        raise RuntimeError(f"the fleet was not up within {UP_S:g} s")


@contextmanager
def local_fleet(folder: Path, cores: Sequence[int] = ()) -> Iterator[LocalFleet]:
    """Start a scheduler, on these cores only where some are named. Its processes end with the block."""
    fleet = LocalFleet(folder, cores)
    try:
        yield fleet
    finally:
        fleet.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
