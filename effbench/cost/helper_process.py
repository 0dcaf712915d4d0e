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
class _IdleWorker:
    """A worker process that waits for its next job, and the site whose code it has imported."""

    worker: Worker | None = None
    site: Site | None = None

    def end(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
        self.worker = None


_idle_worker: ContextVar[_IdleWorker | None] = ContextVar("idle_worker", default=None)


@contextmanager
def reuse_process() -> Iterator[None]:
    """Let one worker process carry out all jobs of the block, since importing torch takes seconds."""
    idle = _IdleWorker()
    token = _idle_worker.set(idle)
    try:
        yield
    finally:
        _idle_worker.reset(token)
        idle.end()


def end_idle_process() -> None:
    """End the process that waits for further jobs. The next job starts another one."""
    if (idle := _idle_worker.get()) is not None:
        idle.end()


@contextmanager
def worker_for(
    job: Mapping[str, Any], silence_s: float, site: Site | None, *, waits: bool = False
) -> Iterator[tuple[Worker, bool]]:
    """Yield a worker that carries out the job, and whether it had a job before. The worker ends with the block.

    With `waits` it reports at the end that it waits for another job (`WAITS`). To reuse it, call `keep_for_next_job`.
    """
    idle = _idle_worker.get()
    if idle is not None and idle.site != site:
        idle.end()
    job = {**job, WAITS: waits and idle is not None}
    if idle is not None and idle.worker is not None:
        worker, is_used, idle.worker = idle.worker, True, None
        worker.silence_s = silence_s
        worker.send(job)
    else:
        worker, is_used = Worker(job, worker_environment(1, "system"), silence_s, site), False
    try:
        yield worker, is_used
    finally:
        if idle is None or idle.worker is not worker:
            worker.__exit__()


def keep_for_next_job(worker: Worker, site: Site | None) -> None:
    """Reuse this worker, which waits, for the next job of the same site."""
    idle = _idle_worker.get()
    if idle is not None:
        idle.worker, idle.site = worker, site


def receive_jobs(
    first: Mapping[str, Any], emit: Callable[..., None], read_order: Callable[[], Mapping[str, Any]]
) -> Iterator[Any]:
    """Yield the jobs of a worker process, in that process: the first, then each that `read_order` returns."""
    job = first
    while True:
        yield job
        if not job.get(WAITS):
            return
        emit(WAITS)
        job = {**job, **read_order()}
