"""Carry out a plan: start one worker process a launch and write every block to disk before the next one starts.

The parent process never computes while a worker measures. It only reads events and appends records.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, InvalidValue, NotComparable, StorageError
from effbench.core.peaks import Peaks
from effbench.core.run import Metric, Run
from effbench.core.study import Cell
from effbench.cost import helper_process
from effbench.host import facts, machine, temporary_folders
from effbench.host.emulation import EMULATED, is_emulated
from effbench.host.worker_process import worker_environment
from effbench.metrics import base
from effbench.runs import early_stop, launch_history, run_file, schedule, schema
from effbench.runs.launch import LaunchState, carry_out_launch
from effbench.runs.progress import Progress as Progress
from effbench.runs.progress import Watch as Watch
from effbench.runs.recorder import Recording, require_same_bundle, resume_command
from effbench.runs.run_file import RunWriter
from effbench.runs.schedule import Schedule, Timer, scripted_timer
from effbench.studies.plan import Bundled, Plan
from effbench.timing import peaks
from effbench.user_code import file_hashes

CostOf = Callable[[Cell], Cost]
BoundsOf = Callable[[Cell, Peaks], Mapping[str, float]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. The message names the folder, and how to finish the run.

    Attributes
    ----------
    directory
        Folder of the blocks measured so far.
    """

    def __init__(self, directory: Path, advice: str = "") -> None:
        super().__init__(f"interrupted; what was measured is in {directory}" + (f"; {advice}" if advice else ""))
        self.directory = directory


def execute(
    plan: Plan,
    directory: Path,
    *,
    profile: CostOf,
    bounds: BoundsOf | None = None,
    command: str = "",
    watch: Watch = lambda progress: None,
    launches_now: int | None = None,
    stops_if_disturbed: bool = False,
    can_resume: bool = True,
    timer: Timer | None = None,
) -> Run:
    """Measure every cell of the plan and return the stored run.

    `profile` counts the cost of a cell; a cell that it cannot count is skipped with the reason. `bounds` computes the
    roofline bounds of a cell from the device's peaks; without it no peaks are measured. `launches_now`,
    `stops_if_disturbed` and `timer` are those of `Schedule`: the run is not complete where it ends before the last
    launch. `can_resume` is False where nobody finishes the run later: it is not saved, or belongs to a gate. Raises
    InvalidValue, StorageError, EffbenchError when no cell could be measured, Interrupted on Ctrl-C.
    """
    why_no_resume = schedule.why_no_resume(plan.cells, plan.bundled is not None)
    if launches_now is not None and why_no_resume:
        raise InvalidValue(
            f"{why_no_resume}, so no later process can carry out the other launches; leave launches_now out"
        )
    times = Schedule(
        plan.sampling,
        timer or _timer_of(plan.device),
        launches_now=launches_now,
        stops_if_disturbed=stops_if_disturbed and can_resume and not why_no_resume,
    )
    state = LaunchState()
    with RunWriter(directory) as writer, temporary_folders.folder() as folder, state.first_worker_early(plan):
        watch(Progress(0.0, "counting costs"))
        record = Recording(plan, writer, folder, command, can_resume=can_resume and not why_no_resume)
        record.skipped.update(plan.bundled.absent if plan.bundled else {})
        for cell in plan.cells:
            try:
                record.costs[cell.id] = profile(cell)
            except EffbenchError as error:
                record.costs[cell.id] = None
                record.skipped[cell.id] = str(error)
        _raise_if_nothing_left(record)
        if bounds is not None:
            watch(Progress(0.0, "measuring the device's peaks"))
            _add_bounds(record, bounds)
        if plan.sampling.spread_s:
            helper_process.end_idle_process()  # it would hold memory until the last launch
        return _measure(record, state, watch, times)


def find_peaks(plan: Plan, dtype: str, *, remeasure: bool = False) -> Peaks:
    """Return the peaks of the plan's device under its settings, from the cache if it has them, else measured.

    Raises EffbenchError where they cannot be measured.
    """
    device, options, threads, allocator = plan.device, plan.device_options, plan.threads, plan.allocator
    if device != "fake" and machine.emulated(machine.HERE, platform.machine()):
        raise EffbenchError(f"{EMULATED}; measure peaks on the hardware itself")
    key = facts.machine_key(device, options, threads=threads, allocator=allocator, dtype=dtype)
    return peaks.load_or_measure(
        key, device, options, threads=threads, allocator=allocator, dtype=dtype, remeasure=remeasure
    )


