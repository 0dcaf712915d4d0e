"""The worker process of one launch: read a job from one pipe, measure, write events to another.

Run as ``python -m effbench.runs.worker``. The job is one line of JSON, and so is each event. Only the parent writes
files. Output that the environment or the model prints goes to the standard streams, apart from the events.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn, TextIO

from effbench import devices, runtimes
from effbench._version import __version__
from effbench.analysis import sequential
from effbench.core.errors import CannotStart, EffbenchError, first_line
from effbench.core.operator_times import Breakdown
from effbench.core.run import Block, Warmup
from effbench.core.study import Sampling
from effbench.devices import Call, Device
from effbench.host import worker_process
from effbench.metrics import operator_timing
from effbench.timing import block_loop, build_call, yardstick
from effbench.timing.launch_budget import Stopwatch, with_settling
from effbench.user_code import code_origins, failure_reasons, file_hashes, global_state, opened_files
from effbench.user_code.global_state import SettingsGuard
from effbench.zoo import sys_path
from effbench.zoo.load_model import NETWORK_FAILURES

Emit = Callable[..., None]
NextOrder = Callable[[], Mapping[str, Any]]
"""Waits for the next order of the parent and returns it."""
TimeBlocks = Callable[..., Iterator[Block | str]]
"""Yields blocks and the reason for stopping. Takes `on_visit` as `block_loop.measure_rounds` does."""


def main() -> int:
    """Carry out the job that the parent sends. Return 0 even if every cell was skipped, which the events report."""
    orders, events = _pipes()
    job = json.loads(orders.readline())
    if ahead := job.get("imports"):  # the job itself follows
        with suppress(Exception):  # whatever fails now fails again where it is needed, and is reported there
            importlib.import_module(ahead)
        job = json.loads(orders.readline())
    orders_read: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders, orders_read), daemon=True).start()

    def emit(event: str, **fields: Any) -> None:
        _write(events, {"event": event, **fields})

    try:
        _set_module_path(job)
        if job.get("task") == "peaks":
            from effbench.timing import peaks

            peaks.emit_peaks(job, emit)
        elif job.get("task") in ("count", "shapes"):
            from effbench.cost import count_in_subprocess, helper_process

            for each in helper_process.receive_jobs(job, emit, orders_read.get):
                if each["task"] == "count":
                    count_in_subprocess.emit_counts(each, emit)
                else:
                    count_in_subprocess.emit_declared_shapes(each["models"], emit)
        elif job.get("task"):
            from effbench.metrics import base

            base.measure(job, emit)
        else:
            launch(job, emit, orders_read.get)
    except EffbenchError as error:
        emit("error", message=str(error), cause=error.cause)
    emit(worker_process.DONE)
    return 0


def _pipes() -> tuple[TextIO, TextIO]:
    """Open the pipes for orders and events. The model and its child processes cannot reach them."""
    numbers = os.environ.pop(worker_process.PIPES, "")
    if numbers:
        ours = [int(number) for number in numbers.split(",")]
        for number in ours:
            os.set_inheritable(number, False)
        for number in range(3):
            # If a standard stream was closed, the next opened file would get its number. So open the null device.
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
    else:
        # Windows passes on standard streams only. Copy them, and give the model others to print to and read from.
        ours = [os.dup(0), os.dup(1)]
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    orders, events = ours
    return os.fdopen(orders, encoding="utf-8"), os.fdopen(events, "w", buffering=1, encoding="utf-8")


def _set_module_path(job: Mapping[str, Any]) -> None:
    """Put the job's `paths` first on `sys.path`, after effbench itself is imported.

    Raises CannotStart where a side of a gate has no torch.
    """
    paths = job.get("paths", [])
    if job.get("folder") and (job.get("task") or job["device"] != "fake"):
        try:
            sys_path.import_shadowed_packages([*paths, job["folder"]])
        except ImportError as error:
            message = first_line(error, failure_reasons.MAX_LENGTH)
            raise CannotStart(f"{sys.executable} cannot import torch ({message}); install it there") from error
    sys.path[:] = sys_path.insert_after_stdlib(paths, sys.path)
    if job.get("foreign"):
        opened_files.start_recording()


def _read_orders(orders: TextIO, orders_read: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Read the parent's orders. End this process when the pipe closes, since the parent is gone then.

    Otherwise a model that hangs would run for ever. The thread blocks in a read and uses no CPU time.
    """
    for line in orders:
        orders_read.put(json.loads(line))
    os._exit(1)


def _write(stream: TextIO, record: Mapping[str, Any]) -> None:
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        stream.write(line)
    except BrokenPipeError:
        # The parent is gone, so nothing can be recorded.
        os._exit(1)


