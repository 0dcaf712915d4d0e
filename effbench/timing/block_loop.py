"""Calibrate, warm up, then visit every cell once a round. Nothing else decides what is timed next.

The caller supplies the device and the calls; this module never looks at a clock itself, so a scripted device
drives it in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from effbench.core.run import Block, Timing, Warmup
from effbench.core.study import Sampling
from effbench.devices.base import Call, Device
from effbench.timing import schedule, stop, warmup

MIN_WARMUP_CALLS = 3
NULL_CALLS = 10_000

WARM_BLOCK_S = 1.0
"""A block of this length needs no untimed call before it. The first call after another network was up to 15 ms slower
than the next (VGG-16 before ResNet-50, at 0.02 to 0.3 s a call): 1.5 % of such a block, on either side of a ratio.
"""

WARM_BLOCK_ALONE_S = 0.05
"""The same where no other network runs in between."""

Told = Callable[[float], None]
"""Hears how many seconds a call took."""

SLOW_S = 1.0
"""Warm-up blocks from this length on are told one by one: whoever waits must not take them for silence."""


@dataclass(frozen=True)
class Slice:
    """What one launch is asked to do: which cells, from which round on, for how long."""

    launch: int
    seed: int
    first_round: int
    budget_s: float
    references: Mapping[str, str]
    """Cell id → id of the cell its ratio is taken to (itself for a reference)."""
    clock: str = "wall"


def calls_per_block(seconds_per_call: float, sampling: Sampling) -> int:
    """k, so that a block lasts at least `block_s` but, where more than one call fits, no more than `max_block_s`."""
    if seconds_per_call <= 0:
        return 1
    wanted = math.ceil(sampling.block_s / seconds_per_call)
    allowed = max(1, math.floor(sampling.max_block_s / seconds_per_call))
    return max(1, min(wanted, allowed))


def warm_up(
    device: Device, call: Call, cell: str, calls: int | None, sampling: Sampling, told: Told = lambda seconds: None
) -> tuple[Warmup, int]:
    """Run one cell to its steady state. Returns how that went and the calls per block.

    `calls` is the frozen k of earlier launches, or None in the first, where it is calibrated on the warmed-up cell.
    `told` hears of each calibrating call, and of every slow block after them.

    The warm-up ends with the first ten blocks that are steady, or at its cap. Where few blocks fit under the cap, those
    that there are decide (`warmup.steady_of_few`), and it goes on until they are as many as that needs.
    """
    start, done, times = device.now_s(), 0, []
    first = []
    for _ in range(MIN_WARMUP_CALLS):
        first.append(device.time_block(call, 1))
        told(first[-1].wall_ns * 1e-9)
    done += len(first)
    block = calls or calls_per_block(min(timing.wall_ns for timing in first) * 1e-9, sampling)
    # A block of one call is what the calibrating calls were, but the first, which pays for more than the network.
    few = [_own_s(timing) for timing in first[1:]] if block == 1 else []
    is_steady = False
    while True:
        timing = device.time_block(call, block)
        done += block
        times.append(timing.wall_ns * 1e-9 / block)
        few.append(_own_s(timing))
        if timing.wall_ns >= SLOW_S * 1e9:
            told(times[-1])
        spent = device.now_s() - start
        is_steady = warmup.steady(times)
        if is_steady and spent >= sampling.warmup_s:
            break
        if spent >= sampling.max_warmup_s and len(few) >= warmup.LEAST:
            break
    if len(times) < warmup.FEW_BLOCKS:
        is_steady = is_steady or warmup.steady_of_few(few)
    recent = sorted(times[-warmup.WINDOW :])
    call_s = recent[len(recent) // 2]
    frozen = calls or calls_per_block(call_s, sampling)
    return Warmup(cell, done, device.now_s() - start, is_steady, call_s), frozen


def _own_s(timing: Timing) -> float:
    """Wall seconds per call without the time that the block waited for a core: that is a neighbour's drift."""
    return max(timing.wall_ns - timing.run_delay_ns, 0) * 1e-9 / timing.calls


def warm_blocks(warmups: Iterable[Warmup], blocks: Mapping[str, int], *, alone: bool) -> frozenset[str]:
    """Cells whose blocks are so long that they need no untimed call before them.

    `alone` says that nothing else runs between two blocks of a cell.
    """
    least_s = WARM_BLOCK_ALONE_S if alone else WARM_BLOCK_S
    return frozenset(warm.cell for warm in warmups if warm.call_s * blocks[warm.cell] >= least_s)


def null_call_ns(device: Device) -> float:
    """What the harness itself costs: nanoseconds per call of an empty function, timed like any cell."""
    timings = [device.time_block(_nothing, NULL_CALLS).wall_ns / NULL_CALLS for _ in range(5)]
    return sorted(timings)[2]


def _nothing() -> None:
    return None


def rounds(
    device: Device,
    calls: Mapping[str, Call],
    blocks: Mapping[str, int],
    sampling: Sampling,
    task: Slice,
    on_visit: Callable[[str], None] = lambda cell: None,
    warm: Collection[str] = (),
) -> Iterator[Block | str]:
    """Yield every block as it is measured, and last the reason for stopping.

    `on_visit` hears of each cell before it runs, so that whoever watches knows which cell a crash belongs to. Each
    visit makes one untimed call first, but to the cells that are `warm`: the cell before has left its own code and data
    in the caches.
    """
    series: dict[str, list[float]] = {cell: [] for cell in calls}
    start, done = device.now_s(), 0
    while True:
        seen: dict[str, Block] = {}
        number = task.first_round + done
        for position, cell in enumerate(schedule.order(list(calls), seed=task.seed, launch=task.launch, round=number)):
            on_visit(cell)
            if cell not in warm:
                device.run_calls(calls[cell], 1)
            timing = device.time_block(calls[cell], blocks[cell])
            block = Block(task.launch, number, position, cell, timing)
            yield block
            seen[cell] = block
        done += 1
        for cell, block in seen.items():
            reference = seen.get(task.references.get(cell, cell), block)
            # The reference itself is judged by its time, every other cell by its ratio, in which drift cancels.
            own, other = _logs(task.clock, block, reference)
            series[cell].append(own if reference is block else own - other)
        judged = {cell: values for cell, values in series.items() if task.references.get(cell, cell) != cell} or series
        reason = stop.reason_to_stop(
            judged, rounds=done, spent_s=device.now_s() - start, budget_s=task.budget_s, sampling=sampling
        )
        if reason:
            yield reason
            return


def _logs(clock: str, *blocks: Block) -> list[float]:
    """The logarithms of their times a call, on the run's clock where all of them have it, else by the wall."""
    times = [block.per_call_s(clock) for block in blocks]
    if None in times:
        times = [block.per_call_s() for block in blocks]
    return [math.log(max(seconds or 0.0, 1e-12)) for seconds in times]


def references(cells: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """Each cell with its reference; a cell whose reference is not being measured stands for itself."""
    present = {cell for cell, _ in cells}
    return {cell: reference if reference in present and reference else cell for cell, reference in cells}
