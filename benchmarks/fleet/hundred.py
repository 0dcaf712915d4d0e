"""A hundred machines in one process: does one conductor keep up with them, and what does each launch cost in all?"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler, Worker

from benchmarks.fleet import recorded
from benchmarks.fleet.record import Outcome, Target, quantile
from benchmarks.fleet.recorded import RecordedLaunches
from effbench.fleet import authority, certificates, connection, mirror, serve, tasks
from effbench.fleet.addresses import Address
from effbench.fleet.certificates import Certificates
from effbench.fleet.conductor import Conductor, Progress, Timing
from effbench.fleet.connection import Connection
from effbench.fleet.dask_settings import NO_HTTP, SETTINGS, quieten_dask
from effbench.fleet.labels import Label
from effbench.fleet.machine import Machine
from effbench.fleet.mirror import Mirror, StoredOrder
from effbench.fleet.orders import Order
from effbench.fleet.presence import Presence
from effbench.runs import schema

RUN = "20261129-101500-hundred-0a1b2c3d"
BEYOND_S, CPU_MS, TASK_MS = 5.0, 20.0, 10.0
FACTS = {"effbench": "", "python": "", "torch": False, "cpu": None, "warnings": []}


class TimedMirror(Mirror):
    """A copy that notes when it grew (monotonic), by its size then."""

    def __init__(self, folder: Path, stored: StoredOrder) -> None:
        super().__init__(folder, stored)
        self.grown_s: dict[int, float] = {}

    def append(self, data: bytes) -> None:
        super().append(data)
        self.grown_s[self.size] = time.monotonic()


@dataclass
class Fleet:
    """Machines, scheduler and client in this process, all over TLS on loopback."""

    scheduler: Scheduler
    connection: Connection
    workers: list[Worker]
    launches: dict[str, RecordedLaunches]
    folder: Path


@dataclass
class Conducted:
    """What a conductor did with a fleet."""

    progress: dict[str, Progress]
    wall_s: float
    cpu_s: float
    delays_s: list[float] = field(default_factory=list)
    identical: int = 0
    copied_bytes: int = 0


async def build(
    stack: AsyncExitStack, folder: Path, machines: int, pieces: list[bytes], launch_s: float, *, is_secure: bool = True
) -> Fleet:
    """Start a fleet, which is closed with `stack`."""
    quieten_dask()
    own: Certificates | None = None
    if is_secure:
        authority.create(folder / "certs", ["all"])
        own = certificates.load(folder / "certs" / "all")
    scheme = "tls" if is_secure else "tcp"
    workers: list[Worker] = []

    async def close_workers() -> None:
        await asyncio.gather(*(worker.close() for worker in workers))

    # After the scheduler: it would tell each of the others that one has gone.
    stack.push_async_callback(close_workers)
    stack.enter_context(dask.config.set({**SETTINGS, "temporary-directory": str(folder / "scratch")}))
    scheduler = await Scheduler(
        host="127.0.0.1",
        port=0,
        protocol=scheme,
        security=connection.security_of(own),
        dashboard=False,
        dashboard_address=NO_HTTP,
        plugins=[Presence()],
    )
    stack.push_async_callback(scheduler.close)
    scheduler.http_server.stop()
    address = Address(scheme, "127.0.0.1", int(scheduler.address.rpartition(":")[2]))
    facts = {**FACTS, "schema": schema.SCHEMA}
    launches: dict[str, RecordedLaunches] = {}

    async def start(number: int) -> None:
        name = f"m{number:03}"
        place = serve.WorkerPlace(name, [Label("board", "none")], folder / name, folder / f"{name}.lock", "127.0.0.1")
        worker = await serve.start_worker(place, address, own, facts)
        launches[name] = RecordedLaunches(place.folder, pieces, launch_s)
        machine: Any = worker.plugins[Machine.name]
        machine.launch = launches[name].launch
        workers.append(worker)

    await asyncio.gather(*map(start, range(machines)))
    client = await stack.enter_async_context(connection.connect(address, own))
    return Fleet(scheduler, client, workers, dict(sorted(launches.items())), folder)


async def conduct(fleet: Fleet, timing: Timing | None = None) -> Conducted:
    """Conduct a run on every machine of the fleet, into new copies."""
    out = fleet.folder / "out"
    orders = {
        name: StoredOrder(Order(RUN, name, study="g2_groups", by="bench"), str(fleet.connection.address))
        for name in fleet.launches
    }
    mirror.store(out, orders)
    with ExitStack() as locks:
        copies = [TimedMirror(out, stored) for stored in orders.values()]
        for copy in copies:
            locks.enter_context(copy)
        conductor = Conductor(fleet.connection, copies, timing=timing)
        cpu_s, wall_s = time.process_time(), time.monotonic()
        progress = await conductor.run()
        found = Conducted(progress, time.monotonic() - wall_s, time.process_time() - cpu_s)
    for copy in copies:
        launches = fleet.launches[copy.order.machine]
        own = fleet.folder / copy.order.machine / "runs" / RUN / "run.jsonl"
        found.identical += own.exists() and _sha256(own) == _sha256(copy.path)
        found.copied_bytes += copy.size
        found.delays_s += [
            copy.grown_s[size] - ended_s for size, ended_s in launches.ended_s.items() if size in copy.grown_s
        ]
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


async def _empty_tasks(fleet: Fleet, number: int) -> tuple[list[float], float]:
    """Return seconds of round trips of a pinned task that does nothing, one after the other, and CPU time of each."""
    order = Order("nothing", "m000", study="g2_groups").to_json()  # a run that is not there
    names = list(fleet.launches)

    async def trip(turn: int) -> None:
        await fleet.connection.call(tasks.pull, order, 0, 1, machine=names[turn % len(names)])

    await asyncio.gather(*map(trip, range(len(names))))  # the scheduler connects to each machine, once
    return await _times(trip, number)


async def _tasks_of_dask(fleet: Fleet, number: int) -> tuple[list[float], float]:
    """Return the same of a task of dask's, pinned to nothing: how fast this machine is for such work."""
    client = fleet.connection._client

    async def trip(turn: int) -> None:
        future = client.submit(abs, turn, key=f"abs-{turn}", pure=False)
        await future
        future.release()

    return await _times(trip, number)