def launch(job: Mapping[str, Any], emit: Emit, next_order: NextOrder) -> None:
    """Prepare, warm up and measure the job's cells, and emit every block as soon as it is timed.

    A job with "obeys" is one side of an A/B run. It waits for an order before the warm-up, then times one block per
    order, so that the two sides take turns.
    """
    sampling = Sampling(**job["sampling"])
    device = devices.get(job["device"], **job["device_options"])
    stopwatch = Stopwatch(job, device)
    emit = stopwatch.with_timestamps(emit)
    device.setup()
    about: dict[str, Any] = {}
    for name in job["runtimes"] if device.kind != "fake" else ():
        if runtimes.why_unavailable(name) is None:  # the cells report what is missing
            about |= runtimes.get(name).facts()
    emit("ready", effbench=__version__, facts=device.facts(), runtime_facts=about)
    try:
        with build_call.inference_mode_for(job["mode"], device):
            _carry_out(job, device, global_state.guard_for(device), sampling, stopwatch, emit, next_order)
    except _ProcessUnusable:
        return
    code_origins.refuse_foreign(job)  # includes late imports
    emit("facts", facts=device.facts())


class _ProcessUnusable(Exception):
    """A failed cell has made the device or the process unusable.

    The cell is already reported. The parent starts a new process for the others.
    """


def _carry_out(
    job: Mapping[str, Any],
    device: Device,
    guard: SettingsGuard,
    sampling: Sampling,
    stopwatch: Stopwatch,
    emit: Emit,
    next_order: NextOrder,
) -> None:
    calls = _prepare_all(job, device, guard, emit)
    code_origins.refuse_foreign(job)
    emit("files", files=file_hashes.digests_of_job(job))
    frozen = {spec["id"]: spec["calls"] for spec in job["cells"]}
    obeys = bool(job.get("obeys"))
    if obeys:
        emit("prepared")
        frozen |= next_order()["calls"]
        # The other side's process now uses the same device.
        device.expect_current_processes()
    block_sizes, warmups = _warm_up_all(job, device, guard, calls, frozen, emit)
    null_ns = block_loop.null_call_ns(device)
    budget_s = None if obeys else sequential.rounds_s(sampling, stopwatch.rounds_s())
    emit("null", ns_per_call=null_ns, budget_s=budget_s)
    long = block_loop.cells_with_long_blocks(warmups, block_sizes, alone=len(calls) == 1 and not obeys)
    time_blocks: TimeBlocks
    if budget_s is None:
        time_blocks = partial(block_loop.on_order, device, calls, block_sizes, job["launch"], next_order)
    else:
        pairs = [(spec["id"], spec["reference"]) for spec in job["cells"] if spec["id"] in calls]
        task = block_loop.LaunchTask(
            job["launch"], job["seed"], job["first_round"], budget_s, block_loop.references(pairs), job["clock"]
        )
        time_blocks = partial(block_loop.measure_rounds, device, calls, block_sizes, sampling, task)
    if calls or obeys:
        _freeze_garbage()
        guard.remember_settings()
        guard.record_garbage_collection()
        time_blocks = partial(time_blocks, long_blocks=long)
        _emit_blocks(device, guard, calls, time_blocks, emit, again=obeys)
    if job.get("yardstick") and not obeys:
        _measure_yardstick(device, stopwatch.at_s(), emit)
    for cell in sorted(guard.cells_collecting_garbage):
        emit("probe", cell=cell, values={"garbage": global_state.COLLECTS_GARBAGE})
    for cell, call in calls.items() if job.get("breakdown") else ():
        _time_operators(device, guard, cell, call, emit)
    # Last: a failed graph capture can leave the GPU's allocator unusable. By now every cell is measured.
    kinds = {spec["id"]: spec["runtime"] for spec in job["cells"]} if device.has_probe else {}
    for cell, kind in kinds.items():
        if cell in calls:
            why_no_graph = runtimes.get(kind).why_no_graph
            _probe(device, cell, calls[cell], block_sizes[cell], why_no_graph, emit)
            guard.restore()


