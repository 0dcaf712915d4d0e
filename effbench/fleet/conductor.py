"""Conduct runs on many machines: one coroutine for each, which orders launch after launch and copies what they measure.

Everything that matters is in the machines' folders and in the copies, so a conductor can be killed and begun again at
any moment. A launch never moves to another machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effbench.bundles.bundle import Bundle
from effbench.core import units
from effbench.core.errors import EffbenchError
from effbench.fleet import bundle_transfer, tasks
from effbench.fleet.connection import Connection, MachineDied, SchedulerLost, answer_of
from effbench.fleet.machine_folder import PULL_BYTES, Standing
from effbench.fleet.mirror import Mirror
from effbench.fleet.presence import Snapshot
from effbench.runs import schema

State = Literal["waiting", "away", "sending", "queued", "measuring", "busy", "complete", "failed", "missing", "unfit"]

LOOK_S = 1.0
"""Time between two looks at which machines are there."""

MOST_DEATHS = 3
"""A machine whose worker or launch died so often in a row, without a launch that ended, is given up."""

BUSY_S = 30.0
"""Longest time until a machine that others use, or that is too hot, is asked again; the first is `LOOK_S`, and each is
twice the one before. A launch whose worker died takes a moment to end.
"""


@dataclass(frozen=True)
class Progress:
    """How far one machine is.

    Attributes
    ----------
    state
        What it does, or how it ended: complete, failed, missing (not there), unfit (the environment stands in the way).
    launches_done, launches
        Launches that are copied, and those planned; 0 while that is not known.
    why
        Why it waits, or why it ended.
    doing, done
        What its launch reports, and the finished share of the whole run.
    """

    machine: str
    state: State = "waiting"
    launches_done: int = 0
    launches: int = 0
    why: str = ""
    doing: str = ""
    done: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is done for this machine now."""
        return self.state in ("complete", "failed", "missing", "unfit")


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Timing:
    """Times of a conductor in seconds; tests shorten them."""

    patience_s: float = 600.0
    """How long a machine may be away, or unfit, until it is given up."""
    busy_s: float = BUSY_S
    look_s: float = LOOK_S

    @property
    def first_busy_s(self) -> float:
        """Time until a busy machine is asked again for the first time."""
        return min(self.look_s, self.busy_s)


class _GivenUp(Exception):
    """A machine is given up for now."""

    def __init__(self, state: State, why: str) -> None:
        super().__init__(why)
        self.state: State = state


