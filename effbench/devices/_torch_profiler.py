"""The thin adapter to ``torch.profiler``: the only place that starts it and reads its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from effbench.core.operator_times import OperatorEvent, WatchedCall

MARK = "effbench: one call"
"""The block that each watched call stands in."""


def watch(
    call: Callable[[], object], calls: int, *, synchronize: Callable[[], None] | None = None
) -> list[WatchedCall]:
    """Run `calls` calls under the profiler, each with its wall time and operators.

    With `synchronize` every call is waited for and an operator's own time is that of the GPU kernels it launched;
    without it, its CPU time.
    """
    # Writing shapes down costs more than all else that the profiler does, so one call is watched for them alone.
    (shown,) = _watched(call, 1, synchronize, shapes=True)
    timed = _watched(call, calls, synchronize, shapes=False)
    if any(_outline(item.events) != _outline(shown.events) for item in timed):
        return _watched(call, calls, synchronize, shapes=True)  # what runs differs from call to call
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


def _outline(events: Sequence[OperatorEvent]) -> list[tuple[str, int | None]]:
    return [(event.name, event.parent) for event in events]


def _watched(
    call: Callable[[], object], calls: int, synchronize: Callable[[], None] | None, *, shapes: bool
) -> list[WatchedCall]:
    """The first call after a profiler started pays for its buffers: it is not among them."""
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
    events = per_call(profiler.events(), on_gpu=synchronize is not None)
    return [WatchedCall(wall, found) for wall, found in zip(walls, events, strict=True)]


def per_call(found: Any, *, on_gpu: bool) -> list[list[OperatorEvent]]:
    """The events of ``torch.profiler`` inside each marked call that are operators, or ran inside one.

    What other CPU threads do is part of the operator that waits for them, and carries no mark. A block that a network
    names with ``record_function`` is no operator; the operators inside it stay, and so they do in what follows.
    """
    calls: list[list[OperatorEvent]] = []
    places: dict[int, tuple[int, int]] = {}
    """Where an event went: its call and its place in it."""
    marks: dict[int, int] = {}
    on_cpu = (event for event in found or () if event.device_type.name == "CPU")
    for event in sorted(on_cpu, key=lambda event: (event.time_range.start, -event.time_range.end)):
        if event.name == MARK:
            marks[id(event)] = len(calls)
            calls.append([])
            continue
        above = event.cpu_parent
        while above is not None and id(above) not in places and id(above) not in marks:
            above = above.cpu_parent
        if above is None:
            continue
        number, parent = places.get(id(above)) or (marks[id(above)], None)
        is_operator = "::" in event.name and not getattr(event, "is_user_annotation", False)
        if not is_operator and parent is None:
            continue
        places[id(event)] = (number, len(calls[number]))
        calls[number].append(_event(event, parent, on_gpu))
    return calls


def _event(event: Any, parent: int | None, on_gpu: bool) -> OperatorEvent:
    own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
    shapes = tuple(tuple(shape) for shape in event.input_shapes or ())
    # Clocks of two kinds meet here: rounding may leave a wrapper with less than nothing.
    return OperatorEvent(event.name, parent, max(0.0, own_us * 1e-6), shapes, tuple(event.concrete_inputs or ()))


def _nothing() -> None:
    return None
