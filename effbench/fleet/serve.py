"""The two processes of a fleet that stay: the scheduler, and the worker on each machine."""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import dask.utils
from distributed import Scheduler, Worker

from effbench import doctor
from effbench._version import __version__
from effbench.core.errors import EffbenchError, StorageError
from effbench.fleet import tls_check
from effbench.fleet.addresses import Address
from effbench.fleet.certificates import Certificates
from effbench.fleet.connection import first_words, security_of, within
from effbench.fleet.dask_settings import NO_HTTP, SETTINGS
from effbench.fleet.labels import Label
from effbench.fleet.machine import Machine
from effbench.fleet.presence import Presence
from effbench.host import machine, optional_packages
from effbench.runs import schema

Tell = Callable[[str], None]

RETRY_S = 5.0
"""Time between two tries to reach a scheduler."""

START_S = 60.0

THREADS = 2
"""Of dask's worker: one carries out a launch, the other answers meanwhile."""

HEARTBEATS = 6
"""Of a machine in the time after which a silent one counts as gone."""

MANY = 1e6
"""How many tasks may ask for a label at once."""


async def serve_scheduler(address: Address, certificates: Certificates | None, tell: Tell) -> None:
    """Run a scheduler until it is ended. Raises EffbenchError if it cannot listen there."""
    with dask.config.set(SETTINGS):
        try:
            scheduler = await Scheduler(
                host=address.host,
                port=address.port,
                protocol=address.scheme,
                security=security_of(certificates),
                dashboard=False,
                dashboard_address=NO_HTTP,
                plugins=[Presence()],
            )
        except (OSError, RuntimeError) as error:
            raise EffbenchError(
                f"cannot listen at {address}: {_words_of_cause(error)}; choose another --host or --port"
            ) from error
        scheduler.http_server.stop()
        tell(f"the fleet's scheduler listens at {scheduler.address}")
        try:
            await scheduler.finished()
        finally:
            await scheduler.close()


@dataclass(frozen=True)
class WorkerPlace:
    """A machine's worker: its name and labels, its folder and lock, and where it listens.

    `host` None is the address of this machine that leads to the scheduler; `port` 0 is any free one.
    """

    name: str
    labels: Sequence[Label]
    folder: Path
    lock: Path
    host: str | None = None
    port: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """The labels as dask's resources, and the one launch at a time that the machine carries out."""
        return {"bench": 1.0} | {label.resource: MANY for label in (Label("machine", self.name), *self.labels)}


async def serve_worker(
    place: WorkerPlace, address: Address, certificates: Certificates | None, tell: Tell, *, retry_s: float = RETRY_S
) -> None:
    """Run the worker of this machine. When the scheduler goes away, wait for it and connect again.

    Raises EffbenchError where another try cannot help: the scheduler refuses the certificate, or the folder cannot be
    written.
    """
    scratch = _make_scratch(place.folder)
    facts = await asyncio.to_thread(machine_facts)
    said = ""

    def say(text: str) -> None:
        nonlocal said
        if text != said:
            tell(text)
        said = text

    with dask.config.set({**SETTINGS, "temporary-directory": str(scratch)}):
        while True:
            try:
                await asyncio.to_thread(tls_check.require_accepted, address, certificates)
                worker = await within(START_S, start_worker(place, address, certificates, facts))
                say(f"connected to {address} as {place.name}; {_doctor_words(facts)}")
                await worker.finished()
                say(f"lost {address}; trying again every {retry_s:g} s")
            except tls_check.NotTrusted:
                raise
            except (EffbenchError, OSError, asyncio.TimeoutError, ValueError, RuntimeError) as error:
                say(_why_not_connected(error, place.name, address))
            await asyncio.sleep(retry_s)


class _Worker(Worker):
    """dask's worker with few heartbeats. dask has up to two a second, each of which wakes a machine that measures."""

    async def heartbeat(self) -> None:
        """Tell the scheduler that this machine is there, which overwrites the interval."""
        await super().heartbeat()
        silent_s = dask.utils.parse_timedelta(dask.config.get("distributed.scheduler.worker-ttl"))
        self.periodic_callbacks["heartbeat"].callback_time = silent_s / HEARTBEATS * 1e3


async def start_worker(
    place: WorkerPlace, address: Address, certificates: Certificates | None, facts: Mapping[str, Any]
) -> Worker:
    """Start dask's worker for this machine, and tell the scheduler what it is. dask's settings must be in force."""
    own = Machine(place.name, place.folder, place.lock)
    worker: Worker = await _Worker(
        str(address),
        name=place.name,
        nthreads=THREADS,
        resources=place.resources,
        security=security_of(certificates),
        host=place.host or await asyncio.to_thread(_own_host, address),
        port=place.port,
        protocol=address.scheme,
        dashboard=False,
        dashboard_address=NO_HTTP,
        memory_limit=0,
        plugins=(own,),
    )
    worker.http_server.stop()
    own.tell(event="hello", facts=dict(facts))
    return worker


def _own_host(address: Address) -> str:
    """Return the address of this machine that leads to the scheduler. Without one, dask listens at all of them.

    Raises OSError.
    """
    with socket.create_connection((address.host, address.port), tls_check.TIMEOUT_S) as connected:
        host: str = connected.getsockname()[0]
    return host


def machine_facts() -> dict[str, Any]:
    """Return what a conductor must know of this machine before it orders anything, and what `status` shows."""
    warned = [finding.topic for finding in doctor.examine() if finding.status == "warn"]
    return {
        "effbench": __version__,
        "schema": schema.SCHEMA,
        "python": platform.python_version(),
        "torch": optional_packages.has("torch"),
        "cpu": machine.cpu().get("cpu.model"),
        "warnings": warned,
    }


def _doctor_words(facts: Mapping[str, Any]) -> str:
    warned = facts["warnings"]
    if not warned:
        return "doctor: nothing to do"
    many = "1 warning" if len(warned) == 1 else f"{len(warned)} warnings"
    return f"doctor: {many} ({', '.join(warned)}), `effbench doctor` has the remedies"


def _make_scratch(folder: Path) -> Path:
    """Make the folder of dask's own files. Raises StorageError."""
    scratch = folder / "scratch"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}; choose another --folder") from error
    return scratch


def _words_of_cause(error: BaseException) -> str:
    """Return what went wrong first. dask puts "failed to start" in front of it."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else first_words(cause)


def _why_not_connected(error: BaseException, name: str, address: Address) -> str:
    said = _words_of_cause(error)
    if "name taken" in said:
        return (
            f"the scheduler has a machine named {name} already; if that is this one before it was started again, it is "
            "forgotten within two minutes; trying again"
        )
    if isinstance(error, EffbenchError):
        return said
    return f"cannot connect to {address}, or listen at this machine's --host and --port: {said}; trying again"