class Conductor:
    """Conduct the runs of some machines over one connection to a scheduler.

    Parameters
    ----------
    connection
        The scheduler.
    mirrors
        The copies, each with its order; they must be locked (`Mirror.__enter__`).
    bundles
        The bundle of each machine whose order measures one.
    watch
        Called with each change.
    timing
        Patience and the like.
    """

    def __init__(
        self,
        connection: Connection,
        mirrors: Sequence[Mirror],
        bundles: Mapping[str, Bundle] | None = None,
        *,
        watch: Watch = lambda progress: None,
        timing: Timing | None = None,
    ) -> None:
        self._connection, self._mirrors, self._bundles = connection, mirrors, bundles or {}
        self._watch, self._timing = watch, timing or Timing()
        self._manifests: dict[str, str] = {}
        self._seen: Snapshot = {}
        self._away_s: dict[str, float] = {}
        """Since when a machine is away, on the monotonic clock."""
        self.progress = {mirror.order.machine: Progress(mirror.order.machine) for mirror in mirrors}

    async def run(self) -> dict[str, Progress]:
        """Order and copy until every machine is complete or given up. Returns how each ended. Raises SchedulerLost."""
        return await self._each(self._conduct)

    async def pull(self) -> dict[str, Progress]:
        """Copy what the machines have, and order nothing. Returns how far each is. Raises SchedulerLost."""
        return await self._each(self._copy_only)

    async def _each(self, work: Callable[[Mirror], Awaitable[None]]) -> dict[str, Progress]:
        await self._look()
        looking = asyncio.create_task(self._keep_looking())
        working = [asyncio.create_task(self._guarded(work, mirror)) for mirror in self._mirrors]
        try:
            left = set(working)
            while left:
                ended, _ = await asyncio.wait({looking, *left}, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()  # raises SchedulerLost
                left -= ended
        finally:
            for task in (looking, *working):
                task.cancel()
            await asyncio.gather(looking, *working, return_exceptions=True)
        return dict(self.progress)

    async def _guarded(self, work: Callable[[Mirror], Awaitable[None]], mirror: Mirror) -> None:
        """Carry out the work for one machine. What goes wrong there ends that machine only."""
        try:
            await work(mirror)
        except _GivenUp as end:
            self._tell(mirror, state=end.state, why=str(end), doing="")
        except EffbenchError as error:
            self._tell(mirror, state="failed", why=str(error), doing="")

    # --- one machine ----------------------------------------------------------------------------------

    async def _conduct(self, mirror: Mirror) -> None:
        deaths, unfit_since_s, busy_s = 0, None, self._timing.first_busy_s
        order = mirror.order.to_json()
        standing: Standing | None = None  # None: ask the machine, at the beginning and wherever it may have changed
        while True:
            try:
                if not self._is_present(mirror.order.machine):
                    standing = None
                await self._until_present(mirror)
                if standing is None or standing.size < mirror.size:
                    standing = await self._ask(mirror)
                    await self._copy(mirror, standing)
                    if not standing.complete:
                        await self._send_bundle(mirror)
                else:
                    await self._copy(mirror, standing)
                if standing.complete:
                    self._tell(mirror, state="complete", why="", doing="", done=1.0)
                    return
                if standing.wait_s:
                    await self._until_planned(mirror, standing.wait_s)
                    standing = None
                    continue
                self._tell(mirror, state="queued", why="", doing="")
                said = await self._call(mirror, tasks.step, order, mirror.size, PULL_BYTES, measures=True)
                end, _, data = said.partition(b"\n")
                answer = answer_of(end)
            except MachineDied:
                answer = {"state": "died", "why": "the worker ended"}
            state, why = str(answer["state"]), str(answer.get("why", ""))
            before, standing = standing, None
            if state == "error":
                raise _GivenUp("failed", why)
            if state == "died":
                deaths += 1
                if deaths >= MOST_DEATHS:
                    raise _GivenUp("failed", f"{why}; failed {deaths} times in a row")
                self._tell(mirror, state="waiting", why=f"{why} ({deaths} of {MOST_DEATHS})", doing="")
            elif state in ("busy", "unfit"):
                now_s = time.monotonic()
                unfit_since_s = unfit_since_s or now_s
                if now_s - unfit_since_s >= self._timing.patience_s:
                    raise _GivenUp("unfit", f"{why}, for {units.duration(now_s - unfit_since_s)}")
                self._tell(mirror, state="busy", why=why, doing="")
                await asyncio.sleep(busy_s)
                busy_s = min(2 * busy_s, self._timing.busy_s)
            else:
                deaths, unfit_since_s, busy_s = 0, None, self._timing.first_busy_s
                after = _standing_of(answer)
                # A run that is no launch further was begun anew or finished by others: its prefix is to be checked.
                if before and after and after.launches_done > before.launches_done:
                    mirror.append(data)
                    standing = after

    async def _copy_only(self, mirror: Mirror) -> None:
        if not self._is_present(mirror.order.machine):
            raise _GivenUp("missing", "not there")
        try:
            standing = await self._ask(mirror)
            await self._copy(mirror, standing)
        except MachineDied:
            raise _GivenUp("missing", "the worker ended") from None
        self._tell(mirror, state="complete" if standing.complete else "waiting")

    async def _ask(self, mirror: Mirror) -> Standing:
        """Return how far the run is. Raises EffbenchError unless the copy is a prefix of the machine's file."""
        mirror.drop_incomplete_line()
        order = mirror.order.to_json()
        values = dict(answer_of(await self._call(mirror, tasks.standing, order, mirror.size, mirror.sha256())))
        if not values.pop("has_prefix"):
            raise EffbenchError(
                f"what {mirror.order.machine} has of this run differs from {mirror.path}: it was set up anew, or one "
                "of the two was changed; move that folder away, and begin anew"
            )
        return Standing(**values)

    async def _copy(self, mirror: Mirror, standing: Standing) -> None:
        """Copy what the machine's file has grown by. Raises EffbenchError."""
        order = mirror.order.to_json()
        while mirror.size < standing.size:
            data = await self._call(mirror, tasks.pull, order, mirror.size, PULL_BYTES)
            if not data:
                raise EffbenchError(f"{mirror.order.machine} cannot read its run any more; see its disk")
            mirror.append(data)
        done, launches = standing.launches_done, standing.launches
        self._tell(mirror, launches_done=done, launches=launches, done=done / launches if launches else 0.0)

    async def _send_bundle(self, mirror: Mirror) -> None:
        bundle = self._bundles.get(mirror.order.machine)
        if bundle is None:
            return
        if bundle.digest not in self._manifests:  # of a hundred machines, most are sent the same bundle
            self._manifests[bundle.digest] = await asyncio.to_thread(bundle_transfer.manifest_of, bundle)
        manifest = self._manifests[bundle.digest]
        for is_last_try in (False, True):
            missing = answer_of(await self._call(mirror, tasks.missing_files, manifest))["missing"]
            for number, name in enumerate(missing):
                self._tell(mirror, state="sending", doing=f"file {number + 1} of {len(missing)} of the bundle")
                path = bundle.directory / name
                for offset, length in bundle_transfer.pieces(path):
                    piece = await asyncio.to_thread(_read, path, offset, length)
                    answer_of(await self._call(mirror, tasks.put, manifest, name, offset, piece))
            try:
                answer_of(await self._call(mirror, tasks.seal, manifest))
                return
            except EffbenchError:
                if is_last_try:
                    raise

    async def _call(
        self, mirror: Mirror, function: Callable[..., Any], *arguments: str | bytes | int, measures: bool = False
    ) -> Any:
        """Call the machine, as long as it is there. Raises MachineDied, SchedulerLost, _GivenUp."""
        calling = asyncio.create_task(
            self._connection.call(function, *arguments, machine=mirror.order.machine, measures=measures)
        )
        try:
            while not calling.done():
                await asyncio.wait({calling}, timeout=self._timing.look_s)
                if not calling.done():
                    self._require_patience(mirror)
                    if measures:
                        self._tell_launch(mirror)
            return calling.result()
        finally:
            calling.cancel()

    # --- waiting --------------------------------------------------------------------------------------

    async def _until_present(self, mirror: Mirror) -> None:
        name = mirror.order.machine
        while not self._is_present(name):
            self._require_patience(mirror)
            self._tell(
                mirror, state="away", why=f"not there for {units.duration(time.monotonic() - self._away_s[name])}"
            )
            await asyncio.sleep(self._timing.look_s)
        facts = self._seen[name]["facts"]
        if facts and facts["schema"] != schema.SCHEMA:
            raise _GivenUp(
                "failed",
                f"it has effbench {facts['effbench']}, whose runs have schema {facts['schema']}, and this one reads "
                f"and writes schema {schema.SCHEMA}; install the same version on both",
            )

    async def _until_planned(self, mirror: Mirror, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        at = time.strftime("%H:%M", time.localtime(time.time() + wait_s))
        self._tell(mirror, state="waiting", why=f"the next launch begins at {at}", doing="")
        while (left_s := until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, self._timing.look_s))
            self._require_patience(mirror)

    def _require_patience(self, mirror: Mirror) -> None:
        """Raise _GivenUp if the machine has been away for too long."""
        gone_s = self._away_s.get(mirror.order.machine)
        if gone_s is not None and (away_s := time.monotonic() - gone_s) >= self._timing.patience_s:
            raise _GivenUp("missing", f"not there for {units.duration(away_s)}")

    def _is_present(self, name: str) -> bool:
        return bool(self._seen.get(name, {}).get("present"))

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._timing.look_s)
            await self._look()

    async def _look(self) -> None:
        self._seen = await self._connection.machines()
        now_s = time.monotonic()
        for name in self.progress:
            if self._is_present(name):
                self._away_s.pop(name, None)
            else:
                self._away_s.setdefault(name, now_s)

    # --- telling --------------------------------------------------------------------------------------

    def _tell_launch(self, mirror: Mirror) -> None:
        doing = self._seen.get(mirror.order.machine, {}).get("doing") or {}
        if doing.get("run") == mirror.order.run:
            self._tell(mirror, state="measuring", why="", doing=doing.get("doing", ""), done=doing.get("done", 0.0))
        elif doing:
            self._tell(mirror, state="queued", why=f"{doing['by']} measures {doing['subject']}", doing="")

    def _tell(self, mirror: Mirror, **changes: Any) -> None:
        name = mirror.order.machine
        before = self.progress[name]
        if "done" in changes:
            changes["done"] = max(before.done, changes["done"])
        self.progress[name] = dataclasses.replace(before, **changes)
        if self.progress[name] != before:
            self._watch(self.progress[name])