def _add_bounds(record: Recording, bounds: BoundsOf) -> None:
    """Compute the roofline bounds of every cell. Where peaks cannot be measured, record the reason and go on."""
    for dtype in dict.fromkeys(cell.case.dtype for cell in record.plan.cells):
        if why := _why_no_bounds(record.plan.cells[0].mode, dtype):
            record.peaks[f"peaks.{dtype}.missing"] = why
            continue
        try:
            found = find_peaks(record.plan, dtype)
        except EffbenchError as error:
            record.peaks[f"peaks.{dtype}.missing"] = str(error)
            continue
        record.peaks |= found.facts()
        for cell in record.plan.cells:
            if cell.case.dtype == dtype and record.costs[cell.id] is not None:
                record.bounds[cell.id] = bounds(cell, found)


def _why_no_bounds(mode: str, dtype: str) -> str:
    """Return why the device's peaks give no bounds for these cells; "" if they do."""
    if mode == "train":
        return "counts are of the forward pass, times of a training step"
    return "torch has no int8 kernel whose speed could stand for a runtime's" if dtype == "int8" else ""


def resume(
    directory: Path,
    *,
    watch: Watch = lambda progress: None,
    bundled: Bundled | None = None,
    launches_now: int | None = None,
    timer: Timer | None = None,
) -> Run:
    """Finish an interrupted run: measure only the launches and rounds that it does not hold yet.

    `bundled` locates the models, for the run of a bundle. `launches_now` and `timer` are those of `Schedule`. Raises
    InvalidValue, StorageError, CorruptRun, and NotComparable when the conditions differ from those at the start of the
    run.
    """
    if launches_now is not None:
        schedule.require_launches_now(launches_now)
    if (run := run_file.load(directory)).complete:
        return _complete_run(run, directory, watch)
    if run_file.is_fleet_copy(directory):
        raise EffbenchError(
            f"{directory} is a copy of a run that a machine of a fleet holds; go on with: {resume_command(directory)}"
        )
    with RunWriter(directory, resume=True) as writer, temporary_folders.folder() as folder:
        # Read again under the lock: another process may have written more until now.
        run = run_file.load(directory)
        if run.complete:
            return _complete_run(run, directory, watch)
        times = Schedule(
            run.sampling,
            timer or _timer_of(run.environment.device),
            begun_s=schedule.begun_s(run),
            launches_now=launches_now,
        )
        return _continue_run(run, writer, folder, watch, bundled, times)


def _complete_run(run: Run, directory: Path, watch: Watch) -> Run:
    """Return a complete run; report if the model's files have changed since."""
    try:
        file_hashes.require_unchanged(run.files)
    except NotComparable as error:
        watch(Progress(1.0, "done", f"the run in {directory} is complete, so nothing is measured; {error}"))
    return run


def _timer_of(device: str) -> Timer:
    return scripted_timer() if device == "fake" else Timer()


def _continue_run(
    run: Run, writer: RunWriter, folder: Path, watch: Watch, bundled: Bundled | None, times: Schedule
) -> Run:
    require_same_bundle(run, writer.directory, bundled.digest if bundled else None)
    if len(run.results) < len(run.experiment.cases):
        raise EffbenchError(
            f"the run in {writer.directory} was stopped before anything was measured; delete it and begin again"
        )
    if why := schedule.why_no_resume((result.cell for result in run.results), bundled is not None):
        raise EffbenchError(f"{why}, so this run cannot be finished later; measure it again there")
    try:
        file_hashes.require_unchanged(run.files)
    except NotComparable as error:
        raise NotComparable(f"{error}; what was measured is kept in {writer.directory}") from None
    record = Recording(dataclasses.replace(plan_of(run), bundled=bundled), writer, folder, run.command, run.environment)
    record.costs = {result.cell.id: result.cost for result in run.results}
    record.files = dict(run.files)
    record.skipped = {result.cell.id: result.skipped for result in run.results if result.skipped}
    record.calls = {result.cell.id: result.calls for result in run.results if result.calls}
    record.measured_metrics = {(result.cell.id, metric.what) for result in run.results for metric in result.metrics}
    record.has_scatter = run.between_sittings is not None
    state = LaunchState(used_s=launch_history.used_s_by_slot(run), after_s=launch_history.after_s(run))
    state.has_stopped = run.stop is not None
    slots = {launch.number: launch.slot for launch in run.launches}
    state.next_launch = max(slots, default=-1) + 1
    state.finished = schedule.finished_slots(run)
    for result in run.results:
        for block in result.blocks:
            slot = slots[block.launch]
            state.rounds[slot] = max(state.rounds.get(slot, 0), block.round + 1)
    return _measure(record, state, watch, times)


