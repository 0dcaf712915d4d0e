"""Adapt ``torch.profiler``. No other module starts it or reads its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from effbench.core.operator_times import OperatorEvent, WatchedCall

MARK = "effbench: one call"
"""Name of the ``record_function`` block around each profiled call."""


def profile_calls(
    call: Callable[[], object], calls: int, *, synchronize: Callable[[], None] | None = None
) -> list[WatchedCall]:
    """Profile `calls` calls and return each one's wall time and operators.

    With `synchronize`, every call is waited for, and an operator's own time is that of the GPU kernels that it
    launched. Without it, an operator's own time is CPU time.
    """
    # Recording shapes is the largest overhead of the profiler, so only one extra call records them.
    (shown,) = _profile(call, 1, synchronize, shapes=True)
    timed = _profile(call, calls, synchronize, shapes=False)
    if any(_names_and_parents(item.events) != _names_and_parents(shown.events) for item in timed):
        return _profile(call, calls, synchronize, shapes=True)  # the operators differ from call to call
    return [
        replace(
            item,
            events=[
                replace(event, shapes=seen.shapes, values=seen.values)
                for event, seen in zip(item.events, shown.events, strict=True)
            ],
        )
        for item in timed
    ]


def _names_and_parents(events: Sequence[OperatorEvent]) -> list[tuple[str, int | None]]:
    return [(event.name, event.parent) for event in events]


def _profile(
    call: Callable[[], object], calls: int, synchronize: Callable[[], None] | None, *, shapes: bool
) -> list[WatchedCall]:
    """Profile the calls after one that is discarded: the first call under a profiler pays for the profiler's
    buffers.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if synchronize else [])
    wait, walls = synchronize or _nothing, []
    with profile(activities=activities, record_shapes=shapes) as profiler:
        call()
        wait()
        for _ in range(calls):
            with record_function(MARK):
                start = time.perf_counter()
                call()
                wait()
                walls.append(time.perf_counter() - start)
    events = events_per_call(profiler.events(), on_gpu=synchronize is not None)
    return [WatchedCall(wall, found) for wall, found in zip(walls, events, strict=True)]


def events_per_call(found: Any, *, on_gpu: bool) -> list[list[OperatorEvent]]:
    """Return, for each marked call, its operators and the events that ran inside an operator.

    Events of other CPU threads carry no mark; their time belongs to the operator that waits for them. A block that a
    network names with ``record_function`` is no operator. Operators inside such a block are kept.
    """
    calls: list[list[OperatorEvent]] = []
    positions: dict[int, tuple[int, int]] = {}
    """Maps ``id(event)`` to the event's call and its position in that call."""
    marks: dict[int, int] = {}
    on_cpu = (event for event in found or () if event.device_type.name == "CPU")
    for event in sorted(on_cpu, key=lambda event: (event.time_range.start, -event.time_range.end)):
        if event.name == MARK:
            marks[id(event)] = len(calls)
            calls.append([])
            continue
        above = event.cpu_parent
        while above is not None and id(above) not in positions and id(above) not in marks:
            above = above.cpu_parent
        if above is None:
            continue
        number, parent = positions.get(id(above)) or (marks[id(above)], None)
        is_operator = "::" in event.name and not getattr(event, "is_user_annotation", False)
        if not is_operator and parent is None:
            continue
        positions[id(event)] = (number, len(calls[number]))
        calls[number].append(_operator_event(event, parent, on_gpu))
    return calls


def _operator_event(event: Any, parent: int | None, on_gpu: bool) -> OperatorEvent:
    own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
    shapes = tuple(tuple(shape) for shape in event.input_shapes or ())
    # These times come from two clocks, and rounding can make the own time of a wrapper negative.
    return OperatorEvent(event.name, parent, max(0.0, own_us * 1e-6), shapes, tuple(event.concrete_inputs or ()))


def _nothing() -> None:
    return None
