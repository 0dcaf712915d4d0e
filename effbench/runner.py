"""Carry a plan out: launch after launch, every block on disk before the next one starts.

The parent process never computes while a worker measures: it reads events and appends records.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from effbench import claims, environment, storage
from effbench._version import __version__
from effbench.core import Block, Cell, Cost, Environment, Result, Run, Timing
from effbench.errors import EffbenchError, StorageError
from effbench.measurement import peaks as measuring
from effbench.measurement.launcher import Worker, WorkerFailed, worker_environment
from effbench.peaks import Peaks
from effbench.plan import Plan
from effbench.storage import RunWriter

CostOf = Callable[[Cell], Cost]
BoundsOf = Callable[[Cell, Peaks], Mapping[str, float]]

STARTS = 2
"""So many processes in a row that end before they work are no accident."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: `done` of 1 by its plan, and what it is doing."""

    done: float
    doing: str


Watch = Callable[[Progress], None]


class Interrupted(Exception):
    """The user stopped the run. What was measured is in `directory`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.directory = directory


@dataclass
class _State:
    """What the runner knows so far; everything in it is also on disk."""

    costs: dict[str, Cost | None]
    bounds: dict[str, Mapping[str, float]] = field(default_factory=dict)
    peaks: dict[str, Any] = field(default_factory=dict)
    """Facts about the device's peaks, for the environment."""
    skipped: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    next_launch: int = 0
    rounds: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    overhead_s: float = 0.0
    failed_starts: int = 0
    matched: bool = False
    """Whether the machine was already checked against the stored environment."""


def execute(
    plan: Plan,
    directory: Path,
    *,
    profile: CostOf,
    bounds: BoundsOf | None = None,
    command: str = "",
    watch: Watch = lambda progress: None,
) -> Run:
    """Measure everything the plan asks for and return the stored run.

    `profile` gives a case's analytic cost; a case it cannot cost is skipped with the reason. `bounds` gives the least
    times of a cell on a device with given peaks; without it none are measured. Raises StorageError,
    EffbenchError when no cell could be measured, Interrupted on Ctrl-C.
    """
    with RunWriter(directory) as writer:
        watch(Progress(0.0, "counting costs"))
        state = _State(costs={})
        for cell in plan.cells:
            try:
                state.costs[cell.id] = profile(cell)
            except EffbenchError as error:
                state.costs[cell.id] = None
                state.skipped[cell.id] = str(error)
        _raise_if_nothing_left(plan, state)
        if bounds is not None:
            watch(Progress(0.0, "measuring the device's peaks"))
            _bound(plan, state, bounds)
        return _measure(plan, writer, state, command, watch, stored=None)


def find_peaks(plan: Plan, dtype: str, *, afresh: bool = False) -> Peaks:
    """The peaks of the plan's device as the plan sets it up: kept ones that fit this machine, else measured and kept.

    Raises EffbenchError where they cannot be measured.
    """
    device, options, threads, allocator = plan.device, plan.device_options, plan.threads, plan.allocator
    key = environment.machine_key(device, options, threads=threads, allocator=allocator, dtype=dtype)
    return measuring.find(key, device, options, threads=threads, allocator=allocator, dtype=dtype, afresh=afresh)


def _bound(plan: Plan, state: _State, bounds: BoundsOf) -> None:
    """The least times of every cell. A device whose peaks cannot be measured costs a run its bounds and no more."""
    for dtype in dict.fromkeys(cell.case.dtype for cell in plan.cells):
        try:
            peaks = find_peaks(plan, dtype)
        except EffbenchError as error:
            state.peaks[f"peaks.{dtype}.missing"] = str(error)
            continue
        state.peaks |= peaks.facts()
        for cell in plan.cells:
            if cell.case.dtype == dtype and state.costs[cell.id] is not None:
                state.bounds[cell.id] = bounds(cell, peaks)


def resume(directory: Path, *, watch: Watch = lambda progress: None) -> Run:
    """Finish an interrupted run: measure only the launches and rounds that it does not hold yet.

    Raises StorageError, CorruptRun, NotComparable when this machine is not the one it was begun on.
    """
    if storage.load(directory).complete:
        return storage.load(directory)
    with RunWriter(directory, resume=True) as writer:
        # Read again under the lock: whoever held it until now may have written more.
        run = storage.load(directory)
        return run if run.complete else _go_on(run, writer, watch)


