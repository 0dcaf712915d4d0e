"""Carry out one launch: start its worker process, and record what it measures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from effbench.analysis import sequential
from effbench.core.errors import EffbenchError, StorageError
from effbench.host.worker_process import Worker, WorkerEvents, worker_environment
from effbench.runs import early_stop
from effbench.runs.progress import LaunchProgress, Watch
from effbench.runs.recorder import Recording
from effbench.studies.plan import Plan
from effbench.timing.least_duration import Forecast

UNRECORDED = ("working", "call", "prepared", "facts")
"""Events that report the progress of a worker and are not stored, since other records hold their content."""

MAX_FAILED_STARTS = 2
"""Give up after this many processes in a row that end before they start to work."""


@dataclass
class LaunchState:
    """What the launches of a run have done so far."""

    next_launch: int = 0
    rounds: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    used_s: dict[int, float] = field(default_factory=dict)
    """Seconds of the budget that each slot has used, including launches before an interruption."""
    after_s: float = 0.0
    """Seconds that the last finished launch took after its rounds."""
    disturbance: str = ""
    """What disturbed the last finished launch; "" if nothing did."""
    failed_starts: int = 0
    forecast: Forecast | None = None
    """Created for the first launch of this process."""
    has_stopped: bool = False
    """Whether the reason is recorded why the run ends before its last launch."""
    early_worker: Worker | None = None
    """The process of the first launch, which was started while costs are counted and waits for its job."""

    @contextmanager
    def first_worker_early(self, plan: Plan) -> Iterator[None]:
        """Start the process of the first launch, which imports torch meanwhile. It ends with the block, if not before.

        Only a run that stops by itself does so, since its user waits for an answer. In other runs the import counts
        against the launch's share of the budget, as in every launch. Neither a bundle nor a fake device needs torch.
        """
        if plan.sampling.until != "launches" and plan.device != "fake" and plan.bundled is None:
            self.early_worker = Worker({"imports": "torch"}, _environment(plan), plan.sampling.silence_s)
        try:
            yield
        finally:
            if self.early_worker is not None:
                self.early_worker.__exit__()

    def worker_for(self, job: Mapping[str, Any], plan: Plan) -> Worker:
        """Return a worker that carries out the job of a launch."""
        worker, self.early_worker = self.early_worker, None
        if worker is None:
            return Worker(job, _environment(plan), plan.sampling.silence_s)
        worker.send(job)
        return worker


def _environment(plan: Plan) -> dict[str, str]:
    return worker_environment(plan.threads, plan.allocator)


def carry_out_launch(record: Recording, state: LaunchState, slot: int, watch: Watch) -> None:
    """Run the worker process of one launch.

    Marks the slot as finished, or skips the cell that ended the process, so that the next try leaves it out.
    """
    plan, sampling = record.plan, record.plan.sampling
    progress = LaunchProgress(state.next_launch, slot, sampling, watch)
    skipped_before = len(record.skipped)
    state.next_launch += 1
    left = early_stop.launches_left(sampling, len(state.finished))
    if state.forecast is None:
        cells = sum(cell.id not in record.skipped for cell in plan.cells)
        used_s = sum(state.used_s.values())
        state.forecast = Forecast(sampling, sampling.budget_s, cells=cells, launches_left=left, used_s=used_s)
        progress.forecast = state.forecast
    # The same share for each launch, however long the others took, and whenever they were carried out.
    share_s = sampling.budget_s / sequential.least_launches(sampling)
    slice_s = max(0.0, share_s - state.used_s.get(slot, 0.0))
    stopwatch = {"after_s": state.after_s, "begun_s": progress.begun_s}
    job = record.job(progress.number, state.rounds.get(slot, 0), slice_s, **stopwatch)
    is_recorded = False
    try:
        with state.worker_for(job, plan) as worker:
            events = WorkerEvents(worker)
            for event in events:
                kind = event["event"]
                progress.handle_event(event)
                if kind in UNRECORDED:
                    state.failed_starts = 0
                    continue
                record.record_event(progress.number, event)
                if kind == "ready":
                    record.begin_launch(progress.number, slot, progress.observed)
                    is_recorded = True
                elif kind == "block":
                    state.rounds[slot] = event["round"] + 1
                elif kind == "end":
                    state.finished.add(slot)
    finally:
        # Also after Ctrl-C. On a full disk the original error is the one to report.
        used_s = progress.at_s if plan.device == "fake" else time.monotonic() - progress.begun_s
        state.used_s[slot] = state.used_s.get(slot, 0.0) + used_s
        conditions = None
        if is_recorded:
            with suppress(StorageError):
                conditions = record.end_launch(progress.number, progress.observed, used_s)
    if slot in state.finished:
        state.after_s = used_s - progress.ended_s
        state.disturbance = progress.disturbance.reason(None if plan.device == "fake" else conditions, plan.threads)
    if slot in state.finished or len(record.skipped) > skipped_before:
        return
    ending = events.failure or "it ended the process without an error"
    if progress.working:
        # The next try leaves out the cell that the worker was at: it may have ended the process, or hung.
        record.skip(progress.working, ending)
        return
    state.failed_starts += 1
    if state.failed_starts >= MAX_FAILED_STARTS:
        raise EffbenchError(f"the measuring process could not start: {ending}{record.resume_advice()}")
