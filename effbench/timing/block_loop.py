"""The measuring loop of a launch: calibrate, warm up, then time one block of every cell per round.

The caller supplies the device and the calls. Only the device reads clocks, so tests can drive the loop with a scripted
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effbench.core.run import Block, Timing, Warmup
from effbench.core.study import Sampling
from effbench.devices.base import Call, Device
from effbench.timing.sampling import (
    FEW_BLOCKS,
    FEWEST_VALUES,
    WINDOW,
    is_steady,
    is_steady_of_few,
    reason_to_stop,
    round_order,
)

MIN_WARMUP_CALLS = 3
NULL_CALLS = 10_000

WARM_BLOCK_S = 1.0
"""A block of at least this length needs no untimed call before it. The first call after another network was up to 15 ms
slower than the next (VGG-16 before ResNet-50, at 0.02 to 0.3 s a call). That is 1.5 % of such a block, and both sides
of a ratio have it.
"""

WARM_BLOCK_ALONE_S = 0.05
"""The same limit where no other network runs in between."""

OnCall = Callable[[float], None]
"""A callback that gets the seconds that a call took."""

SLOW_S = 1.0
"""Warm-up blocks of at least this length are reported one by one, so that the parent does not count them as silence."""


@dataclass(frozen=True)
class LaunchTask:
    """What one launch shall measure: from which round on and for how long."""

    launch: int
    seed: int
    first_round: int
    budget_s: float
    references: Mapping[str, str]
    """Cell id → id of the cell its ratio is taken to (itself for a reference)."""
    clock: str = "wall"


def calls_per_block(seconds_per_call: float, sampling: Sampling) -> int:
    """Return the number of calls in a block: the fewest that last `block_s`, but no more than fit in `max_block_s`."""
    if seconds_per_call <= 0:
        return 1
    wanted = math.ceil(sampling.block_s / seconds_per_call)
    allowed = max(1, math.floor(sampling.max_block_s / seconds_per_call))
    return max(1, min(wanted, allowed))


def warm_up(
    device: Device, call: Call, cell: str, calls: int | None, sampling: Sampling, on_call: OnCall = lambda seconds: None
) -> tuple[Warmup, int]:
    """Run one cell until it is steady. Returns the outcome of the warm-up and the calls per block.

    `calls` is the number of calls per block of earlier launches. In the first launch it is None, and calibrated on the
    warmed-up cell. `on_call` is called with the seconds of each calibrating call and of every slow block.

    The warm-up ends once the last ten blocks are steady, or at `max_warmup_s`. If fewer than `FEW_BLOCKS` blocks
    fit, `is_steady_of_few` decides, and the warm-up goes on until it has the values that it needs.
    """
    start, done, times = device.now_s(), 0, []
    first = []
    for _ in range(MIN_WARMUP_CALLS):
        first.append(device.time_block(call, 1))
        on_call(first[-1].wall_ns * 1e-9)
    done += len(first)
    block = calls or calls_per_block(min(timing.wall_ns for timing in first) * 1e-9, sampling)
    # Blocks of one call are like the calibrating calls. The first of these includes one-off costs and is left out.
    few = [_call_s_without_waiting(timing) for timing in first[1:]] if block == 1 else []
    steady_now = False
    while True:
        timing = device.time_block(call, block)
        done += block
        times.append(timing.wall_ns * 1e-9 / block)
        few.append(_call_s_without_waiting(timing))
        if timing.wall_ns >= SLOW_S * 1e9:
            on_call(times[-1])
        spent = device.now_s() - start
        steady_now = is_steady(times)
        if steady_now and spent >= sampling.warmup_s:
            break
        if spent >= sampling.max_warmup_s and len(few) >= FEWEST_VALUES:
            break
    if len(times) < FEW_BLOCKS:
        steady_now = steady_now or is_steady_of_few(few)
    recent = sorted(times[-WINDOW:])
    call_s = recent[len(recent) // 2]
    frozen = calls or calls_per_block(call_s, sampling)
    return Warmup(cell, done, device.now_s() - start, steady_now, call_s), frozen


def _call_s_without_waiting(timing: Timing) -> float:
    """Return wall seconds per call without the time waiting for a core, which other processes cause."""
    return max(timing.wall_ns - timing.run_delay_ns, 0) * 1e-9 / timing.calls


def cells_with_long_blocks(warmups: Iterable[Warmup], block_sizes: Mapping[str, int], *, alone: bool) -> frozenset[str]:
    """Return the cells whose blocks are long enough to need no untimed call before them.

    `block_sizes` holds the calls per block of each cell. Pass `alone` if nothing else runs between two blocks.
    """
    least_s = WARM_BLOCK_ALONE_S if alone else WARM_BLOCK_S
    return frozenset(warm.cell for warm in warmups if warm.call_s * block_sizes[warm.cell] >= least_s)


def null_call_ns(device: Device) -> float:
    """Measure the overhead of the timing loop: nanoseconds per call of an empty function, timed like any cell."""
    timings = [device.time_block(_nothing, NULL_CALLS).wall_ns / NULL_CALLS for _ in range(5)]
    return sorted(timings)[2]


def _nothing() -> None:
    return None


def measure_rounds(
    device: Device,
    calls: Mapping[str, Call],
    block_sizes: Mapping[str, int],
    sampling: Sampling,
    task: LaunchTask,
    on_visit: Callable[[str], None] = lambda cell: None,
    long_blocks: Collection[str] = (),
) -> Iterator[Block | str]:
    """Yield every block as it is measured, and at the end the reason for stopping.

    `calls` and `block_sizes` hold the call of each cell and the number of calls in its blocks. `on_visit` is called
    with each cell before it runs, so that a crash can be attributed to a cell. Each visit starts with one untimed call,
    except for cells with `long_blocks`, which need none.
    """
    series: dict[str, list[float]] = {cell: [] for cell in calls}
    start, done = device.now_s(), 0
    while True:
        seen: dict[str, Block] = {}
        number = task.first_round + done
        for position, cell in enumerate(round_order(list(calls), seed=task.seed, launch=task.launch, round=number)):
            timing = _visit(device, calls, block_sizes, cell, on_visit, long_blocks)
            block = Block(task.launch, number, position, cell, timing)
            yield block
            seen[cell] = block
        done += 1
        for cell, block in seen.items():
            reference = seen.get(task.references.get(cell, cell), block)
            # The precision of the reference is that of its time, of other cells that of their ratio: drift cancels.
            own, other = _log_times(task.clock, block, reference)
            series[cell].append(own if reference is block else own - other)
        judged = {cell: values for cell, values in series.items() if task.references.get(cell, cell) != cell} or series
        reason = reason_to_stop(
            judged, rounds=done, spent_s=device.now_s() - start, budget_s=task.budget_s, sampling=sampling
        )
        if reason:
            yield reason
            return


def on_order(
    device: Device,
    calls: Mapping[str, Call],
    block_sizes: Mapping[str, int],
    launch: int,
    next_order: Callable[[], Mapping[str, Any]],
    on_visit: Callable[[str], None] = lambda cell: None,
    long_blocks: Collection[str] = (),
) -> Iterator[Block | str]:
    """Yield one block per order, as `measure_rounds` does, until an order names no cell."""
    while (order := next_order()).get("cell"):
        timing = _visit(device, calls, block_sizes, order["cell"], on_visit, long_blocks)
        yield Block(launch, order["round"], order["position"], order["cell"], timing)
    yield "rounds"


def _visit(
    device: Device,
    calls: Mapping[str, Call],
    block_sizes: Mapping[str, int],
    cell: str,
    on_visit: Callable[[str], None],
    long_blocks: Collection[str],
) -> Timing:
    on_visit(cell)
    if cell not in long_blocks:
        # Untimed: the previous cell, or the other side of a gate, has filled the caches with its own code and data.
        device.run_calls(calls[cell], 1)
    return device.time_block(calls[cell], block_sizes[cell])


def _log_times(clock: str, *blocks: Block) -> list[float]:
    """Return log seconds per call of each block, on the run's clock if all of them have it, else by the wall clock."""
    times = [block.per_call_s(clock) for block in blocks]
    if None in times:
        times = [block.per_call_s() for block in blocks]
    return [math.log(max(seconds or 0.0, 1e-12)) for seconds in times]


def references(cells: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """Map each cell to its reference, or to itself where the reference is not measured."""
    present = {cell for cell, _ in cells}
    return {cell: reference if reference in present and reference else cell for cell, reference in cells}
