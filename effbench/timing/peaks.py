"""Measure the peaks of a device for rooflines: the highest FLOP rate and memory bandwidth of large operators.

Each peak is the faster of two operators, so that no network exceeds it. On an AMD processor the 3×3 convolution of
oneDNN is twice as fast as the matrix product of MKL. A copy reads its target into the cache first, so it reaches a
lower counted bandwidth than an update in place.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effbench import devices
from effbench.core import decoding, peaks
from effbench.core.errors import EffbenchError, first_line, message_of
from effbench.core.peaks import Peaks
from effbench.devices import Call, Device, OutOfMemory
from effbench.host import optional_packages
from effbench.host.worker_process import Worker, WorkerEvents, worker_environment

if TYPE_CHECKING:
    from torch import Tensor

COPY_BYTES = 256 << 20
"""Size of a copy's buffer: several times the last-level cache that one core of a large server can use."""

SIZES = (256, 512, 1024, 2048, 4096, 8192)
"""Sides of the matrices, tried in turn until a product takes `LONG_S`; larger ones reach no higher rate."""

RANDOM_VALUES = 1 << 20
"""Random values drawn on the host for one operand, then repeated: repetition changes neither time nor power."""

LONG_S = 0.01
BLOCK_S = 0.005
BLOCKS = 8
SERIES_S = 0.4
"""Time limit for the blocks of one operator and size; at least three blocks are timed."""


@dataclass(frozen=True)
class _Operator:
    """One large operator: its multiply-adds or bytes moved, and a function that makes the call."""

    make: Callable[[], Call]
    madds: int = 0
    moved: int = 0


def load_or_measure(
    key: str,
    device: str,
    options: Mapping[str, Any],
    *,
    threads: int,
    allocator: str,
    dtype: str,
    remeasure: bool = False,
) -> Peaks:
    """Return the peaks stored under `key` (`host.facts.machine_key`), or measure and store them.

    With `remeasure` they are always measured. Measuring takes about two seconds, in a process of its own with the
    thread count and the allocator of a run. Raises EffbenchError with the reason if it fails.
    """
    if devices.kind_of(device) == "fake":  # scripted: nothing to store, no process needed
        return measure(devices.get(device, **options), dtype, 0)
    found = None if remeasure else peaks.read_cached(key)
    if found is None:
        job = {"task": "peaks", "device": device, "device_options": dict(options), "dtype": dtype, "threads": threads}
        found = _measure_in_worker(job, threads, allocator)
        peaks.write_cached(key, found)
    return found


def _measure_in_worker(job: Mapping[str, Any], threads: int, allocator: str) -> Peaks:
    optional_packages.require("torch")
    message = ""
    with Worker(job, worker_environment(threads, allocator), silence_s=120.0) as worker:
        events = WorkerEvents(worker)
        for event in events:
            if event["event"] == "peaks":
                return decoding.decode(event["peaks"], Peaks)
            message = event["message"]
    reason = events.failure or message or events.ending
    raise EffbenchError(f"the peaks of {job['device']} in {job['dtype']} could not be measured: {reason}")