def _warm_up_all(
    job: Mapping[str, Any],
    device: Device,
    guard: SettingsGuard,
    calls: dict[str, Call],
    frozen: Mapping[str, int | None],
    emit: Emit,
) -> tuple[dict[str, int], list[Warmup]]:
    """Warm up every cell and fix its calls per block. A cell that fails is reported and removed from `calls`."""
    kinds = {spec["id"]: spec["runtime"] for spec in job["cells"]}
    given, number = Sampling(**job["sampling"]), len(calls)
    block_sizes: dict[str, int] = {}
    warmups: list[Warmup] = []
    for cell in list(calls):
        emit("working", cell=cell)
        try:
            report = partial(_report_call, emit, cell)
            sampling = with_settling(given, runtimes.get(kinds[cell]).settle_s, job["budget_s"], number)
            with guard.calling(cell):
                warmup, size = block_loop.warm_up(device, calls[cell], cell, frozen[cell], sampling, report)
        except NETWORK_FAILURES as error:
            reason = failure_reasons.reason_for(error)
        else:
            warmups.append(warmup)
            block_sizes[cell] = size
            emit("warmup", **asdict(warmup))
            emit("calls", cell=cell, calls=size)
            continue
        del calls[cell]
        _report_failed_cell(device, guard, cell, reason, emit)
    return block_sizes, warmups


def _report_call(emit: Emit, cell: str, seconds: float) -> None:
    emit("call", cell=cell, seconds=seconds)


def _report_failed_cell(device: Device, guard: SettingsGuard, cell: str, reason: str, emit: Emit) -> None:
    """Report a failed cell and free its memory.

    Raises _ProcessUnusable if the device failed or process-wide settings could not be restored.
    """
    emit("skip", cell=cell, reason=reason)
    device.empty_cache()
    if guard.unrestored or device.why_unusable():
        raise _ProcessUnusable


def _probe(device: Device, cell: str, call: Call, calls: int, why_no_graph: str | None, emit: Emit) -> None:
    """Probe one cell. A failure here does not affect measured times."""
    emit("working", cell=cell)
    try:
        found = device.probe(call, calls, why_no_graph=why_no_graph)
    except NETWORK_FAILURES as error:
        found = {"bound": None, "graph_reason": f"not probed: {failure_reasons.reason_for(error)}"}
    if found:
        emit("probe", cell=cell, values=dict(found))


def _freeze_garbage() -> None:
    """Collect garbage once and disable the collector. A collection right before a timed block slows it by 8 %."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _emit_blocks(
    device: Device, guard: SettingsGuard, calls: dict[str, Call], time_blocks: TimeBlocks, emit: Emit, *, again: bool
) -> None:
    """Emit every block as it is timed, until the reason for stopping.

    A cell that fails is reported and removed from `calls`. With `again` the others go on. Otherwise the launch ends
    here, and the parent measures the others without that cell.
    """
    start, current = device.now_s(), ""

    def visiting(cell: str) -> None:
        nonlocal current
        current = cell
        emit("working", cell=cell)

    while True:
        try:
            for item in time_blocks(on_visit=visiting):
                if isinstance(item, Block):
                    guard.require_unchanged(item.cell, quick=True)
                    emit("block", round=item.round, position=item.position, cell=item.cell, timing=asdict(item.timing))
                else:
                    emit("end", stopped=item, seconds=device.now_s() - start)
            return
        except NETWORK_FAILURES as error:
            guard.restore()
            reason = failure_reasons.reason_for(error)
        del calls[current]
        _report_failed_cell(device, guard, current, reason, emit)
        if not again:
            return


def _measure_yardstick(device: Device, spent_s: float, emit: Emit) -> None:
    """Time the yardstick after the rounds. Without it, such as where memory is full, the launch is as good."""
    try:
        blocks = yardstick.time_blocks(device, spent_s)
    except NETWORK_FAILURES:
        return
    emit("yardstick", blocks={cell: [asdict(timing) for timing in timings] for cell, timings in blocks.items()})


def _time_operators(device: Device, guard: SettingsGuard, cell: str, call: Call, emit: Emit) -> None:
    """Profile the operators of one cell, after the rounds. A failure here does not affect measured times."""
    emit("working", cell=cell)
    try:
        with guard.calling(cell):
            found = operator_timing.time_cell(device, call)
    except NETWORK_FAILURES as error:
        found = Breakdown(missing=failure_reasons.reason_for(error))
    emit("breakdown", cell=cell, **asdict(found))


def _prepare_all(job: Mapping[str, Any], device: Device, guard: SettingsGuard, emit: Emit) -> dict[str, Call]:
    """Build the call of every cell. A cell that cannot be prepared is reported and left out."""
    calls: dict[str, Call] = {}
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        try:
            is_first = job.get("launch", 0) == 0
            calls[spec["id"]] = build_call.prepare(spec, job["seed"], device, emit, guard, examine=is_first)
            continue
        except NETWORK_FAILURES as error:
            reason = failure_reasons.reason_for(error)
        _report_failed_cell(device, guard, spec["id"], reason, emit)
    return calls


def _end(code: int) -> NoReturn:
    """End the process without dismantling the interpreter, which takes 0.3 s with torch and 1.7 s with its compiler.

    What was registered with `atexit` runs. The children of `multiprocessing` end in the same way.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # the model may have closed or replaced it
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
