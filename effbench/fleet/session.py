"""What the commands of `effbench fleet` do: find the scheduler, order runs, conduct, copy, watch."""

from __future__ import annotations

import asyncio
import datetime
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from effbench import devices, runtimes
from effbench.bundles import bundle as stored_bundle
from effbench.bundles.bundle import Bundle
from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.measure_options import BUNDLE_OPTIONS, MeasureOptions
from effbench.core.study import Analysis
from effbench.fleet import addresses, certificates, conductor, event_loop, labels, mirror, presence
from effbench.fleet import config as fleet_config
from effbench.fleet import connection as fleet_connection
from effbench.fleet.addresses import Address
from effbench.fleet.certificates import Certificates
from effbench.fleet.conductor import Conductor, Progress, Timing
from effbench.fleet.config import FleetConfig
from effbench.fleet.connection import Connection, SchedulerLost
from effbench.fleet.mirror import Mirror, StoredOrder
from effbench.fleet.orders import Order
from effbench.fleet.presence import Snapshot
from effbench.runs import run_file
from effbench.studies import catalog, model_comparison, plan


@dataclass(frozen=True)
class Place:
    """The scheduler of a fleet, how to reach it, and what fleet.toml says."""

    address: Address
    certs: Path | None
    certificates: Certificates | None
    config: FleetConfig

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Return a connection to open."""
        return fleet_connection.connect(self.address, self.certificates)


def find_place(scheduler: str | None, certs: Path | None, config: Path | None, folder: Path | None = None) -> Place:
    """Find the scheduler: as typed, else that of the orders in `folder`, else that of fleet.toml.

    Raises EffbenchError for a wrong address, certificates that cannot be used, or a wrong fleet.toml.
    """
    found = fleet_config.load(config)
    stored = next(iter(mirror.load(folder).values()), None) if folder is not None else None
    address = scheduler or (stored.scheduler if stored else None) or found.scheduler
    if certs is None and stored is not None and stored.certs:
        certs = Path(stored.certs)
    certs = certs or found.certs
    parsed = addresses.parse(address, certs)
    secured = parsed.scheme == "tls"
    own = certificates.load(certs) if secured and certs is not None else None
    return Place(parsed, certs if secured else None, own, found)


def machines(place: Place) -> Snapshot:
    """Return what the scheduler knows of its machines. Raises EffbenchError."""

    async def ask() -> Snapshot:
        async with place.connect() as connection:
            return await connection.machines()

    try:
        return event_loop.run(ask())
    except SchedulerLost as error:
        raise EffbenchError(f"lost the scheduler at {place.address}: {error}; see whether it runs") from None


def require_possible(study: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise EffbenchError for an order that no machine could carry out, so that it is said once and at once.

    A wrong name or value is one, and a study or a model in a file here, which the machines do not have. What depends on
    the machine (threads, installed runtimes and packages) is left to it.
    """
    models, select = arguments["models"], dict(arguments["select"])
    files = [name for name in (study, *models) if "/" in name or name.partition(":")[0].endswith(".py")]
    if files:
        raise InvalidValue(
            f"{files[0]} is a file of this machine, and the others do not have it; bundle it with `effbench bundle`, "
            "and measure that with --bundle DIR"
        )
    found = catalog.load(study)
    if isinstance(found, Analysis):
        raise InvalidValue(f"{study} measures nothing, so no machine is needed for it: effbench run {study}")
    for name in str(options.get("runtime") or "all").split(","):
        if name != "all" and not runtimes.exists(name):
            raise UnknownName("runtime", name, runtimes.names())
    if models:
        found = model_comparison.with_models(found, models)
    if arguments["scale"]:
        select["scale"] = arguments["scale"].split(",")
    here = {name: value for name, value in options.items() if name not in ("threads", "cluster", "runtime")}
    plan.make(found, MeasureOptions.of(here), runtime="eager", select=select)


@dataclass(frozen=True)
class Wanted:
    """What shall be measured: a study with its arguments, or a bundle; and the options that were typed."""

    study: str = ""
    bundle: Path | None = None
    arguments: Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None
    by: str = ""
    command: str = ""