def _go_on(run: Run, writer: RunWriter, watch: Watch) -> Run:
    if len(run.results) < len(run.experiment.cases):
        raise EffbenchError(
            f"the run in {writer.directory} was stopped before anything was measured; delete it and begin again"
        )
    for result in run.results:
        if result.cell.case.model.startswith("pickle:"):
            raise EffbenchError(
                f"{result.cell.id} was a module of a Python session that has ended; measure it again there"
            )
    plan = _plan_of(run)
    state = _State(costs={result.cell.id: result.cost for result in run.results})
    state.skipped = {result.cell.id: result.skipped for result in run.results if result.skipped}
    state.calls = {result.cell.id: result.calls for result in run.results if result.calls}
    slots = {launch.number: launch.slot for launch in run.launches}
    state.next_launch = max(slots, default=-1) + 1
    state.finished = {launch.slot for launch in run.launches if launch.stopped != "interrupted"}
    for result in run.results:
        for block in result.blocks:
            slot = slots[block.launch]
            state.rounds[slot] = max(state.rounds.get(slot, 0), block.round + 1)
    return _measure(plan, writer, state, run.command, watch, stored=run.environment)


def _plan_of(run: Run) -> Plan:
    first = run.results[0].cell
    options: dict[str, Any] = dict(run.environment.facts.get("run.device_options") or {})
    return Plan(
        experiment=run.experiment,
        cells=tuple(result.cell for result in run.results),
        device=first.device,
        device_options=options,
        runtime=first.runtime,
        threads=first.threads,
        allocator=str(run.environment.facts["run.allocator"]),
        sampling=run.sampling,
        seed=run.seed,
        clock=run.clock,
    )


def _raise_if_nothing_left(plan: Plan, state: _State) -> None:
    if all(cell.id in state.skipped for cell in plan.cells):
        cell, reason = next(iter(state.skipped.items()))
        raise EffbenchError(reason if len(plan.cells) == 1 else f"nothing could be measured; {cell}: {reason}")


def _measure(
    plan: Plan, writer: RunWriter, state: _State, command: str, watch: Watch, stored: Environment | None
) -> Run:
    start = time.monotonic()
    try:
        for slot in range(plan.sampling.launches):
            while slot not in state.finished:
                _raise_if_nothing_left(plan, state)
                left_s = plan.sampling.budget_s - (time.monotonic() - start)
                slots_left = plan.sampling.launches - len(state.finished)
                budget_s = max(0.0, left_s / slots_left - state.overhead_s)
                stored = _launch(plan, writer, state, slot, budget_s, command, watch, stored)
        _raise_if_nothing_left(plan, state)
        writer.append("complete")
        run = storage.load(writer.path)
        writer.verdicts(claims.judge(run))
    except KeyboardInterrupt:
        raise Interrupted(writer.directory) from None
    except StorageError as error:
        raise StorageError(f"{error}; what was measured before is kept in {writer.directory}") from error
    watch(Progress(1.0, "done"))
    return run


def _launch(
    plan: Plan,
    writer: RunWriter,
    state: _State,
    slot: int,
    budget_s: float,
    command: str,
    watch: Watch,
    stored: Environment | None,
) -> Environment | None:
    """One worker process.

    Marks the slot finished, or records which cell ended the process so that the next try leaves it out.
    """
    number, started, working, rounds_started = state.next_launch, time.monotonic(), "", 0.0
    skipped_before = len(state.skipped)
    state.next_launch += 1
    sampling = plan.sampling
    job = _job(plan, state, number, state.rounds.get(slot, 0), budget_s)
    with Worker(job, worker_environment(plan.threads, plan.allocator), sampling.silence_s) as worker:
        try:
            for event in worker.events():
                kind = event.pop("event")
                if kind == "ready":
                    stored = _environment(plan, writer, state, event, command, stored)
                    writer.append("launch", launch=number, slot=slot)
                elif kind == "working":
                    working, state.failed_starts = event["cell"], 0
                    if not rounds_started:
                        watch(Progress(slot / sampling.launches, f"launch {slot + 1}/{sampling.launches}: warming up"))
                elif kind == "block":
                    rounds_started = rounds_started or time.monotonic()
                    writer.block(_block(number, event))
                    state.rounds[slot] = event["round"] + 1
                    share = max(
                        (time.monotonic() - rounds_started) / max(budget_s, 1e-9), event["round"] / sampling.max_rounds
                    )
                    doing = f"launch {slot + 1}/{sampling.launches}: round {event['round'] + 1}, {event['cell']}"
                    watch(Progress((slot + min(share, 1.0)) / sampling.launches, doing))
                elif kind == "skip":
                    _skip(writer, state, event["cell"], event["reason"])
                elif kind == "calls":
                    if event["cell"] not in state.calls:
                        state.calls[event["cell"]] = event["calls"]
                        writer.append("calls", **event)
                elif kind == "error":
                    raise EffbenchError(event["message"] + _kept(writer, stored))
                else:
                    writer.append(kind, launch=number, **event)
                    if kind == "end":
                        state.finished.add(slot)
            ending = "it ended the process without an error"
        except WorkerFailed as failure:
            ending = str(failure)
    if rounds_started:
        state.overhead_s = rounds_started - started
    if slot in state.finished or len(state.skipped) > skipped_before:
        return stored
    if working:
        # Whichever cell was at work is left out of the next try: it may have ended the process, or hung.
        _skip(writer, state, working, ending)
        return stored
    state.failed_starts += 1
    if state.failed_starts >= STARTS:
        raise EffbenchError(f"the measuring process could not start: {ending}{_kept(writer, stored)}")
    return stored


