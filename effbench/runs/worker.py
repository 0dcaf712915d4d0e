"""One launch = one fresh process: read a job from one pipe, measure, write events to another.

Run as ``python -m effbench.runs.worker``. The job is one line of JSON, each event another; the parent owns every
file. Whatever the environment or the network prints goes to the standard streams, so that it is not taken for an event.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TextIO

from effbench import devices, runtimes
from effbench._version import __version__
from effbench.core.errors import CannotStart, EffbenchError
from effbench.core.operator_times import Breakdown
from effbench.core.run import Block, Warmup
from effbench.core.study import Sampling
from effbench.devices import Call, Device
from effbench.host import worker_process
from effbench.metrics import operator_profile
from effbench.timing import block_loop, build_call
from effbench.timing.launch_budget import Stopwatch
from effbench.user_code import code_origins, failure_reasons, file_hashes, global_state, opened_files
from effbench.user_code.global_state import SettingsGuard
from effbench.zoo import sys_path
from effbench.zoo.load_model import NETWORK_FAILURES

Emit = Callable[..., None]
Hear = Callable[[], Mapping[str, Any]]
"""The next order, once there is one."""


def main() -> int:
    """Carry out the job that the parent sends. Exit 0 even when every cell was skipped: the events say so."""
    orders, events = _pipes()
    job = json.loads(orders.readline())
    heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, heard), daemon=True).start()

    def emit(event: str, **fields: Any) -> None:
        _write(events, {"event": event, **fields})

    try:
        _find_modules(job)
        if job.get("task") == "peaks":
            from effbench.timing import peaks

            peaks.answer(job, emit)
        elif job.get("task") in ("count", "shapes"):
            from effbench.cost import count_in_subprocess, helper_process

            for each in helper_process.jobs(job, emit, heard.get):
                if each["task"] == "count":
                    count_in_subprocess.answer(each, emit)
                else:
                    count_in_subprocess.tell_shapes(each["models"], emit)
        elif job.get("task"):
            from effbench.metrics import base

            base.answer(job, emit)
        else:
            launch(job, emit, heard.get)
    except EffbenchError as error:
        emit("error", message=str(error), cause=error.cause)
    emit(worker_process.DONE)
    return 0


def _pipes() -> tuple[TextIO, TextIO]:
    """Where orders come from and events go to: pipes that no network and none of its processes can reach."""
    numbers = os.environ.pop(worker_process.PIPES, "")
    if numbers:
        ours = [int(number) for number in numbers.split(",")]
        for number in ours:
            os.set_inheritable(number, False)
        for number in range(3):
            # A start-up file may have closed one; the next file to be opened would become it.
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
    else:
        # Windows hands over standard streams only. Copies: what the network prints is no event, what it reads no job.
        ours = [os.dup(0), os.dup(1)]
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    orders, events = ours
    return os.fdopen(orders, encoding="utf-8"), os.fdopen(events, "w", buffering=1, encoding="utf-8")


def _find_modules(job: Mapping[str, Any]) -> None:
    """Import from the job's `paths` first, now that effbench itself has come from its own place.

    Raises CannotStart where a side of a gate has no torch.
    """
    paths = job.get("paths", [])
    if job.get("folder") and (job.get("task") or job["device"] != "fake"):
        try:
            sys_path.load_needed([*paths, job["folder"]])
        except ImportError as error:
            said = failure_reasons.first_line(error)
            raise CannotStart(f"{sys.executable} cannot import torch ({said}); install it there") from error
    sys.path[:] = sys_path.arranged(paths, sys.path)
    if job.get("foreign"):
        opened_files.start_recording()


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
        with build_call.gradients(job["mode"], device):
            _carry_out(job, device, global_state.guard_for(device), sampling, watch, emit, hear)
    except _Broken:
        return
    code_origins.refuse_foreign(job)  # also what was imported only when it was used
    emit("facts", facts=device.facts())


class _Broken(Exception):
    """A cell that failed has left the device such that nothing more can run on it in this process.

    The cell is already reported, so that the parent starts a process for the others.
    """


def _carry_out(
    job: Mapping[str, Any],
    device: Device,
    held: SettingsGuard,
    sampling: Sampling,
    watch: Stopwatch,
    emit: Emit,
    hear: Hear,
) -> None:
    calls = _prepare_all(job, device, held, emit)
    code_origins.refuse_foreign(job)
    emit("files", files=file_hashes.digests_of_job(job))
    frozen = {spec["id"]: spec["calls"] for spec in job["cells"]}
    if job.get("obeys"):
        emit("prepared")
        frozen |= hear()["calls"]
        # By now the other side's process computes there too.
        device.admit_processes()
    blocks, warm = _warm_up_all(device, held, calls, frozen, sampling, emit)
    null_ns = block_loop.null_call_ns(device)
    job = job if job.get("obeys") else {**job, "budget_s": watch.rounds_s()}
    emit("null", ns_per_call=null_ns, budget_s=None if job.get("obeys") else job["budget_s"])
    if job.get("obeys"):
        _freeze_garbage()
        held.renew()
        held.listen()
        _obey(device, held, calls, blocks, emit, hear, block_loop.warm_blocks(warm, blocks, alone=False))
    elif calls:
        ready = block_loop.warm_blocks(warm, blocks, alone=len(calls) == 1)
        _measure(job, device, held, calls, blocks, sampling, emit, ready)
    for cell in sorted(held.collectors):
        emit("probe", cell=cell, values={"garbage": global_state.COLLECTS_GARBAGE})
    for cell, call in calls.items() if job.get("breakdown") else ():
        _break_down(device, held, cell, call, emit)
    # Last: a capture that fails can leave a GPU's allocator unusable, which by now costs no measured cell.
    kinds = {spec["id"]: spec["runtime"] for spec in job["cells"]} if device.probes else {}
    for cell, kind in kinds.items():
        if cell in calls:
            no_graph = runtimes.get(kind).no_graph
            _probe(device, cell, calls[cell], blocks[cell], no_graph, emit)
            held.restore()


def _warm_up_all(
    device: Device,
    held: SettingsGuard,
    calls: dict[str, Call],
    frozen: Mapping[str, int | None],
    sampling: Sampling,
    emit: Emit,
) -> tuple[dict[str, int], list[Warmup]]:
    """Calls per block of every cell, and how it warmed up. A cell that fails is reported and taken out of `calls`."""
    blocks: dict[str, int] = {}
    warmups: list[Warmup] = []
    for cell in list(calls):
        emit("working", cell=cell)
        try:
            told = partial(_tell_call, emit, cell)
            with held.calling(cell):
                warm, blocks[cell] = block_loop.warm_up(device, calls[cell], cell, frozen[cell], sampling, told)
        except NETWORK_FAILURES as error:
            reason = failure_reasons.reason_for(error)
        else:
            warmups.append(warm)
            emit("warmup", **asdict(warm))
            emit("calls", cell=cell, calls=blocks[cell])
            continue
        del calls[cell]
        _leave_out(device, held, cell, reason, emit)
    return blocks, warmups


def _tell_call(emit: Emit, cell: str, seconds: float) -> None:
    emit("call", cell=cell, seconds=seconds)


def _leave_out(device: Device, held: SettingsGuard, cell: str, reason: str, emit: Emit) -> None:
    """Report a cell that failed, and give back what it held. Raises _Broken where the device did not survive it, or
    the process is not as it was.
    """
    emit("skip", cell=cell, reason=reason)
    device.release()
    if held.spoiled or device.broken():
        raise _Broken


def _probe(device: Device, cell: str, call: Call, calls: int, no_graph: str | None, emit: Emit) -> None:
    """What fails here costs no measured time."""
    emit("working", cell=cell)
    try:
        found = device.probe(call, calls, no_graph=no_graph)
    except NETWORK_FAILURES as error:
        found = {"bound": None, "graph_reason": f"not probed: {failure_reasons.reason_for(error)}"}
    if found:
        emit("probe", cell=cell, values=dict(found))


def _freeze_garbage() -> None:
    """Collected once and frozen: a collection right before a timed block costs that block 8 %."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _obey(
    device: Device,
    held: SettingsGuard,
    calls: dict[str, Call],
    blocks: Mapping[str, int],
    emit: Emit,
    hear: Hear,
    warm: Collection[str] = (),
) -> None:
    """Time one block an order until the order is to end. A cell that fails is reported once and ordered no more.

    `warm` are cells that need no untimed call before a block.
    """
    start = device.now_s()
    while (order := hear()).get("cell"):
        cell = order["cell"]
        emit("working", cell=cell)
        try:
            if cell not in warm:
                # Untimed: the other side's block has left its own code and data in the caches.
                device.run_calls(calls[cell], 1)
            timing = device.time_block(calls[cell], blocks[cell])
            held.require(cell, quick=True)
        except NETWORK_FAILURES as error:
            held.restore()
            reason = failure_reasons.reason_for(error)
        else:
            emit("block", round=order["round"], position=order["position"], cell=cell, timing=asdict(timing))
            continue
        del calls[cell]
        _leave_out(device, held, cell, reason, emit)
    emit("end", stopped="rounds", seconds=device.now_s() - start)


