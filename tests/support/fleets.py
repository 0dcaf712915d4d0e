"""A fleet of a scheduler and three machines on loopback with TLS, as real processes, for tests."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fleet_forks import Forks, Process

from effbench.fleet import authority, session
from effbench.fleet.conductor import Progress, Timing
from effbench.fleet.session import Place, Wanted

NAMES = ("pi5-a", "pi5-b", "gpu-1")
LABELS = {"pi5-a": ("board=pi5",), "pi5-b": ("board=pi5",), "gpu-1": ("device=cuda", "board=none")}
SOON_S = 30.0
"""What must happen has long happened by then, on a slow machine as well."""
FAST = Timing(patience_s=20.0, busy_s=0.1, look_s=0.1)
HOST = "127.0.0.1"


def until(condition: Callable[[], Any], what: str, seconds: float = SOON_S) -> Any:
    """Wait until the condition holds, and return what it said."""
    limit = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < limit, f"after {seconds} s not yet: {what}"
        time.sleep(0.02)
    return said


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@dataclass
class Fleet:
    """The processes of a fleet, and a client's folder in `home`."""

    forks: Forks
    certs: Path
    home: Path
    names: Sequence[str] = NAMES
    port: int = field(default_factory=free_port)
    scheduler: Process | None = None
    workers: dict[str, Process] = field(default_factory=dict)
    clients: list[Process] = field(default_factory=list)
    ttl: str | None = None
    number: int = 0

    @property
    def address(self) -> str:
        return f"tls://{HOST}:{self.port}"

    @property
    def place(self) -> Place:
        return session.find_place(self.address, self.certs / "alice", self.config)

    @property
    def config(self) -> Path:
        path = self.home / "fleet.toml"
        path.touch()
        return path

    def start(self) -> Fleet:
        self.start_scheduler()
        for name in self.names:
            self.start_worker(name)
        self.wait_for(*self.names)
        return self

    def start_scheduler(self) -> None:
        words = ("fleet", "scheduler", "--host", HOST, "--port", self.port, "--certs", self.certs / "hub")
        self.scheduler = self.forks.start("scheduler", *words, cwd=self.home, ttl=self.ttl)

    def start_worker(self, name: str, *more: object, certs: str | None = None) -> Process:
        words = ["fleet", "worker", self.address, "--name", name, "--certs", self.certs / (certs or name)]
        words += ["--folder", self.folder(name), "--lock", self.lock(name)]
        for label in LABELS.get(name, ()):
            words += ["--label", label]
        made = self.forks.start("worker", *words, *more, cwd=self.home, ttl=self.ttl)
        self.workers[name] = made
        return made

    def folder(self, name: str) -> Path:
        return self.home / "machines" / name

    def lock(self, name: str) -> Path:
        (self.home / "locks").mkdir(exist_ok=True)
        return self.home / "locks" / name

    def present(self) -> set[str]:
        return {name for name, item in session.machines(self.place).items() if item["present"] and item["facts"]}

    def wait_for(self, *names: str) -> None:
        """Until these workers, which were started just now, are connected."""
        for name in names:
            until(lambda name=name: "connected to" in self.workers[name].err, f"{name} is there")

    # --- runs -----------------------------------------------------------------------------------------

    def out(self) -> Path:
        """A client's folder that does not exist yet."""
        self.number += 1
        return self.home / f"out{self.number}"

    def order(self, bundle: Path, *on: str, out: Path | None = None, by: str = "alice@here", **options: Any) -> Path:
        out = out or self.out()
        wanted = Wanted(bundle=bundle, options={"device": "fake", "launches": 2, **options}, by=by, command="a test")
        session.order(self.place, out, on, wanted)
        return out

    def conduct(
        self, out: Path, *on: str, timing: Timing = FAST, told: list[Progress] | None = None
    ) -> dict[str, Progress]:
        """Conduct in this process."""
        seen: list[Progress] = [] if told is None else told
        with session.open_mirrors(out, session.stored_orders(out, on)) as mirrors:
            return session.conduct(self.place, mirrors, watch=seen.append, lost=lambda said: None, timing=timing)

    def client(self, *words: object, **limits: object) -> Process:
        """`effbench fleet …` as a process."""
        made = self.forks.start("client", "fleet", *words, "--config", self.config, cwd=self.home, **limits)
        self.clients.append(made)
        return made

    def resume(self, out: Path, *more: object, **limits: object) -> Process:
        return self.client("run", "--resume", out, *more, **limits)

    def on_machine(self, out: Path, name: str) -> Path:
        """The folder of the run on its machine."""
        return self.folder(name) / "runs" / self.stored(out, name)["order"]["run"]

    def stored(self, out: Path, name: str) -> Any:
        return json.loads((out / ".fleet" / f"{name}.json").read_text())

    def is_mirrored(self, out: Path, name: str) -> bool:
        return (out / name / "run.jsonl").read_bytes() == (self.on_machine(out, name) / "run.jsonl").read_bytes()

    # --- ends -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill all that runs."""
        for process in (*self.clients, *self.workers.values(), *filter(None, [self.scheduler])):
            process.kill()
        until(lambda: not self.mine(), "all processes of the fleet have ended", 10)

    def mine(self) -> list[psutil.Process]:
        """The fleet's processes: all of those whose working folder is its own."""
        found = []
        for process in self.forks.running():
            with suppress(psutil.Error):
                if process.cwd() == str(self.home):
                    found.append(process)
        return found


def make_certificates(folder: Path) -> Path:
    authority.create(folder, ["hub", "alice", "bob", *NAMES, "other"])
    return folder