def order(place: Place, folder: Path, on: Sequence[str], wanted: Wanted) -> list[str]:
    """Choose machines by their labels, and store an order for each in `folder`. Returns their names.

    Without labels these are the machines that are there now; a label also chooses one that is away, and will be waited
    for.

    Raises EffbenchError if no such machine is known, or the folder has a run of one of them.
    """
    bundle = None if wanted.bundle is None else _load_bundle(wanted.bundle)
    known = machines(place)
    if not known:
        raise EffbenchError(f"no machine is connected to {place.address}; start one there with: effbench fleet worker")
    of_machine = presence.labels_of(known)
    chosen = labels.select(on, of_machine) if on else [name for name in known if known[name]["present"]]
    if not chosen:
        raise EffbenchError("no machine is there now; name one with --on to wait for it")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^A-Za-z0-9_]+", "-", wanted.study or (bundle.experiment.name if bundle else ""))[:60]
    run = f"{stamp}-{name}-{uuid.uuid4().hex[:8]}"
    stored = {}
    for machine in chosen:
        of_labels = place.config.options_for(of_machine[machine])
        if bundle is not None:  # its device is the machine's processor, whatever else the machine has
            of_labels = {name: value for name, value in of_labels.items() if name in BUNDLE_OPTIONS}
        options = {**of_labels, **(wanted.options or {})}
        devices.kind_of(str(options.get("device", "cpu")))  # fleet.toml may name one that there is not
        made = Order(
            run=run,
            machine=machine,
            study=wanted.study,
            bundle=bundle.digest if bundle else "",
            arguments=wanted.arguments or {},
            options={key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
            by=wanted.by,
            command=wanted.command,
        )
        certs = "" if place.certs is None else str(place.certs.absolute())
        at = "" if wanted.bundle is None else str(wanted.bundle.absolute())
        stored[machine] = StoredOrder(made, str(place.address), certs, at)
    mirror.store(folder, stored)
    return chosen


def _load_bundle(folder: Path) -> Bundle:
    """Load a bundle, and check its files against their SHA-256. Raises StorageError, CorruptBundle."""
    found = stored_bundle.load(folder)
    stored_bundle.verify(found, {model.cell.id + model.cell.runtime: model for model in found.models})
    return found


def stored_orders(folder: Path, on: Sequence[str]) -> list[StoredOrder]:
    """Return the orders in a folder, or those of the machines named by `on`. Raises EffbenchError."""
    found = mirror.load(folder)
    for name in on:
        if name not in found:
            raise UnknownName(f"machine in {folder}", name, found)
    return [stored for name, stored in found.items() if not on or name in on]


@contextmanager
def open_mirrors(folder: Path, orders: Sequence[StoredOrder]) -> Iterator[list[Mirror]]:
    """Lock the copies of these orders until the block ends. Raises StorageError if another conductor holds one."""
    with ExitStack() as stack:
        yield [stack.enter_context(Mirror(folder, stored)) for stored in orders]


def conduct(
    place: Place,
    mirrors: Sequence[Mirror],
    *,
    watch: conductor.Watch,
    lost: Callable[[str], None],
    timing: Timing,
) -> dict[str, Progress]:
    """Conduct until every machine is complete or given up. Returns how each ended. Raises EffbenchError."""
    loaded: dict[str, Bundle] = {}
    for item in mirrors:
        at = item.stored.bundle_folder
        if at and at not in loaded:
            loaded[at] = _load_bundle(Path(at))
            if loaded[at].digest != item.order.bundle:
                raise EffbenchError(f"{at} is another bundle than the one that was ordered; bring that one back")
    bundles = {item.order.machine: loaded[item.stored.bundle_folder] for item in mirrors if item.stored.bundle_folder}

    def begin(connection: Connection) -> Conductor:
        return Conductor(connection, mirrors, bundles, watch=watch, timing=timing)

    return event_loop.run(conductor.conduct(place.connect, begin, lost=lost, timing=timing))


def pull(place: Place, mirrors: Sequence[Mirror]) -> dict[str, Progress]:
    """Copy what the machines have. Returns how far each is. Raises EffbenchError."""

    async def copy() -> dict[str, Progress]:
        async with place.connect() as connection:
            return await Conductor(connection, mirrors).pull()

    try:
        return event_loop.run(copy())
    except SchedulerLost as error:
        raise EffbenchError(f"lost the scheduler at {place.address}: {error}; see whether it runs") from None


def watch(place: Place, folder: Path, tell: conductor.Watch, *, look_s: float = conductor.LOOK_S) -> None:
    """Tell what the machines of a run do, until each copy is complete. Raises EffbenchError."""
    orders = mirror.load(folder)

    async def look() -> None:
        async with place.connect() as connection:
            while True:
                seen = await connection.machines()
                found = [_standing_here(folder, stored, seen) for stored in orders.values()]
                for progress in found:
                    tell(progress)
                if all(progress.is_over for progress in found):
                    return
                await asyncio.sleep(look_s)

    try:
        event_loop.run(look())
    except SchedulerLost as error:
        raise EffbenchError(f"lost the scheduler at {place.address}: {error}; see whether it runs") from None


def _standing_here(folder: Path, stored: StoredOrder, seen: Snapshot) -> Progress:
    """Return how far the copy of a machine's run is, and what the machine does now."""
    name = stored.order.machine
    copy = standing_of_copy(folder, stored)
    if copy.is_over:
        return copy
    machine = seen.get(name)
    if machine is None or not machine["present"]:
        return replace(copy, state="away", why="not there")
    doing = machine["doing"]
    if doing and doing["run"] == stored.order.run:
        return replace(copy, state="measuring", doing=doing.get("doing", ""), done=doing.get("done", copy.done))
    return replace(copy, why=f"{doing['by']} measures {doing['subject']}" if doing else "idle")


def standing_of_copy(folder: Path, stored: StoredOrder) -> Progress:
    """Return how far the copy of a machine's run is."""
    from effbench.fleet.machine_folder import standing_of

    name = stored.order.machine
    path = folder / name / run_file.RUN_FILE
    if not path.exists():
        return Progress(name)
    found = standing_of(run_file.load(path), 0)
    share = found.launches_done / found.launches if found.launches else 0.0
    state: conductor.State = "complete" if found.complete else "waiting"
    return Progress(name, state, found.launches_done, found.launches, done=share)
