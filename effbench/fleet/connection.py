"""A connection to the scheduler of a fleet."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker

from effbench.core.errors import EffbenchError
from effbench.fleet import labels, presence, tasks, tls_check
from effbench.fleet.addresses import Address
from effbench.fleet.certificates import Certificates
from effbench.fleet.dask_settings import SETTINGS
from effbench.fleet.presence import Snapshot

T = TypeVar("T")

CONNECT_S = 10.0
CLOSE_S = 5.0
ANSWER_S = 20.0
"""A scheduler that takes longer to say which machines there are counts as lost."""


class SchedulerLost(Exception):
    """The connection to the scheduler has ended. What was ordered is lost; what was measured is on the machines."""


class MachineDied(Exception):
    """The worker of a machine ended, or was silent for too long, while it carried something out."""


class Connection:
    """Call a machine's functions (`fleet.tasks`), and ask which machines there are."""

    def __init__(self, client: Client, address: Address) -> None:
        self._client, self.address = client, address

    async def machines(self) -> Snapshot:
        """Return what the scheduler knows of every machine (`Presence.snapshot`).

        Raises SchedulerLost, EffbenchError.
        """
        try:
            said = await within(ANSWER_S, self._client.run_on_scheduler(presence.snapshot))
        except (OSError, asyncio.TimeoutError, concurrent.futures.CancelledError, AttributeError) as error:
            raise SchedulerLost(str(error)) from error
        if not said:
            raise EffbenchError(
                f"{self.address} is a scheduler of dask, but of no fleet; start one with: effbench fleet scheduler"
            )
        found: Snapshot = json.loads(said)
        return found

    async def call(
        self, function: Callable[..., Any], *arguments: str | bytes | int, machine: str, measures: bool = False
    ) -> Any:
        """Call a function on one machine and return its answer. Waits where the machine is away or busy.

        With `measures` nothing else measures on the machine meanwhile. Raises MachineDied, SchedulerLost; TypeError for
        what must not be sent.
        """
        if function not in tasks.FUNCTIONS:
            raise TypeError(f"{function!r} is no function of effbench.fleet.tasks")
        if not all(type(item) in (str, bytes, int) for item in arguments):
            raise TypeError("a machine is called with text, bytes and whole numbers only")
        # Resources, not `workers=`: that never matches again once a machine has come back on another port.
        wanted = {labels.Label("machine", machine).resource: 1.0} | ({"bench": 1.0} if measures else {})
        try:
            future = self._client.submit(
                function,
                *arguments,
                # Two orders with the same words are two launches, so each has a key of its own.
                key=f"{function.__name__}-{machine}-{uuid.uuid4().hex}",
                pure=False,
                retries=0,
                resources=wanted,
            )
            try:
                return await future
            finally:
                with suppress(Exception):
                    future.release()
        except KilledWorker as error:
            raise MachineDied(machine) from error
        except (OSError, concurrent.futures.CancelledError) as error:
            raise SchedulerLost(str(error)) from error


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return what dask's work returns. Raises asyncio.TimeoutError if it takes longer.

    Loses no cancellation. dask, and `asyncio.wait_for` before Python 3.12, drop one that comes just as the work ends,
    and then whoever cancelled would wait for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError(f"no answer within {seconds:g} s")
        return task.result()
    finally:
        task.cancel()


@asynccontextmanager
async def connect(address: Address, certificates: Certificates | None) -> AsyncIterator[Connection]:
    """Connect to a scheduler until the block ends. Raises EffbenchError with the reason in one line."""
    await asyncio.to_thread(tls_check.require_accepted, address, certificates)
    with dask.config.set(SETTINGS):
        security = security_of(certificates)
        try:
            client = await within(2 * CONNECT_S, _open(str(address), security))
        except (OSError, asyncio.TimeoutError) as error:
            raise EffbenchError(
                f"the scheduler at {address} does not answer: {first_words(error)}; is it a scheduler of effbench?"
            ) from error
        try:
            yield Connection(client, address)
        finally:
            # `close` would wait for dask's own tries to reach a scheduler that is lost.
            with suppress(Exception):
                await within(CLOSE_S, client._close(fast=True))


async def _open(address: str, security: Any) -> Client:
    opened: Client = await Client(
        address, security=security, asynchronous=True, set_as_default=False, timeout=CONNECT_S
    )
    return opened


def security_of(certificates: Certificates | None) -> Any:
    """Return dask's security object for these certificates; None without them."""
    if certificates is None:
        return None
    from distributed import Security

    return Security(**certificates.security_arguments())


def first_words(error: BaseException) -> str:
    """Return the first line of an error, shortened."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def answer_of(said: str | bytes) -> Mapping[str, Any]:
    """Decode the answer of a machine. Raises EffbenchError for one that is an error."""
    values: Mapping[str, Any] = json.loads(said)
    if "error" in values:
        raise EffbenchError(str(values["error"]))
    return values