def plan_of(run: Run) -> Plan:
    """Rebuild the plan of a stored run."""
    first = run.results[0].cell
    options: dict[str, Any] = dict(run.environment.facts.get("run.device_options") or {})
    return Plan(
        experiment=run.experiment,
        cells=tuple(result.cell for result in run.results),
        device=first.device,
        device_options=options,
        runtime=run.environment.runtime,
        threads=first.threads,
        allocator=str(run.environment.facts["run.allocator"]),
        sampling=run.sampling,
        seed=run.seed,
        clock=run.clock,
        metrics=tuple(str(run.environment.facts.get(schema.METRICS_FACT) or "").split()),
    )


def _raise_if_nothing_left(record: Recording) -> None:
    cells = record.plan.cells
    if all(cell.id in record.skipped for cell in cells):
        cell, reason = next(iter(record.skipped.items()))
        raise EffbenchError(reason if len(cells) == 1 else f"nothing could be measured; {cell}: {reason}")


def _measure(record: Recording, state: LaunchState, watch: Watch, times: Schedule) -> Run:
    writer, sampling = record.writer, record.plan.sampling
    later = resume_command(writer.directory, record.plan.bundled) if record.can_resume else ""
    try:
        for slot in sorted(set(range(sampling.launches)) - state.finished):
            used_s = sum(state.used_s.values())
            if state.has_stopped or early_stop.ends_here(writer, sampling, len(state.finished), used_s):
                break
            if times.is_over:
                return run_file.load(writer.path)
            times.wait_for(slot, watch)
            while slot not in state.finished:
                _raise_if_nothing_left(record)
                carry_out_launch(record, state, slot, watch)
            record.record_scatter()
            times.end_launch(slot, state.disturbance, watch, later)
            if times.stop_reason:
                writer.append("disturbance", reason=times.stop_reason)
        _raise_if_nothing_left(record)
        _measure_metrics(record, watch)
        run = record.complete()
    except KeyboardInterrupt:
        raise Interrupted(writer.directory, _python_advice(record)) from None
    except StorageError as error:
        raise StorageError(f"{error}; what was measured before is kept in {writer.directory}") from error
    watch(Progress(1.0, "done"))
    return run


def _python_advice(record: Recording) -> str:
    """Return the Python call that finishes an interrupted run, or reads one that cannot be finished."""
    plan, place = record.plan, repr(str(record.writer.directory))
    if not record.can_resume:
        why = schedule.why_no_resume(plan.cells, plan.bundled is not None)
        return f"effbench.load({place}) reads it" + (f" ({why}, so it cannot be finished later)" if why else "")
    if plan.bundled is not None:
        return f"finish it with effbench.run_bundle({plan.bundled.folder!r}, resume={place})"
    return f"finish it with effbench.resume({place})"


def _measure_metrics(record: Recording, watch: Watch) -> None:
    """Measure the secondary metrics of every cell that was not skipped. A metric that fails records the reason."""
    plan = record.plan
    for what in plan.metrics:
        left = [
            cell
            for cell in plan.cells
            if cell.id not in record.skipped and (cell.id, what) not in record.measured_metrics
        ]
        if what != "instructions" and record.stored is not None and is_emulated(record.stored):
            for cell in left:
                record.writer.metric(cell.id, Metric(what, missing=EMULATED))
            continue
        job = {
            "task": what,
            "seed": plan.seed,
            "device": plan.device,
            "device_options": dict(plan.device_options),
            "mode": plan.cells[0].mode,
            "files": record.files,
            "sampling": dataclasses.asdict(plan.sampling),
        }
        taken = base.measure_cells(
            job,
            [record.cell_spec(cell) for cell in left],
            worker_environment(plan.threads, plan.allocator),
            plan.sampling.silence_s,
            partial(_report_metric, watch, what),
        )
        for cell_id, metric in taken:
            record.writer.metric(cell_id, metric)


def _report_metric(watch: Watch, what: str, cell: str) -> None:
    watch(Progress(1.0, f"{what.replace('_', ' ')} of {cell}"))
