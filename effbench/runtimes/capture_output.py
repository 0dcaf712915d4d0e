"""Capture the output of libraries that print, log or warn, so that it does not reach the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Capture what the process writes to its standard output and error, including output from C and C++.

    Yields a function that returns the captured text. Warnings and log lines are dropped. Levels, handlers and filters
    are restored afterwards, also after an exception.
    """
    disabled, root = logging.root.manager.disable, logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(), contextlib.ExitStack() as stack:

        def captured_text() -> str:
            # Read at an offset: the duplicated descriptors share the file's position.
            return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")

        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            for number in saved:
                os.dup2(file.fileno(), number)
            # Python's streams may write elsewhere than to these descriptors, as in a notebook.
            stream = stack.enter_context(open(file.fileno(), "w", closefd=False))
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
            yield captured_text
        finally:
            stack.close()
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers
