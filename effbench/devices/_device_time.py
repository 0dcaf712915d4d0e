"""The time that a GPU spends on calls, between events behind a kernel that spins until the host has queued them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from effbench.devices.base import Call

MAX_SPIN_NS = 20_000_000
"""Longest wait that is put in front of a piece of a block; twice that where it was too short."""

PATIENCE = 3
"""Blocks without any device time before a call is taken to wait for the GPU itself. Warm-up makes so many."""

WAITS = "no device time: a call waits for the GPU, or queues more kernels than its launch queue holds"


class _Piece(NamedTuple):
    """Part of a block between two events, and whether all of it was queued before the device began it."""

    start: Any
    end: Any
    ahead: bool


@dataclass
class _Habits:
    """What was seen of a call so far.

    `size` is how many calls the host can queue ahead of the device, None as long as it could queue every block;
    `has_led` whether it ever could queue one; `failures` in how many blocks it could not.
    """

    size: int | None = None
    has_led: bool = False
    failures: int = 0


class DeviceTimer:
    """Times calls on the GPU that `api` stands for (`TorchCuda`), and remembers what it learns of each."""

    def __init__(self, api: Any) -> None:
        self._api = api
        # Weak: a cell that ran out of memory gives its own back.
        self._seen: WeakKeyDictionary[Call, _Habits] = WeakKeyDictionary()

    def waits(self, call: Call) -> bool:
        """Whether the call waits for the GPU itself, or queues more kernels than fit: it never had a device time."""
        habits = self._habits(call)
        return not habits.has_led and habits.failures >= PATIENCE

    def steady(self, call: Call, calls: int, queueing: int, meanwhile: Callable[[], None] = lambda: None) -> int | None:
        """Nanoseconds of `calls` calls, in as few and as equal pieces as the host can queue up behind a spin each.

        `queueing` is how long the host takes to queue them without a spin. None where it cannot queue one call ahead of
        the device; that is tried no more once the call is known for it. `meanwhile` is called with everything queued.

        The launch queue is finite (about a thousand kernels), and a full queue makes the host wait for the spin to end.
        A piece that the device began too early is thrown away and tried behind a longer spin, then in half its size,
        which is kept for the blocks to come.
        """
        if self.waits(call):
            meanwhile()
            return None
        habits = self._habits(call)
        fits = calls if queueing <= MAX_SPIN_NS else max(1, calls * MAX_SPIN_NS // queueing)
        pieces: list[_Piece] = []
        left, longer = calls, 1
        while left:
            parts = math.ceil(left / min(fits, habits.size or fits))
            size = math.ceil(left / parts)
            piece = self._piece(call, size, longer * queueing * size // calls)
            if piece.ahead:
                pieces.append(piece)
                left, longer = left - size, 1
            elif longer == 1:
                longer = 2
            elif size == 1:
                break
            else:
                habits.size, longer = size // 2, 1
        meanwhile()
        self._api.synchronize()
        return self._noted(call, None if left else pieces)

    def alone(
        self, call: Call, calls: int, queueing: int, before: Callable[[], None], meanwhile: Callable[[], None]
    ) -> int | None:
        """The same with `before` in front of every call, untimed."""
        if self.waits(call):
            meanwhile()
            return None
        pieces = [self._piece(call, 1, queueing // calls, before) for _ in range(calls)]
        meanwhile()
        self._api.synchronize()
        return self._noted(call, pieces if all(piece.ahead for piece in pieces) else None)

    def _noted(self, call: Call, pieces: Sequence[_Piece] | None) -> int | None:
        habits = self._habits(call)
        if pieces is None:
            habits.failures += 1
            return None
        habits.has_led = True
        spent_ms: list[float] = [piece.start.elapsed_time(piece.end) for piece in pieces]
        return sum(round(each * 1e6) for each in spent_ms)

    def _habits(self, call: Call) -> _Habits:
        return self._seen.setdefault(call, _Habits())

    def _piece(self, call: Call, calls: int, queueing: int, before: Callable[[], None] | None = None) -> _Piece:
        """Queue a spin and `calls` calls between two events.

        Where the device has not begun the first call when the last is queued, it never waits for the host in between,
        however the work is distributed over the calls.
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
        return _Piece(start, end, ahead=not start.query())
