"""One launch = one fresh process: read a job from standard input, measure, write events to standard output.

Run as ``python -m effbench.measurement.worker``. The job is one line of JSON, each event another; the parent owns every
file. Whatever the network itself prints goes to standard error, so that it cannot be taken for an event.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from effbench import devices, runtimes
from effbench._version import __version__
from effbench.core import READINGS, Block, Sampling
from effbench.devices import Call, Device, OutOfMemory
from effbench.errors import CannotStart, EffbenchError
from effbench.measurement import breakdown, loop, origins, preparation
from effbench.measurement.allotment import Stopwatch
from effbench.operator_times import Breakdown
from effbench.zoo import import_path
from effbench.zoo.external import NETWORK_FAILURES

Emit = Callable[..., None]
Hear = Callable[[], Mapping[str, Any]]
"""The next order, once there is one."""


def main() -> int:
    """Carry out the job on standard input. Exit 0 even when every cell was skipped: the events say so."""
    # Copies of the pipes that the network cannot reach: what it prints is no event, what it reads is no job.
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    job = json.loads(orders.readline())
    heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, heard), daemon=True).start()

    def emit(event: str, **fields: Any) -> None:
        _write(events, {"event": event, **fields})

    try:
        _find_modules(job)
        if job.get("task") == "peaks":
            from effbench.measurement import peaks

            peaks.answer(job, emit)
        elif job.get("task") in READINGS:
            from effbench.measurement import readings

            readings.answer(job, emit)
        elif job.get("task"):
            from effbench.measurement import counting

            if job["task"] == "count":
                counting.answer(job, emit)
            else:
                counting.tell_shapes(job["models"], emit)
        else:
            launch(job, emit, heard.get)
    except EffbenchError as error:
        emit("error", message=str(error), cause=error.cause)
    return 0


def _find_modules(job: Mapping[str, Any]) -> None:
    """Import from the job's `paths` first, now that effbench itself has come from its own place.

    Raises CannotStart where a side of a gate has no torch.
    """
    paths = job.get("paths", [])
    if job.get("folder") and (job.get("task") or job["device"] != "fake"):
        try:
            import_path.load_needed([*paths, job["folder"]])
        except ImportError as error:
            raise CannotStart(
                f"{sys.executable} cannot import torch ({_first_line(error)}); install it there"
            ) from error
    sys.path[:] = import_path.arranged(paths, sys.path)


def _listen(orders: TextIO, heard: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Hear the parent's orders. The end of its pipe means that it is gone, even by SIGKILL.

    Without this a network that hangs would run on for ever with nobody to record it. Blocked in a read, this thread
    costs nothing.
    """
    for line in orders:
        heard.put(json.loads(line))
    os._exit(1)


def _write(stream: TextIO, record: Mapping[str, Any]) -> None:
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        stream.write(line)
    except BrokenPipeError:
        # The parent is gone: nobody can record what we measure.
        os._exit(1)


def launch(job: Mapping[str, Any], emit: Emit, hear: Hear) -> None:
    """Prepare, warm up and measure the job's cells, emitting every block as soon as it is known.

    One that "obeys" waits before it warms up, and then times one block an order: another process's turn comes between.
    """
    sampling = Sampling(**job["sampling"])
    device = devices.get(job["device"], **job["device_options"])
    watch = Stopwatch(job, device)
    emit = watch.stamped(emit)
    device.setup()
    about: dict[str, Any] = {}
    for name in job["runtimes"] if device.kind != "fake" else ():
        if runtimes.missing(name) is None:  # its cells say what is missing
            about |= runtimes.get(name).facts()
    emit("ready", effbench=__version__, facts=device.facts(), runtime_facts=about)
    try:
        with preparation.gradients(job["mode"], device):
            _carry_out(job, device, sampling, watch, emit, hear)
    except _Broken:
        return
    origins.refuse_foreign(job)  # also what was imported only when it was used
    emit("facts", facts=device.facts())


class _Broken(Exception):
    """A cell that failed has left the device such that nothing more can run on it in this process.

    The cell is already reported, so that the parent starts a process for the others.
    """


def _carry_out(
    job: Mapping[str, Any], device: Device, sampling: Sampling, watch: Stopwatch, emit: Emit, hear: Hear
) -> None:
    calls = _prepare_all(job, device, emit)
    origins.refuse_foreign(job)
    frozen = {spec["id"]: spec["calls"] for spec in job["cells"]}
    if job.get("obeys"):
        emit("prepared")
        frozen |= hear()["calls"]
        # By now the other side's process computes there too.
        device.admit_processes()
    blocks = _warm_up_all(device, calls, frozen, sampling, emit)
    null_ns = loop.null_call_ns(device)
    job = job if job.get("obeys") else {**job, "budget_s": watch.rounds_s()}
    emit("null", ns_per_call=null_ns, budget_s=None if job.get("obeys") else job["budget_s"])
    if job.get("obeys"):
        _freeze_garbage()
        _obey(device, calls, blocks, emit, hear)
    elif calls:
        _measure(job, device, calls, blocks, sampling, emit)
    for cell, call in calls.items() if job.get("breakdown") else ():
        _break_down(device, cell, call, emit)
    # Last: a capture that fails can leave a GPU's allocator unusable, which by now costs no measured cell.
    kinds = {spec["id"]: spec["runtime"] for spec in job["cells"]} if device.probes else {}
    for cell, kind in kinds.items():
        if cell in calls:
            no_graph = runtimes.get(kind).no_graph
            _probe(device, cell, calls[cell], blocks[cell], no_graph, emit)