def emit_peaks(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Measure the peaks in the child process that `load_or_measure` starts, and emit them as one event."""
    import torch

    device = devices.get(job["device"], **job["device_options"])
    try:
        with torch.inference_mode():
            emit("peaks", peaks=asdict(measure(device, job["dtype"], job["threads"])))
    except (OutOfMemory, RuntimeError) as error:  # a dtype for which this device has no kernel
        emit("error", message=first_line(error, 200))


def measure(device: Device, dtype: str, threads: int) -> Peaks:
    """Measure the peaks in this process. Raises OutOfMemory where not even the smallest operators fit."""
    device.setup()
    clock = "cpu" if device.kind == "cpu" and threads == 1 else "wall"
    flops = [
        rate
        for operator in (_matrix_product, _convolution)
        for rate in _rates_of_growing_sizes(device, operator, dtype, clock)
    ]
    moved = [rate for operator in (_copy, _update) for rate in _rates(device, operator(device, dtype), clock)]
    return Peaks(
        flops_per_s=max(flops),
        bytes_per_s=max(moved),
        dtype=dtype,
        threads=threads,
        measured=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        flops_samples=tuple(flops),
        bytes_samples=tuple(moved),
    )


def _rates_of_growing_sizes(
    device: Device, operator: Callable[[Device, str, int], _Operator], dtype: str, clock: str
) -> Iterator[float]:
    """Yield the FLOP/s of one operator in growing sizes, until a call takes `LONG_S` or memory runs out."""
    for side in SIZES:
        work = operator(device, dtype, side)
        try:
            rates = list(_rates(device, work, clock))
        except OutOfMemory:
            if side == SIZES[0]:
                raise
            return
        yield from rates
        if 2 * work.madds / max(rates) > LONG_S:
            return


def _rates(device: Device, work: _Operator, clock: str) -> Iterator[float]:
    """Yield FLOP/s, or bytes/s, of each of several blocks, after one untimed call."""
    scripted = device.kind == "fake"
    try:
        call = device.bind(None if scripted else work.make(), {"madds": work.madds, "memory_access_bytes": work.moved})
    except MemoryError as error:
        raise OutOfMemory(message_of(error)) from error
    device.time_block(call, 1)
    calls = max(1, round(BLOCK_S / _seconds_per_call(device, call, 1, clock)))
    start = device.now_s()
    for number in range(BLOCKS):
        if number >= 3 and device.now_s() - start > SERIES_S:
            return
        yield (2 * work.madds or work.moved) / _seconds_per_call(device, call, calls, clock)


def _seconds_per_call(device: Device, call: Call, calls: int, clock: str) -> float:
    """Return seconds per call: CPU time for one CPU thread, which waiting for a core does not affect, else device time,
    else wall time.
    """
    timing = device.time_block(call, calls)
    spent = timing.cpu_ns if clock == "cpu" else timing.device_ns or timing.wall_ns
    return max(spent or timing.wall_ns, 1) / calls * 1e-9


# --- the operators ----------------------------------------------------------------------------------


def _matrix_product(device: Device, dtype: str, side: int) -> _Operator:
    """Return a matrix product of two side × side matrices."""

    def make() -> Call:
        left, right = _random_values(device, dtype, side, side), _random_values(device, dtype, side, side)
        return lambda: left @ right

    return _Operator(make, madds=side**3)


def _convolution(device: Device, dtype: str, side: int) -> _Operator:
    """Return a 3×3 convolution on 28×28 with side/2 input and output channels."""
    channels = side // 2

    def make() -> Call:
        from torch.nn.functional import conv2d

        images = _random_values(device, dtype, 1, channels, 28, 28)
        weights = _random_values(device, dtype, channels, channels, 3, 3)
        return lambda: conv2d(images, weights, padding=1)

    return _Operator(make, madds=28 * 28 * 9 * channels**2)


def _copy(device: Device, dtype: str) -> _Operator:
    """Return a copy of one buffer into another."""
    size = _buffer_bytes(device)

    def make() -> Call:
        source = _buffer(device, dtype, size)
        target = source.clone()
        return lambda: target.copy_(source)

    return _Operator(make, moved=2 * size)


def _update(device: Device, dtype: str) -> _Operator:
    """Return an in-place update of one buffer."""
    size = _buffer_bytes(device)

    def make() -> Call:
        buffer = _buffer(device, dtype, size)
        return lambda: buffer.neg_()

    return _Operator(make, moved=2 * size)


def _buffer(device: Device, dtype: str, size: int) -> Tensor:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    found: Tensor = device.place(torch.ones(size // kind.itemsize, dtype=kind))
    return found


def _buffer_bytes(device: Device) -> int:
    """Return `COPY_BYTES`, or less where this machine has little free memory."""
    if device.kind != "cpu":
        return COPY_BYTES
    try:
        import psutil

        spare = int(psutil.virtual_memory().available) // 8
    except Exception:  # not installed, or no /proc
        return COPY_BYTES
    return max(1 << 20, min(COPY_BYTES, spare)) & ~0xFF


def _random_values(device: Device, dtype: str, *shape: int) -> Tensor:
    """Return a tensor of normal values. At most `RANDOM_VALUES` are drawn, and then repeated on the device.

    The largest convolution has 150 million weights: drawing them all would take seconds of a CPU core and 600 MB.
    """
    import torch

    number = math.prod(shape)
    drawn: Tensor = device.place(torch.randn(min(number, RANDOM_VALUES)).to(getattr(torch, dtype)))
    return drawn.repeat(-(-number // len(drawn)))[:number].view(shape)