async def _times(trip: Callable[[int], Awaitable[None]], number: int) -> tuple[list[float], float]:
    trips, cpu_s = [], time.process_time()
    for turn in range(number):
        begun = time.perf_counter()
        await trip(turn)
        trips.append(time.perf_counter() - begun)
    return trips, (time.process_time() - cpu_s) / number


async def _idle_cpu_share(seconds: float) -> float:
    cpu_s, begun = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu_s) / (time.monotonic() - begun)


def measure(
    machines: int = 100, launches: int = 5, launch_s: float = 2.0, trips: int = 300, idle_s: float = 10.0
) -> Outcome:
    """Measure a fleet of so many machines in this process, each with so many launches."""
    pieces = recorded.launches(most=launches)

    async def all_of_it(folder: Path) -> tuple[dict[str, Any], Conducted, Sequence[RecordedLaunches]]:
        async with AsyncExitStack() as stack:
            begun = time.monotonic()
            fleet = await build(stack, folder, machines, pieces, launch_s)
            raw: dict[str, Any] = {"up_s": time.monotonic() - begun, "idle_share": await _idle_cpu_share(idle_s)}
            raw["round_trips_s"], raw["round_trip_cpu_s"] = await _empty_tasks(fleet, trips)
            raw["tasks_of_dask_s"], raw["task_of_dask_cpu_s"] = await _tasks_of_dask(fleet, trips)
            return raw, await conduct(fleet), list(fleet.launches.values())

    with tempfile.TemporaryDirectory(prefix="effbench-fleet-") as folder:
        raw, found, done = asyncio.run(all_of_it(Path(folder)))
    total = machines * len(pieces)
    beyond_s = found.wall_s - len(pieces) * launch_s
    cpu_ms = found.cpu_s / total * 1e3
    trip_ms = statistics.median(raw["round_trips_s"]) * 1e3
    doubled = sum(item.slots != [*range(len(pieces))] or item.most_at_once != 1 for item in done)
    complete = sum(item.state == "complete" for item in found.progress.values())
    targets = [
        Target("wall time beyond the launches' own", f"<= {BEYOND_S:g} s", f"{beyond_s:.2f} s", beyond_s <= BEYOND_S),
        Target("CPU time a launch, in all", f"<= {CPU_MS:g} ms", f"{cpu_ms:.1f} ms", cpu_ms <= CPU_MS),
        Target("empty pinned task", f"<= {TASK_MS:g} ms", f"{trip_ms:.2f} ms", trip_ms <= TASK_MS),
        Target("copies identical", f"{machines} of {machines}", f"{found.identical}", found.identical == machines),
        Target("complete", f"{machines} of {machines}", f"{complete}", complete == machines),
        Target("machines with a launch twice, or two at once", "0", f"{doubled}", doubled == 0),
        Target(
            "from a launch's end to the client's disk",
            "",
            f"median {statistics.median(found.delays_s):.3f} s, p95 {quantile(found.delays_s, 0.95):.3f} s",
        ),
        Target("all machines are up", "", f"{raw['up_s']:.1f} s"),
        Target("idle, all in one process", "", f"{raw['idle_share']:.1%} of a core"),
        Target("CPU time of an empty pinned task", "", f"{raw['round_trip_cpu_s'] * 1e3:.2f} ms"),
        Target(
            "a task of dask's without us, here and now",
            "",
            f"{statistics.median(raw['tasks_of_dask_s']) * 1e3:.2f} ms, {raw['task_of_dask_cpu_s'] * 1e3:.2f} ms CPU",
        ),
    ]
    raw |= {
        "wall_s": found.wall_s,
        "cpu_s": found.cpu_s,
        "copied_bytes": found.copied_bytes,
        "delays_s": found.delays_s,
    }
    settings = {"machines": machines, "launches": len(pieces), "launch_s": launch_s, "idle_s": idle_s}
    return Outcome(targets, settings, raw)