def _skip(writer: RunWriter, state: _State, cell: str, reason: str) -> None:
    state.skipped[cell] = reason
    writer.append("skip", cell=cell, reason=reason)


def _kept(writer: RunWriter, stored: Environment | None) -> str:
    """How to go on after an error that ends a run which has begun."""
    if stored is None:
        return ""
    return (
        f"; what was measured is kept, go on with: {shlex.join(['effbench', 'run', '--resume', str(writer.directory)])}"
    )


def _job(plan: Plan, state: _State, number: int, first_round: int, budget_s: float) -> dict[str, Any]:
    experiment = plan.experiment
    cells = []
    for cell in plan.cells:
        if cell.id in state.skipped:
            continue
        reference, cost = experiment.reference_of(cell.case), state.costs[cell.id]
        cells.append(
            {
                "id": cell.id,
                "model": cell.case.model,
                "arguments": dict(cell.case.arguments),
                "inputs": [dataclasses.asdict(item) for item in cell.case.fed],
                "dtype": cell.case.dtype,
                "batch": cell.batch,
                "calls": state.calls.get(cell.id),
                "reference": None if reference is None else reference.id,
                "cost": {} if cost is None else {"madds": cost.madds, "memory_access_bytes": cost.memory_access_bytes},
            }
        )
    return {
        "launch": number,
        "seed": plan.seed,
        "first_round": first_round,
        "budget_s": budget_s,
        "clock": plan.clock,
        "device": plan.device,
        # A fake device draws different noise in every launch, as a real one would.
        "device_options": dict(plan.device_options) | ({"seed": number} if plan.device == "fake" else {}),
        "runtime": plan.runtime,
        "sampling": dataclasses.asdict(plan.sampling),
        "breakdown": bool(experiment.breakdown),
        "cells": cells,
    }


def _environment(
    plan: Plan, writer: RunWriter, state: _State, ready: Mapping[str, Any], command: str, stored: Environment | None
) -> Environment:
    """The environment record. Written as the run's header by the first launch; a resumed run must find it unchanged."""
    found = environment.collect(
        ready["facts"],
        plan.runtime,
        threads=plan.threads,
        allocator=plan.allocator,
        runtime_facts=ready["runtime_facts"],
    )
    found = replace(found, facts={**found.facts, **state.peaks, "run.device_options": dict(plan.device_options)})
    if stored is None:
        run = Run(
            experiment=plan.experiment,
            environment=found,
            sampling=plan.sampling,
            results=(),
            clock=plan.clock,
            seed=plan.seed,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command,
        )
        writer.header(run, __version__)
        for cell in plan.cells:
            skipped, bounds = state.skipped.get(cell.id), state.bounds.get(cell.id)
            writer.cell(Result(cell, state.costs[cell.id], skipped=skipped, bounds_s=bounds))
    elif not state.matched:
        environment.require_alike(stored, found)
    state.matched = True
    return stored or found


def _block(launch: int, event: Mapping[str, Any]) -> Block:
    timing = Timing(**{**event["timing"], "flags": tuple(event["timing"]["flags"])})
    return Block(launch, event["round"], event["position"], event["cell"], timing)
