"""Whatever is killed, at whatever moment: the run goes on, nothing is measured twice or lost, nobody is left over."""

# ruff: noqa: E402 - what these import may be missing

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

for needed in ("distributed", "cryptography", "onnxruntime"):
    pytest.importorskip(needed)

import psutil
from fleets import NAMES, Fleet, until
from shell import records

from effbench.core.errors import EffbenchError
from effbench.fleet import session
from effbench.runs import run_file

StartFleet = Callable[..., Fleet]


def launches(run: Path) -> list[tuple[int, int]]:
    return [(item["launch"], item["slot"]) for item in records(run) if item["kind"] == "launch"]


def require_whole(fleet: Fleet, out: Path, name: str, number: int) -> None:
    """The copy is the machine's own, is complete, and has each launch once, beside those that were interrupted."""
    assert fleet.is_mirrored(out, name)
    run = run_file.load(out / name)
    assert run.complete
    begun = launches(out / name)
    assert [launch for launch, _ in begun] == list(range(len(begun)))
    finished = [launch.slot for launch in run.launches if launch.stopped != "interrupted"]
    assert sorted(finished) == list(range(number)), begun


def is_measuring(fleet: Fleet, out: Path, name: str) -> bool:
    path = fleet.on_machine(out, name) / "run.jsonl"
    return path.exists() and b'"kind":"block"' in path.read_bytes()[-400:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_ends_takes_its_launch_along(
    new_fleet: StartFleet, slow_bundle: Path, number: signal.Signals
) -> None:  # 8, 9
    fleet = new_fleet("pi5-a")
    out = fleet.order(slow_bundle, launches=1)
    client = fleet.resume(out)
    until(lambda: is_measuring(fleet, out, "pi5-a"), "it measures")
    worker = fleet.workers["pi5-a"]
    worker.signal(number)
    assert worker.wait(10) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], worker.err
    assert "Traceback" not in worker.err, worker.err
    until(lambda: {process.name() for process in fleet.mine()} <= {"scheduler", "client"}, "no launch goes on", 10)
    fleet.start_worker("pi5-a")
    assert client.wait() == 0, client.err
    require_whole(fleet, out, "pi5-a", 1)
    assert launches(out / "pi5-a") == [(0, 0), (1, 0)]  # the launch was interrupted, and made again
    assert "(1 of 3)" in client.err or "away" in client.err


def test_a_launch_that_dies_again_and_again_ends_its_machine_only(new_fleet: StartFleet, slow_bundle: Path) -> None:
    fleet = new_fleet("pi5-a", "pi5-b")
    out = fleet.order(slow_bundle, launches=1)
    client = fleet.resume(out)
    for _ in range(3):
        (step,) = until(lambda: steps_of(fleet, "pi5-a"), "a launch is under way")
        step.kill()
        until(lambda dead=step: not dead.is_running(), "it has ended")
    assert client.wait() == 3, client.err
    assert "pi5-a: 0 of ? launches, failed: the process of the launch ended with signal 9; failed 3 times" in client.err
    require_whole(fleet, out, "pi5-b", 1)


def steps_of(fleet: Fleet, name: str) -> list[psutil.Process]:
    """The processes of launches on a machine; each is passed its order by a child of the worker."""
    relays = psutil.Process(fleet.workers[name].pid).children()
    steps = fleet.forks.steps()
    return [step for step in steps if relays and _order_of(step) & {_pipe(relay.pid) for relay in relays}]


def _order_of(step: psutil.Process) -> set[str]:
    return {_pipe(step.pid)}


def _pipe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/0")
    except OSError:
        return ""


def test_a_killed_client_is_gone_on_with(new_fleet: StartFleet, bundle: Path) -> None:  # 12
    fleet = new_fleet("pi5-a", "gpu-1")
    out = fleet.order(bundle, launches=4)
    first = fleet.resume(out)
    until(lambda: (out / "pi5-a" / "run.jsonl").exists(), "a launch is copied")
    first.kill()
    second = fleet.resume(out)
    assert second.wait() == 0, second.err
    for name in fleet.names:
        require_whole(fleet, out, name, 4)
        assert launches(out / name) == [(slot, slot) for slot in range(4)]


