"""Call a function in a forked child process, so that it has no side effects on this process.

The child starts as a copy of this process, with memory that the kernel copies on write. Any state that a network
changes while it is counted is gone when the child ends. Its output is printed by the parent.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from effbench.core.errors import message_of
from effbench.cost.sandbox import without_garbage_collection

_T = TypeVar("_T")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

IDLE_S = 10.0
"""Seconds without CPU time after which a child counts as blocked, on a lock or thread that fork did not copy.

A child waits only a quarter as long for a child of its own, and as long again for a second one. So it can report before
its own limit is over.
"""

_generation = 0


class ChildFailed(Exception):
    """The child ended without a result. `signal` is the one that ended it, or 0. `stuck` means that the parent ended it
    because it used no CPU time.
    """

    def __init__(self, message: str, *, signal: int = 0, stuck: bool = False) -> None:
        super().__init__(message)
        self.signal, self.stuck = signal, stuck


@dataclass(frozen=True)
class _Result:
    value: Any
    error: BaseException | None
    printed: tuple[str, str]


def can_fork() -> bool:
    """Return whether a forked child works on this system. On macOS it does not: system frameworks break in it."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def run(function: Callable[[], _T]) -> _T:
    """Return ``function()``, computed in a forked child. The result must be picklable.

    Raises what the function raises, if that can be pickled, and `ChildFailed` where the child ended without a result.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed, or none at all
            stream.flush()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns that forking a process with threads may deadlock the child; `_read_result` has a limit for that.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _run_child(function, writing)
    os.close(writing)
    try:
        received = _read_result(reading, child)
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _wait_for(child)
        raise
    finally:
        os.close(reading)
    status = _wait_for(child)
    if not received:
        raise _failure_of(status)
    with without_garbage_collection():  # each collection would traverse hundreds of thousands of new objects
        answer: _Result = pickle.loads(received)
    for text, stream in zip(answer.printed, (sys.stdout, sys.stderr), strict=True):
        with suppress(AttributeError, OSError, ValueError):
            stream.write(text)
    if answer.error is not None:
        raise answer.error
    value: _T = answer.value
    return value


def _run_child(function: Callable[[], Any], writing: int) -> None:
    """Run in the child: call the function, send its result, and exit."""
    global _generation
    code = 1
    _generation += 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's handlers are not for us
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        _end_with_parent()
        # Buffers of the parent must not be written twice, and its streams may be anything (a notebook's, pytest's).
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:
            error = _picklable(raised)
        printed = (sys.stdout.getvalue(), sys.stderr.getvalue())
        with os.fdopen(writing, "wb") as pipe, without_garbage_collection():
            pipe.write(pickle.dumps(_Result(value, error, printed)))
        code = 0
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    """Have the kernel end this child when its parent dies (Linux only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _picklable(error: BaseException) -> BaseException:
    """Return the error, or a RuntimeError with its message if it cannot be pickled, with the traceback as a note."""
    told = "".join(traceback.format_exception(error))
    try:
        error.__cause__ = error.__context__ = None
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {message_of(error)}")
    if hasattr(copy, "add_note"):  # Python 3.11
        copy.add_note(f"In a process of its own:\n{told}")
    return copy


def _read_result(reading: int, child: int) -> bytes:
    """Return everything that the child writes until it closes its end. Raises ChildFailed if it is blocked."""
    parts: list[bytes] = []
    spent, idle, limit_s = -1.0, 0.0, IDLE_S / 4**_generation
    while True:
        ready, _, _ = select.select([reading], [], [], 1.0)
        if ready:
            part = os.read(reading, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
            continue
        now = _seconds_computed(child)
        idle = 0.0 if now is None or now > spent else idle + 1.0
        spent = max(spent, now or 0.0)
        if idle >= limit_s:
            raise ChildFailed(f"it computed nothing for {limit_s:.0f} s", stuck=True)


def _seconds_computed(child: int) -> float | None:
    """Return the CPU time of the child and of every process that it has started; None where it cannot be read."""
    try:
        import psutil

        seconds, process = 0.0, psutil.Process(child)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = each.cpu_times()
                seconds += times.user + times.system
        return seconds
    except Exception:  # psutil is not installed, or there is no /proc
        pass
    if sys.platform == "linux":
        with suppress(OSError):
            # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of linux/posix-timers.h: the child's CPU clock, without /proc.
            return time.clock_gettime((~child << 3) | 2)
    return None


def _wait_for(child: int) -> int:
    """Wait for the child and return its status; 0 if this process ignores SIGCHLD, so that the kernel reaped it."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        return 0


def _failure_of(status: int) -> ChildFailed:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ChildFailed(f"it was ended by {signal.Signals(number).name}", signal=number)
    return ChildFailed(f"it left with exit code {os.WEXITSTATUS(status)}")