def _measure(
    job: Mapping[str, Any],
    device: Device,
    held: SettingsGuard,
    calls: dict[str, Call],
    blocks: Mapping[str, int],
    sampling: Sampling,
    emit: Emit,
    warm: Collection[str] = (),
) -> None:
    """Time rounds until they suffice. A cell that fails ends them; it is taken out of `calls`."""
    pairs = [(spec["id"], spec["reference"]) for spec in job["cells"] if spec["id"] in calls]
    task = block_loop.Slice(
        job["launch"], job["seed"], job["first_round"], job["budget_s"], block_loop.references(pairs), job["clock"]
    )
    _freeze_garbage()
    held.renew()
    held.listen()
    start, current = device.now_s(), ""

    def visiting(cell: str) -> None:
        nonlocal current
        current = cell
        emit("working", cell=cell)

    try:
        for item in block_loop.rounds(device, calls, blocks, sampling, task, visiting, warm):
            if isinstance(item, Block):
                held.require(item.cell, quick=True)
                emit("block", round=item.round, position=item.position, cell=item.cell, timing=asdict(item.timing))
            else:
                emit("end", stopped=item, seconds=device.now_s() - start)
        return
    except NETWORK_FAILURES as error:  # a network that fails only now and then; the parent goes on without it
        held.restore()
        reason = failure_reasons.reason_for(error)
    del calls[current]
    _leave_out(device, held, current, reason, emit)


def _break_down(device: Device, held: SettingsGuard, cell: str, call: Call, emit: Emit) -> None:
    """After the rounds, so that no timed block comes near the profiler. What fails here costs no measured time."""
    emit("working", cell=cell)
    try:
        with held.calling(cell):
            found = operator_profile.watch(device, call)
    except NETWORK_FAILURES as error:
        found = Breakdown(missing=failure_reasons.reason_for(error))
    emit("breakdown", cell=cell, **asdict(found))


def _prepare_all(job: Mapping[str, Any], device: Device, held: SettingsGuard, emit: Emit) -> dict[str, Call]:
    """A call per cell; a cell that cannot be prepared is reported and left out, the others go on."""
    calls: dict[str, Call] = {}
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        try:
            looks = job.get("launch", 0) == 0
            calls[spec["id"]] = build_call.prepare(spec, job["seed"], device, emit, held, looks=looks)
            continue
        except NETWORK_FAILURES as error:
            reason = failure_reasons.reason_for(error)
        _leave_out(device, held, spec["id"], reason, emit)
    return calls


if __name__ == "__main__":
    sys.exit(main())