def test_a_frozen_machine_counts_as_gone_and_comes_back(new_fleet: StartFleet, slow_bundle: Path) -> None:  # 24
    fleet = new_fleet("pi5-a", ttl="1s")
    out = fleet.order(slow_bundle, launches=2)
    client = fleet.resume(out)
    until(lambda: is_measuring(fleet, out, "pi5-a"), "it measures")
    frozen = [psutil.Process(fleet.workers["pi5-a"].pid), *fleet.forks.steps()]
    for process in frozen:
        process.suspend()
    try:
        until(lambda: not fleet.present(), "the scheduler takes it for gone")
    finally:
        for process in reversed(frozen):
            process.resume()
    assert client.wait() == 0, client.err
    assert "pi5-a: 0 of ? launches, away: not there" in client.err or "(1 of 3)" in client.err
    require_whole(fleet, out, "pi5-a", 2)
    assert fleet.workers["pi5-a"].poll() is None


def test_a_scheduler_that_is_started_again(new_fleet: StartFleet, slow_bundle: Path) -> None:  # 25
    fleet = new_fleet("pi5-a", "pi5-b")
    out = fleet.order(slow_bundle, launches=2)
    client = fleet.resume(out)
    until(lambda: any(is_measuring(fleet, out, name) for name in fleet.names), "one of them measures")
    assert fleet.scheduler is not None
    fleet.scheduler.kill()
    until(lambda: "lost the scheduler; trying for 10 min" in client.err, "the client says so")
    with pytest.raises(EffbenchError, match="nothing listens at"):
        session.machines(fleet.place)
    fleet.start_scheduler()
    assert client.wait() == 0, client.err
    for name in fleet.names:
        require_whole(fleet, out, name, 2)
        assert "lost tls://" in fleet.workers[name].err
    assert {item["present"] for item in session.machines(fleet.place).values()} == {True}


def test_a_scheduler_that_stays_away(new_fleet: StartFleet, slow_bundle: Path) -> None:
    fleet = new_fleet("pi5-a")
    out = fleet.order(slow_bundle, launches=1)
    client = fleet.resume(out, "--patience", "1s")
    until(lambda: is_measuring(fleet, out, "pi5-a"), "it measures")
    assert fleet.scheduler is not None
    fleet.scheduler.kill()
    assert client.wait() == 3, client.err
    assert "Traceback" not in client.err and "the scheduler was not there for 1" in client.out


KILLS = 30
PLANNED = 12


def test_kills_at_random_moments(new_fleet: StartFleet, bundle: Path) -> None:
    """A run of many launches on three machines, while any of its processes is killed again and again. Whatever died is
    started again, as systemd would, or whoever ordered.
    """
    chance = random.Random(0)
    fleet = new_fleet(*NAMES)
    out = fleet.order(bundle, launches=PLANNED)
    client, killed = fleet.resume(out), dict.fromkeys(("client", "scheduler", "worker", "step"), 0)
    limit = time.monotonic() + 240
    while sum(killed.values()) < KILLS:
        time.sleep(chance.uniform(0.0, 0.4))
        what = chance.choice(("client", "scheduler", "worker", "worker", "step", "step"))
        if what == "client":
            client.kill()
            client = fleet.resume(out)
        elif what == "scheduler":
            assert fleet.scheduler is not None
            fleet.scheduler.kill()
            fleet.start_scheduler()
        elif what == "worker":
            name = chance.choice(NAMES)
            fleet.workers[name].kill()
            fleet.start_worker(name)
        else:
            steps = fleet.forks.steps()
            if not steps:
                continue
            chance.choice(steps).kill()
        killed[what] += 1
        if client.poll() is not None:  # complete, or given up for now
            client = fleet.resume(out)
    assert min(killed.values()) > 1, killed
    while client.wait() != 0:
        assert time.monotonic() < limit, client.err
        client = fleet.resume(out)
    for name in NAMES:
        require_whole(fleet, out, name, PLANNED)
    until(lambda: {process.name() for process in fleet.mine()} == {"scheduler", "worker"}, "nobody is left over")
    assert len(fleet.mine()) == 4
