"""Print results, errors and warnings of the command line, and handle Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from effbench.host import streams

if TYPE_CHECKING:
    from effbench.report.tables.table_model import Table

typed_command: ContextVar[str] = ContextVar("typed", default="effbench")
"""The typed command line, quoted for a shell."""


def flush_output(code: int) -> int:
    """Flush standard output and return the exit code: 2 if that fails and nothing else is wrong."""
    lost = flush_failed()
    return code or 2 if lost else code


def flush_failed() -> bool:
    """Flush standard output; report a failure. A closed pipe (`| head`) is no failure. Returns whether it failed."""
    error = streams.write_error(sys.stdout)
    return error is not None and report_write_error(error)


def report_write_error(error: OSError) -> bool:
    """Report why standard output cannot be written, and discard further output. False for a closed pipe (`| head`)."""
    discard_output()
    if isinstance(error, BrokenPipeError):
        return False
    print_error(f"cannot write to standard output: {error.strerror or error}; nothing measured is lost")
    return True


def discard_output() -> int:
    """Discard all further output, since its reader is gone. Returns exit code 0."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def print_error(message: str, code: int = 2) -> int:
    """Print one line to standard error and return the exit code."""
    with suppress(OSError, ValueError):  # standard error may be closed too
        if sys.stderr is not None:
            print(f"effbench: {plain(message)}", file=sys.stderr)
    return code


def note(message: str) -> None:
    """Print one line to standard error and go on."""
    print_error(message, 0)


LONGEST_WARNING = 240
"""Most characters of a shown warning; some of torch have a thousand."""


@contextmanager
def short_warnings() -> Iterator[None]:
    """Until the block ends, print each warning once, as one line on standard error."""
    told: set[str] = set()
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        try:
            text = str(message)
        except Exception:  # a user's warning class may raise anything
            text = ""
        words = plain(next((line for line in text.splitlines() if line.strip()), category.__name__))
        shown = words if len(words) <= LONGEST_WARNING else f"{words[:LONGEST_WARNING]}…"
        if shown not in told:
            told.add(shown)
            note(f"warning: {shown}")

    warnings.showwarning = show
    # With PYTHONWARNINGS=error, this warning would end a command after its measurement.
    warnings.filterwarnings("default", "no figures: ", RuntimeWarning)
    try:
        yield
    finally:
        warnings.showwarning = before


IGNORE_REPEATED_S = 5.0
"""Seconds after Ctrl-C in which another Ctrl-C is ignored, while processes end and folders are removed."""

_interrupts: list[int] = []
_reported: list[str] = []
_last_s = 0.0


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP alike: keep and report measured blocks, and clean up.

    SIGHUP stays ignored under nohup. Signals are recorded, since a library may turn the KeyboardInterrupt into another
    error, such as during an import.
    """
    _interrupts.clear()
    _reported.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_signal)
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [getattr(signal, name) for name in names if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        if not _reported:  # after a report, signals stay ignored until the process ends
            for number in handled:
                signal.signal(number, signal.SIG_DFL)


def was_interrupted() -> bool:
    """Whether Ctrl-C, SIGTERM or SIGHUP has arrived."""
    return bool(_interrupts)


def require_uninterrupted() -> None:
    """Raise KeyboardInterrupt again if the first was lost in code whose errors Python drops, such as `__del__`."""
    if _interrupts and not _reported:
        raise KeyboardInterrupt


def is_interrupt_reported() -> bool:
    """Whether this command has already reported the interruption."""
    return bool(_reported)


def _on_signal(number: int, frame: object) -> None:
    global _last_s
    now = time.monotonic()
    if _interrupts and now - _last_s < IGNORE_REPEATED_S:
        return
    _last_s = now
    _interrupts.append(number)
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Ignore further signals while the first is handled. They would cause tracebacks in libraries."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_IGN)


def report_interrupt(message: str = "interrupted") -> int:
    """Report an interruption. Returns the exit code that a shell reports for the signal: 130 for Ctrl-C."""
    ignore_signals()
    _reported.append(message)
    return print_error(message, 128 + (_interrupts[0] if _interrupts else signal.SIGINT))


def plain(text: str) -> str:
    """The text as one line of printable characters, without escape sequences and changes of writing direction."""
    text = streams.readable(text).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"\n+", " ", "".join(mark if mark.isprintable() else "\n" for mark in text)).strip()


def print_json(document: object) -> None:
    """Print the object of ``--json``. Raises ValueError for NaN and infinite numbers."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables: with rich in a terminal, as Markdown where the output is piped."""
    from effbench.report.tables.table_model import render_markdown, render_terminal

    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for item in tables:
            render_terminal(item, console)
        return
    print("\n\n".join(render_markdown(item) for item in tables))
