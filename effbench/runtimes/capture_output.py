"""Talkative libraries kept to themselves: their warnings, log lines and prints do not reach the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Take what the process writes to its standard output and error, below Python too; yields what reads it.

    Warnings and log lines are dropped. Levels, handlers and filters are as before afterwards, also after an exception.
    """
    disabled, root = logging.root.manager.disable, logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as taken, warnings.catch_warnings(), contextlib.ExitStack() as stack:

        def said() -> str:
            # Read by position: the two descriptors share the file's own.
            return os.pread(taken.fileno(), 1 << 20, 0).decode(errors="replace")

        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            for number in kept:
                os.dup2(taken.fileno(), number)
            # Python's own streams may lead elsewhere than to these descriptors, as in a notebook.
            stream = stack.enter_context(open(taken.fileno(), "w", closefd=False))
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
            yield said
        finally:
            stack.close()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers
