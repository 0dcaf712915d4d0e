"""Follow a network into the threads that its forward pass starts: a dispatch mode is the business of one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

import torch


@contextmanager
def followed(modes: Sequence[Any]) -> Iterator[None]:
    """Within the block a thread that starts has `modes` active, and a thread pool works in the caller's thread.

    A pool may have been made long before, by threads that no mode reaches (and that a forked process lacks), so what
    is given to it is carried out at once. The order of its results is its caller's anyway.
    """
    run, submit = threading.Thread.run, ThreadPoolExecutor.submit
    home = threading.get_ident()
    grad = torch.is_grad_enabled()

    def run_followed(thread: threading.Thread) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for mode in modes:
                stack.enter_context(mode)
            run(thread)

    def submit_here(
        pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if threading.get_ident() != home:  # somebody else's work, which is none of the network's
            return submit(pool, function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

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
    }
    before = {name: getattr(ThreadPool, name) for name in here}
    try:
        threading.Thread.run = run_followed  # type: ignore[assignment, method-assign]
        ThreadPoolExecutor.submit = submit_here  # type: ignore[assignment, method-assign]
        for name, function in here.items():
            setattr(ThreadPool, name, function)
        yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        for name, function in before.items():
            setattr(ThreadPool, name, function)
