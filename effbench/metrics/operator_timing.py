"""Profile one cell: the time of each operator, with convolutions and channel shuffles recognised by their shapes.

Time inside nested operators counts towards the outermost one, which the network's code called: a convolution includes
the buffers that its library allocates. Only the device uses torch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from effbench.analysis import stats
from effbench.core.operator_times import Breakdown, OperatorEvent, OperatorTime, WatchedCall
from effbench.core.run import Timing
from effbench.devices import Call, Device

_Key = tuple[str, str, str]
"""(operator that the network called, the operator itself, its kind)."""

PASSES = 5
"""Passes with and without the profiler; they alternate, so that drift affects both equally."""

PASS_S, LEAST_CALLS, MOST_CALLS = 0.1, 2, 10
"""Length of a pass, and its fewest and most calls. The profiler keeps every event of a pass in memory."""

SLOW_S, SLOW_PASSES = 1.0, 3
"""For calls of at least this length, the number of passes, of one call each."""

NO_OPERATORS = (
    "the profiler saw no operator of torch, as under a runtime that launches its kernels itself (a CUDA graph does); "
    "break the network down under eager"
)

_VIEWS = frozenset(("view", "reshape", "unflatten", "_unsafe_view", "_reshape_alias"))
_TRANSPOSES = frozenset(("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"))
_COPIES = frozenset(("reshape", "contiguous", "clone", "copy_", "flatten"))
_NAMED_SHUFFLES = frozenset(("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"))


def time_cell(device: Device, call: Call) -> Breakdown:
    """Profile one cell after its warm-up. Raises OutOfMemory, and whatever the model raises."""
    once_s = device.time_block(call, 1).wall_ns * 1e-9
    is_slow = once_s >= SLOW_S
    calls = 1 if is_slow else min(max(math.ceil(PASS_S / max(once_s, 1e-6)), LEAST_CALLS), MOST_CALLS)
    watched: list[WatchedCall] = []
    alone: list[Timing] = []
    for _ in range(SLOW_PASSES if is_slow else PASSES):
        if not is_slow:
            # An untimed call: reading the profiler's events has filled the caches with other data.
            device.time_block(call, 1)
        alone += [device.time_block(call, 1) for _ in range(calls)]
        found = device.time_operators(call, calls)
        if found is None:
            return Breakdown(missing=f"{device.name} has no profiler")
        if not any(item.events for item in found):
            return Breakdown(missing=NO_OPERATORS)
        watched += found
    device_ns = [timing.device_ns for timing in alone if timing.device_ns is not None]
    return Breakdown(
        calls=len(watched),
        watched_s=stats.median([item.wall_s for item in watched]),
        alone_s=stats.median([timing.wall_ns * 1e-9 for timing in alone]),
        alone_device_s=stats.median(device_ns) * 1e-9 if len(device_ns) == len(alone) else None,
        operators=medians(watched),
    )


def medians(calls: Sequence[WatchedCall]) -> tuple[OperatorTime, ...]:
    """Return the time of each operator, per operator that the network called: the median over calls, longest first.

    The median is taken per operator, since a disturbance usually lengthens only one operator of a call.
    """
    seconds: dict[_Key, list[float]] = defaultdict(list)
    times: Counter[_Key] = Counter()
    for call in calls:
        for key, (spent, number) in _times_of_call(call.events).items():
            seconds[key].append(spent)
            times[key] += number
    found = (
        OperatorTime(
            *key, seconds=stats.median(spent + [0.0] * (len(calls) - len(spent))), times=times[key] / len(calls)
        )
        for key, spent in seconds.items()
    )
    return tuple(sorted(found, key=lambda item: -item.seconds))


def _times_of_call(events: Sequence[OperatorEvent]) -> dict[_Key, tuple[float, int]]:
    """Return seconds and number of executions by (called, operator, kind)."""
    roots = _outermost_operators(events)
    kinds = _convolutions(events, roots) | _shuffles(events, roots)
    found: dict[_Key, tuple[float, int]] = {}
    for event, root in zip(events, roots, strict=True):
        key = (events[root].name, event.name, kinds.get(root, ""))
        seconds, times = found.get(key, (0.0, 0))
        found[key] = (seconds + event.own_s, times + 1)
    return found


def _outermost_operators(events: Sequence[OperatorEvent]) -> list[int]:
    """Return, for each event, the index of its outermost operator, which the network's code called."""
    roots: list[int] = []
    for place, event in enumerate(events):
        roots.append(place if event.parent is None else roots[event.parent])
    return roots


def _convolutions(events: Sequence[OperatorEvent], roots: Sequence[int]) -> dict[int, str]:
    """Return the kind of each outermost operator that is a convolution: dense, grouped or depthwise.

    Every convolution runs ``aten::convolution(input, weight, bias, stride, padding, dilation, transposed,
    output_padding, groups)``, whatever function the network called.
    """
    kinds = {}
    for event, root in zip(events, roots, strict=True):
        if event.name == "aten::convolution" and len(event.values) > 8 and len(event.shapes[0]) > 1:
            groups, channels = event.values[8], event.shapes[0][1]
            dense = groups in (None, 1)
            kinds[root] = "dense" if dense else "depthwise" if groups == channels else "grouped"
    return kinds


def _shuffles(events: Sequence[OperatorEvent], roots: Sequence[int]) -> dict[int, str]:
    """Return the outermost operators that are channel shuffles.

    torch's own shuffles are found by name, others by their three steps: a view splits one dimension in two, a transpose
    swaps the two, and a copy writes the result. Transposes for other purposes (attention heads, a change of layout) do
    not swap the two parts of a split dimension.
    """
    found: dict[int, str] = {}
    viewed: tuple[int, Sequence[int]] | None = None
    transposed: tuple[set[int], Sequence[int]] | None = None
    for event, root in zip(events, roots, strict=True):
        name, called = _without_namespace(event.name), _without_namespace(events[root].name)
        if called in _NAMED_SHUFFLES:
            found[root] = "shuffle"
        elif transposed and name in ("copy_", "clone") and transposed[1] in event.shapes[: 2 if name == "copy_" else 1]:
            found |= dict.fromkeys(transposed[0] | {root}, "shuffle")
            viewed = transposed = None
        elif name in ("view", "_reshape_alias") and called in _VIEWS:
            viewed, transposed = (root, event.shapes[0]), None
        elif name in ("transpose", "permute") and viewed and called in _TRANSPOSES:
            swapped = _shape_after_swap(viewed[1], event)
            transposed = ({viewed[0], root}, swapped) if swapped else None
        elif event.parent is None and called not in _VIEWS | _TRANSPOSES | _COPIES:
            viewed = transposed = None
    return found


def _shape_after_swap(before: Sequence[int], transpose: OperatorEvent) -> Sequence[int] | None:
    """Return the shape after `transpose` if it swaps two dimensions that a view made of one of `before`; else None."""
    split, rank = transpose.shapes[0], len(transpose.shapes[0])
    order = list(range(rank))
    if transpose.name == "aten::transpose":
        first, second = (int(value) % rank for value in transpose.values[1:3])
        order[first], order[second] = second, first
    else:
        order = [value % rank for value in transpose.values[1]]
    for place in range(rank - 1):
        left, right = split[place : place + 2]
        whole = (*split[:place], left * right, *split[place + 2 :])
        swapped = [*range(place), place + 1, place, *range(place + 2, rank)]
        if whole == tuple(before) and min(left, right) > 1 and order == swapped:
            return tuple(split[at] for at in order)
    return None


def _without_namespace(name: str) -> str:
    return name.rpartition("::")[2]
