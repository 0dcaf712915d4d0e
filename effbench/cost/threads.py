"""Trace the threads that a forward pass starts, since a dispatch mode is active in one thread only."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import torch

from effbench.cost.replaced_attributes import replaced_attributes


class _Done:
    """An ``AsyncResult`` (multiprocessing.pool) of a function that has already run."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.error: Exception | None = None
        self.outcome: Any = None
        try:
            self.outcome = function()
        except Exception as error:
            self.error = self.outcome = error

    def get(self, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.outcome

    def wait(self, timeout: float | None = None) -> None:
        return None

    def ready(self) -> bool:
        return True

    def successful(self) -> bool:
        return self.error is None


class _Followed:
    """What starts of threads, waits and tasks of pools do instead while a network is traced."""

    def __init__(self, modes: Sequence[Any], on_untraced: Callable[[str], None]) -> None:
        self._modes, self._on_untraced = modes, on_untraced
        self._bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]
        self._start = _thread.start_new_thread
        self._wait, self._submit = threading.Condition.wait, ThreadPoolExecutor.submit
        self._alive = 0
        self._home = threading.get_ident()
        self._grad = torch.is_grad_enabled()

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Call a function in a new thread, under the modes."""
        self._alive += 1
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(self._grad))
                for mode in self._modes:
                    stack.enter_context(mode)
                function(*args, **kwargs)
        finally:
            self._alive -= 1

    def bootstrap(self, thread: threading.Thread) -> None:
        self.run(self._bootstrap, thread)

    def start(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None) -> int:
        return self._start(self.run, (function, *args), kwargs or {})

    def wait(self, condition: threading.Condition, timeout: float | None = None) -> bool:
        # Thread.start waits for the new thread to begin, which is not the network waiting. It calls Event.wait, which
        # calls the function in place of Condition.wait, which calls this.
        starts = sys._getframe(3).f_code is threading.Thread.start.__code__
        if not self._alive and threading.get_ident() == self._home and not starts:
            self._on_untraced("other threads")
        return self._wait(condition, timeout)

    def submit(
        self, pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if threading.get_ident() != self._home:  # a task of another thread, not of the network
            return self._submit(pool, function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def _apply(pool: ThreadPool, function: Callable[..., Any], args: Any = (), kwds: Any = None) -> Any:
    return function(*args, **(kwds or {}))


def _map(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = None) -> Any:
    return [function(item) for item in items]


def _starmap(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = None) -> Any:
    return [function(*item) for item in items]


def _iterate(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = 1) -> Any:
    return iter(_map(pool, function, items))


def _as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    def run_at_once(
        pool: ThreadPool, *args: Any, callback: Any = None, error_callback: Any = None, **kwargs: Any
    ) -> _Done:
        done = _Done(partial(function, pool, *args, **kwargs))
        report = callback if done.successful() else error_callback
        if report is not None:
            report(done.outcome)
        return done

    return run_at_once


_AT_ONCE: Mapping[str, Callable[..., Any]] = {
    "apply": _apply,
    "map": _map,
    "starmap": _starmap,
    "imap": _iterate,
    "imap_unordered": _iterate,
    "apply_async": _as_async(_apply),
    "map_async": _as_async(_map),
    "starmap_async": _as_async(_starmap),
}
"""Methods of ``ThreadPool`` that run their tasks in the caller's thread."""


@contextmanager
def traced_threads(modes: Sequence[Any], on_untraced: Callable[[str], None]) -> Iterator[None]:
    """Activate `modes` in threads that start within the block, and run the tasks of thread pools in the caller's
    thread.

    If the caller's thread waits while none of these threads is running, it waits for a thread that is not traced:
    `on_untraced` is then called. A pool may have been created earlier, with threads that no mode reaches and that a
    forked process lacks. Its tasks are therefore run at once, in the order in which they are submitted.
    """
    followed = _Followed(modes, on_untraced)
    attributes = [
        (threading.Thread, "_bootstrap_inner", followed.bootstrap),  # not `run`, which subclasses override
        (threading.Condition, "wait", followed.wait),
        (_thread, "start_new_thread", followed.start),
        (ThreadPoolExecutor, "submit", followed.submit),
        *((ThreadPool, name, function) for name, function in _AT_ONCE.items()),
    ]
    with replaced_attributes(attributes):
        yield
