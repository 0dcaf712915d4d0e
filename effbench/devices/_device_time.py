"""Measure the device time of calls on a GPU with CUDA events.

The events stand behind a spin kernel that keeps the GPU busy until the host has queued all calls between them. Launch
overhead is therefore not part of the measured time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from effbench.devices.base import Call

MAX_SPIN_NS = 20_000_000
"""Longest spin in front of a segment of a block. A segment whose spin was too short is repeated with at most twice
that.
"""

MAX_FAILED_BLOCKS = 3
"""Blocks without device time after which a call counts as one that waits for the GPU itself. Warm-up makes as many
blocks.
"""

NO_DEVICE_TIME = "no device time: a call waits for the GPU, or queues more kernels than its launch queue holds"
"""Why a cell has no device time."""


class _Segment(NamedTuple):
    """Part of a block between two events, and whether the host had queued all of it before the device began it."""

    start: Any
    end: Any
    queued_ahead: bool


@dataclass
class _QueueHistory:
    """What earlier blocks showed about queueing one call.

    `size` is the number of calls that the host can queue ahead of the device; None while it could queue whole blocks.
    `was_ahead` says whether it ever queued a segment ahead of the device; `failures` counts the blocks in which it did
    not.
    """

    size: int | None = None
    was_ahead: bool = False
    failures: int = 0


class DeviceTimer:
    """Time calls on one GPU. `api` is its `TorchCuda`. Keeps for each call how many calls can be queued ahead of the
    device.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        # Weak references: the calls of a cell that ran out of memory must be freed.
        self._histories: WeakKeyDictionary[Call, _QueueHistory] = WeakKeyDictionary()

    def is_never_ahead(self, call: Call) -> bool:
        """Whether no block of this call had a device time: the call waits for the GPU, or its kernels overfill the
        launch queue.
        """
        history = self._history(call)
        return not history.was_ahead and history.failures >= MAX_FAILED_BLOCKS

    def time_calls(
        self, call: Call, calls: int, queueing: int, while_busy: Callable[[], None] = lambda: None
    ) -> int | None:
        """Return the device time of `calls` back-to-back calls in nanoseconds, or None.

        The calls are split into as few and as equal segments as the host can queue behind one spin kernel each.
        `queueing` is the time in nanoseconds that the host takes to queue all calls without a spin. `while_busy` is
        called once everything is queued, while the GPU is still busy. The result is None if the host cannot queue even
        one call ahead of the device; a call that has failed often enough is not tried again.

        The launch queue holds about a thousand kernels. When it is full, the host waits until the spin ends. A segment
        that the device began too early is discarded. It is repeated behind a longer spin, and then at half its size,
        which later blocks keep.
        """
        if self.is_never_ahead(call):
            while_busy()
            return None
        history = self._history(call)
        fits = calls if queueing <= MAX_SPIN_NS else max(1, calls * MAX_SPIN_NS // queueing)
        segments: list[_Segment] = []
        left, longer = calls, 1
        while left:
            parts = math.ceil(left / min(fits, history.size or fits))
            size = math.ceil(left / parts)
            segment = self._queue_segment(call, size, longer * queueing * size // calls)
            if segment.queued_ahead:
                segments.append(segment)
                left, longer = left - size, 1
            elif longer == 1:
                longer = 2
            elif size == 1:
                break
            else:
                history.size, longer = size // 2, 1
        while_busy()
        self._api.synchronize()
        return self._total_ns(call, None if left else segments)

    def time_calls_separately(
        self, call: Call, calls: int, queueing: int, before: Callable[[], None], while_busy: Callable[[], None]
    ) -> int | None:
        """Return the device time of `calls` calls, each timed alone after `before()`, which is not timed. None as in
        `time_calls`.
        """
        if self.is_never_ahead(call):
            while_busy()
            return None
        segments = [self._queue_segment(call, 1, queueing // calls, before) for _ in range(calls)]
        while_busy()
        self._api.synchronize()
        return self._total_ns(call, segments if all(segment.queued_ahead for segment in segments) else None)

    def _total_ns(self, call: Call, segments: Sequence[_Segment] | None) -> int | None:
        history = self._history(call)
        if segments is None:
            history.failures += 1
            return None
        history.was_ahead = True
        spent_ms: list[float] = [segment.start.elapsed_time(segment.end) for segment in segments]
        return sum(round(each * 1e6) for each in spent_ms)

    def _history(self, call: Call) -> _QueueHistory:
        return self._histories.setdefault(call, _QueueHistory())

    def _queue_segment(
        self, call: Call, calls: int, queueing: int, before: Callable[[], None] | None = None
    ) -> _Segment:
        """Queue a spin and `calls` calls between two events.

        If the device has not begun the first call when the last one is queued, it never waits for the host in between.
        That holds however the work is distributed over the calls.
        """
        api = self._api
        start, end = api.event(), api.event()
        api.spin(min(queueing * 3 // 2 + 50_000, 2 * MAX_SPIN_NS))
        if before:
            before()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        return _Segment(start, end, queued_ahead=not start.query())