def _warm_up_all(
    device: Device, calls: dict[str, Call], frozen: Mapping[str, int | None], sampling: Sampling, emit: Emit
) -> dict[str, int]:
    """Calls per block of every cell. A cell that fails is reported and taken out of `calls`."""
    blocks: dict[str, int] = {}
    for cell in list(calls):
        emit("working", cell=cell)
        try:
            warm, blocks[cell] = loop.warm_up(device, calls[cell], cell, frozen[cell], sampling)
        except NETWORK_FAILURES as error:
            reason = _reason(error)
        else:
            emit("warmup", **asdict(warm))
            emit("calls", cell=cell, calls=blocks[cell])
            continue
        del calls[cell]
        _leave_out(device, cell, reason, emit)
    return blocks


def _leave_out(device: Device, cell: str, reason: str, emit: Emit) -> None:
    """Report a cell that failed, and give back what it held. Raises _Broken where the device did not survive it."""
    emit("skip", cell=cell, reason=reason)
    device.release()
    if device.broken():
        raise _Broken


def _probe(device: Device, cell: str, call: Call, calls: int, no_graph: str | None, emit: Emit) -> None:
    """What fails here costs no measured time."""
    emit("working", cell=cell)
    try:
        found = device.probe(call, calls, no_graph=no_graph)
    except NETWORK_FAILURES as error:
        found = {"bound": None, "graph_reason": f"not probed: {_reason(error)}"}
    if found:
        emit("probe", cell=cell, values=dict(found))


def _freeze_garbage() -> None:
    """Collected once and frozen: a collection right before a timed block costs that block 8 %."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _obey(device: Device, calls: dict[str, Call], blocks: Mapping[str, int], emit: Emit, hear: Hear) -> None:
    """Time one block an order until the order is to end. A cell that fails is reported once and ordered no more."""
    start = device.now_s()
    while (order := hear()).get("cell"):
        cell = order["cell"]
        emit("working", cell=cell)
        try:
            # Untimed: the other side's block has left its own code and data in the caches.
            device.run_calls(calls[cell], 1)
            timing = device.time_block(calls[cell], blocks[cell])
        except NETWORK_FAILURES as error:
            reason = _reason(error)
        else:
            emit("block", round=order["round"], position=order["position"], cell=cell, timing=asdict(timing))
            continue
        del calls[cell]
        _leave_out(device, cell, reason, emit)
    emit("end", stopped="rounds", seconds=device.now_s() - start)


def _measure(
    job: Mapping[str, Any],
    device: Device,
    calls: dict[str, Call],
    blocks: Mapping[str, int],
    sampling: Sampling,
    emit: Emit,
) -> None:
    """Time rounds until they suffice. A cell that fails ends them; it is taken out of `calls`."""
    pairs = [(spec["id"], spec["reference"]) for spec in job["cells"] if spec["id"] in calls]
    task = loop.Slice(
        job["launch"], job["seed"], job["first_round"], job["budget_s"], loop.references(pairs), job["clock"]
    )
    _freeze_garbage()
    start, current = device.now_s(), ""

    def visiting(cell: str) -> None:
        nonlocal current
        current = cell
        emit("working", cell=cell)

    try:
        for item in loop.rounds(device, calls, blocks, sampling, task, visiting):
            if isinstance(item, Block):
                emit("block", round=item.round, position=item.position, cell=item.cell, timing=asdict(item.timing))
            else:
                emit("end", stopped=item, seconds=device.now_s() - start)
        return
    except NETWORK_FAILURES as error:  # a network that fails only now and then; the parent goes on without it
        reason = _reason(error)
    del calls[current]
    _leave_out(device, current, reason, emit)


def _break_down(device: Device, cell: str, call: Call, emit: Emit) -> None:
    """After the rounds, so that no timed block comes near the profiler. What fails here costs no measured time."""
    emit("working", cell=cell)
    try:
        found = breakdown.watch(device, call)
    except NETWORK_FAILURES as error:
        found = Breakdown(missing=_reason(error))
    emit("breakdown", cell=cell, **asdict(found))


def _prepare_all(job: Mapping[str, Any], device: Device, emit: Emit) -> dict[str, Call]:
    """A call per cell; a cell that cannot be prepared is reported and left out, the others go on."""
    calls: dict[str, Call] = {}
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        try:
            calls[spec["id"]] = preparation.prepare(spec, job["seed"], device, emit)
            continue
        except NETWORK_FAILURES as error:
            reason = _reason(error)
        _leave_out(device, spec["id"], reason, emit)
    return calls


def _reason(error: BaseException) -> str:
    if isinstance(error, OutOfMemory):
        return f"out of memory: {_first_line(error)}"
    if isinstance(error, (EffbenchError, runtimes.Unsupported)):
        return _first_line(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


if __name__ == "__main__":
    sys.exit(main())