def _standing_of(answer: Mapping[str, Any]) -> Standing | None:
    """Return how far the run is by the end of a step; None where it could not tell."""
    values: dict[str, Any] = {field.name: answer.get(field.name) for field in dataclasses.fields(Standing)}
    return None if None in values.values() else Standing(**values)


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


async def conduct(
    connect: Callable[[], AbstractAsyncContextManager[Connection]],
    begin: Callable[[Connection], Conductor],
    *,
    lost: Callable[[str], None] = lambda said: None,
    timing: Timing | None = None,
) -> dict[str, Progress]:
    """Conduct until every machine is complete or given up, and connect again where the scheduler goes away meanwhile.

    `connect` opens a connection and `begin` makes the conductor for it. `lost` is called once with each loss. Raises
    EffbenchError if the first connection fails. A scheduler that stays away for longer than the patience is the end of
    every machine that is not complete.
    """
    timing = timing or Timing()
    progress: dict[str, Progress] = {}
    lost_s: float | None = None
    while True:
        conductor: Conductor | None = None
        try:
            async with connect() as connection:
                conductor = begin(connection)
                lost_s = None
                return await conductor.run()
        except SchedulerLost:
            assert conductor is not None
            progress, lost_s = conductor.progress, time.monotonic()
            lost(f"lost the scheduler; trying for {units.duration(timing.patience_s)}")
        except EffbenchError:
            if lost_s is None:
                raise
        if time.monotonic() - lost_s >= timing.patience_s:
            why = f"the scheduler was not there for {units.duration(timing.patience_s)}"
            return {
                name: item if item.is_over else dataclasses.replace(item, state="missing", why=why)
                for name, item in progress.items()
            }
        await asyncio.sleep(timing.look_s)
