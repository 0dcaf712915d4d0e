"""One launch = one fresh process: read a job from standard input, measure, write events to standard output.

Run as ``python -m effbench.measurement.worker``. The job is one line of JSON, each event another; the parent owns every file. Whatever the
network itself prints goes to standard error, so that it cannot be taken for an event.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from effbench import devices, runtimes
from effbench.core import Block, Sampling
from effbench.devices import Call, Device, OutOfMemory
from effbench.errors import EffbenchError
from effbench.measurement import loop

Emit = Callable[..., None]


def main() -> int:
    """Carry out the job on standard input. Exit 0 even when every cell was skipped: the events say so."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())

    def emit(event: str, **fields: Any) -> None:
        _write(events, {"event": event, **fields})

    try:
        launch(job, emit)
    except EffbenchError as error:
        emit("error", message=str(error))
    except BrokenPipeError:
        # The parent is gone: nobody can record what we measure.
        os._exit(1)
    return 0


def _write(stream: TextIO, record: Mapping[str, Any]) -> None:
    stream.write(json.dumps(record, allow_nan=False) + "\n")


def launch(job: Mapping[str, Any], emit: Emit) -> None:
    """Prepare, warm up and measure the job's cells, emitting every block as soon as it is known."""
    sampling = Sampling(**job["sampling"])
    device = devices.get(job["device"], **job["device_options"])
    device.setup()
    emit("ready", facts=device.facts())
    with _inference(device):
        calls = _prepare_all(job, device, emit)
        blocks: dict[str, int] = {}
        for cell in list(calls):
            frozen = next(spec["calls"] for spec in job["cells"] if spec["id"] == cell)
            emit("working", cell=cell)
            try:
                warm, blocks[cell] = loop.warm_up(device, calls[cell], cell, frozen, sampling)
                probed = device.probe(calls[cell], blocks[cell])
            except OutOfMemory as error:
                emit("skip", cell=cell, reason=f"out of memory: {_first_line(error)}")
                del calls[cell]
                device.release()
                continue
            emit("warmup", **asdict(warm))
            emit("calls", cell=cell, calls=blocks[cell])
            if probed:
                emit("probe", cell=cell, values=dict(probed))
        emit("null", ns_per_call=loop.null_call_ns(device))
        if calls:
            _measure(job, device, calls, blocks, sampling, emit)
    emit("facts", facts=device.facts())


def _measure(
    job: Mapping[str, Any],
    device: Device,
    calls: Mapping[str, Call],
    blocks: Mapping[str, int],
    sampling: Sampling,
    emit: Emit,
) -> None:
    pairs = [(spec["id"], spec["reference"]) for spec in job["cells"] if spec["id"] in calls]
    task = loop.Slice(
        job["launch"], job["seed"], job["first_round"], job["budget_s"], loop.references(pairs), job["clock"]
    )
    # Collected once and frozen: a collection right before a timed block costs that block 8 %.
    gc.collect()
    gc.freeze()
    gc.disable()
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
    except BrokenPipeError:
        raise
    except OutOfMemory as error:
        emit("skip", cell=current, reason=f"out of memory: {_first_line(error)}")
    except Exception as error:  # a network that fails only now and then; the parent goes on without it
        emit("skip", cell=current, reason=f"{type(error).__name__}: {_first_line(error)}")


def _prepare_all(job: Mapping[str, Any], device: Device, emit: Emit) -> dict[str, Call]:
    """A call per cell; a cell that cannot be prepared is reported and left out, the others go on."""
    calls: dict[str, Call] = {}
    for spec in job["cells"]:
        emit("working", cell=spec["id"])
        try:
            calls[spec["id"]] = _prepare(spec, job, device)
        except OutOfMemory as error:
            emit("skip", cell=spec["id"], reason=f"out of memory: {_first_line(error)}")
            device.release()
        except (EffbenchError, runtimes.Unsupported) as error:
            emit("skip", cell=spec["id"], reason=_first_line(error))
        except Exception as error:  # a user's network may raise anything, and the other cells must go on
            emit("skip", cell=spec["id"], reason=f"{type(error).__name__}: {_first_line(error)}")
    return calls


def _prepare(spec: Mapping[str, Any], job: Mapping[str, Any], device: Device) -> Call:
    if device.kind == "fake":
        return device.bind(None, spec["cost"])
    import torch

    from effbench import zoo

    torch.manual_seed(job["seed"])
    network = device.place(zoo.resolve(spec["model"], spec["arguments"])).eval()
    dtype = getattr(torch, spec["dtype"])
    if dtype.is_floating_point:
        network = network.to(dtype)
    generator = torch.Generator().manual_seed(job["seed"])
    shape = (spec["batch"], *spec["input_shape"])
    input_bytes = torch.empty(shape, dtype=dtype, device="meta").nbytes
    inputs: list[tuple[torch.Tensor, ...]] = [
        (device.place(torch.randn(shape, generator=generator).to(dtype)),) for _ in range(device.rotations(input_bytes))
    ]
    call = runtimes.get(job["runtime"]).prepare(network, inputs)
    with _out_of_memory_translated(device):
        call()
        device.synchronize()
    return device.bind(call, spec["cost"])


@contextlib.contextmanager
def _out_of_memory_translated(device: Device) -> Any:
    """The first call may already run out of memory, before any block is timed."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_first_line(error)) from error


def _inference(device: Device) -> contextlib.AbstractContextManager[Any]:
    if device.kind == "fake":
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
