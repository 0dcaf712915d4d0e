"""Trace the threads that a forward pass starts, since a dispatch mode is active in one thread only."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import torch


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


@contextmanager
def traced_threads(modes: Sequence[Any], on_untraced: Callable[[str], None]) -> Iterator[None]:
    """Activate `modes` in threads that start within the block, and run the tasks of thread pools in the caller's
    thread.

    If the caller's thread waits while none of these threads is running, it waits for a thread that is not traced:
    `on_untraced` is then called. A pool may have been created earlier, with threads that no mode reaches and that a
    forked process lacks. Its tasks are therefore run at once, in the order in which they are submitted.
    """
    inner, submit, wait = threading.Thread._bootstrap_inner, ThreadPoolExecutor.submit, threading.Condition.wait  # type: ignore[attr-defined]
    start_new = _thread.start_new_thread
    alive = 0
    home = threading.get_ident()
    grad = torch.is_grad_enabled()

    def run_followed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        nonlocal alive
        alive += 1
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(grad))
                for mode in modes:
                    stack.enter_context(mode)
                function(*args, **kwargs)
        finally:
            alive -= 1

    def start_followed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None) -> int:
        return start_new(run_followed, (function, *args), kwargs or {})

    def wait_noticed(condition: threading.Condition, timeout: float | None = None) -> bool:
        # Thread.start waits for the new thread to begin, which is not the network waiting.
        starts = sys._getframe(2).f_code is threading.Thread.start.__code__
        if not alive and threading.get_ident() == home and not starts:
            on_untraced("other threads")
        return wait(condition, timeout)

    def submit_here(
        pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if threading.get_ident() != home:  # a task of another thread, not of the network
            return submit(pool, function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def as_async(function: Callable[..., Any]) -> Callable[..., Any]:
        def run_at_once(
            pool: ThreadPool, *args: Any, callback: Any = None, error_callback: Any = None, **kwargs: Any
        ) -> _Done:
            done = _Done(partial(function, pool, *args, **kwargs))
            report = callback if done.successful() else error_callback
            if report is not None:
                report(done.outcome)
            return done

        return run_at_once

    def apply_here(pool: ThreadPool, function: Callable[..., Any], args: Any = (), kwds: Any = None) -> Any:
        return function(*args, **(kwds or {}))

    def map_here(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = None) -> Any:
        return [function(item) for item in items]

    def iterate_here(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = 1) -> Any:
        return iter(map_here(pool, function, items))

    def starmap_here(pool: ThreadPool, function: Callable[..., Any], items: Any, chunksize: Any = None) -> Any:
        return [function(*item) for item in items]

    here: dict[str, Callable[..., Any]] = {
        "apply": apply_here,
        "map": map_here,
        "starmap": starmap_here,
        "imap": iterate_here,
        "imap_unordered": iterate_here,
        "apply_async": as_async(apply_here),
        "map_async": as_async(map_here),
        "starmap_async": as_async(starmap_here),
    }
    own = {name: vars(ThreadPool)[name] for name in here if name in vars(ThreadPool)}  # the rest it inherits
    try:
        # Not `run`, which subclasses override.
        threading.Thread._bootstrap_inner = lambda thread: run_followed(inner, thread)  # type: ignore[attr-defined]
        threading.Condition.wait = wait_noticed  # type: ignore[assignment, method-assign]
        _thread.start_new_thread = start_followed
        ThreadPoolExecutor.submit = submit_here  # type: ignore[assignment, method-assign]
        for name, function in here.items():
            setattr(ThreadPool, name, function)
        yield
    finally:
        threading.Thread._bootstrap_inner = inner  # type: ignore[attr-defined]
        threading.Condition.wait = wait  # type: ignore[method-assign]
        _thread.start_new_thread = start_new
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        for name in here:
            if name in own:
                setattr(ThreadPool, name, own[name])
            else:
                delattr(ThreadPool, name)
