"""One helper process that imports user code before a run, to read the input shapes of its models and their costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from effbench.host.worker_process import Site, Worker, worker_environment

WAITS = "waits"
"""The key of a job after which the process waits for another job, and the event that reports that it waits."""


@dataclass
class _Kept:
    """A process that waits for its next job, and the site that it is of."""

    worker: Worker | None = None
    site: Site | None = None

    def end(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
        self.worker = None


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def one_process() -> Iterator[None]:
    """Until the block ends, the process of one job carries out the next as well: it has imported torch already."""
    kept = _Kept()
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        kept.end()


@contextmanager
def carrying_out(
    job: Mapping[str, Any], silence_s: float, site: Site | None, *, waits: bool = False
) -> Iterator[tuple[Worker, bool]]:
    """A process that carries out the job, and whether it had another one before. It ends with the block.

    One that `waits` says so in the end (`WAITS`); whoever then calls `keep` leaves it to the next job.
    """
    kept = _kept.get()
    if kept is not None and kept.site != site:
        kept.end()
    job = {**job, WAITS: waits and kept is not None}
    if kept is not None and kept.worker is not None:
        worker, is_used, kept.worker = kept.worker, True, None
        worker.silence_s = silence_s
        worker.send(job)
    else:
        worker, is_used = Worker(job, worker_environment(1, "system"), silence_s, site), False
    try:
        yield worker, is_used
    finally:
        if kept is None or kept.worker is not worker:
            worker.__exit__()


def keep(worker: Worker, site: Site | None) -> None:
    """Leave a process that waits to the next job of this site."""
    kept = _kept.get()
    if kept is not None:
        kept.worker, kept.site = worker, site


def jobs(first: Mapping[str, Any], emit: Callable[..., None], hear: Callable[[], Mapping[str, Any]]) -> Iterator[Any]:
    """The other end: the jobs of one process, the next as soon as the last is done."""
    job = first
    while True:
        yield job
        if not job.get(WAITS):
            return
        emit(WAITS)
        job = {**job, **hear()}
