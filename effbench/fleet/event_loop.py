"""Run work of an event loop so that Ctrl-C ends it in order: connections close, and no library prints a traceback."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from effbench.fleet.dask_settings import quieten_dask

T = TypeVar("T")

AGAIN_S = 5.0

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Carry out the work as `asyncio.run` does. Raises KeyboardInterrupt after Ctrl-C, SIGTERM or SIGHUP.

    Such a signal cancels the work, and is handled as before once the work has ended. Another one within `AGAIN_S`
    changes nothing: connections are being closed.
    """
    quieten_dask()
    received: list[int] = []
    before: dict[int, Any] = {}
    cancelled_s = -math.inf

    async def interruptible() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel(number: int) -> None:
            nonlocal cancelled_s
            received.append(number)
            if time.monotonic() - cancelled_s >= AGAIN_S:
                cancelled_s = time.monotonic()
                task.cancel()

        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                before[number] = signal.getsignal(number)
                loop.add_signal_handler(number, cancel, number)
        try:
            return await work
        finally:
            for number in before:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        _handle(received[0] if received else signal.SIGINT, before)
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, before: dict[int, Any]) -> None:
    """Handle a signal as it was handled before the loop ran; by default that ends the process or raises."""
    handler = before.get(number)
    frame: FrameType | None = None
    if callable(handler):
        handler(number, frame)
