"""How the command line speaks: one plain line for an error, one JSON object or tables for a result."""

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

typed: ContextVar[str] = ContextVar("typed", default="effbench")
"""The command line as it can be typed again."""


def flushed(code: int) -> int:
    """The exit code, once everything printed has left: 2 where it could not and nothing else is wrong."""
    lost = output_lost()
    return code or 2 if lost else code


def output_lost() -> bool:
    """Write what is left to be written to standard output; say why it cannot be. A reader that left had enough."""
    error = streams.trouble(sys.stdout)
    return error is not None and is_lost(error)


def is_lost(error: OSError) -> bool:
    """Say why standard output cannot be written, and write no more. False if its reader left, who had enough."""
    mute()
    if isinstance(error, BrokenPipeError):
        return False
    complain(f"cannot write to standard output: {error.strerror or error}; nothing measured is lost")
    return True


def mute() -> int:
    """Send what is still to be printed nowhere: its reader has gone. Returns exit code 0."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def complain(message: str, code: int = 2) -> int:
    """Print one line to standard error and return the exit code."""
    with suppress(OSError, ValueError):  # nobody can be told
        if sys.stderr is not None:
            print(f"effbench: {plain(message)}", file=sys.stderr)
    return code


def note(message: str) -> None:
    """Print one line to standard error that ends nothing."""
    complain(message, 0)


LONGEST_WARNING = 240
"""Characters of a warning; torch's of a checkpoint has a thousand."""


@contextmanager
def short_warnings() -> Iterator[None]:
    """Python's warnings, such as torch's of a user's checkpoint, as one line on standard error, each text once."""
    told: set[str] = set()
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        try:
            text = str(message)
        except Exception:  # a user's class of warnings may be as odd as any other
            text = ""
        words = plain(next((line for line in text.splitlines() if line.strip()), category.__name__))
        shown = words if len(words) <= LONGEST_WARNING else f"{words[:LONGEST_WARNING]}…"
        if shown not in told:
            told.add(shown)
            note(f"warning: {shown}")

    warnings.showwarning = show
    # Under PYTHONWARNINGS=error this one would end a command that has measured everything.
    warnings.filterwarnings("default", "no figures: ", RuntimeWarning)
    try:
        yield
    finally:
        warnings.showwarning = before


PATIENCE_S = 5.0
"""So long after Ctrl-C another one changes nothing: processes are ended and folders removed meanwhile."""

_interrupts: list[int] = []
_answers: list[str] = []
_last_s = 0.0


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end a command in the same way: what was measured is kept and said, nothing is left.

    SIGHUP stays ignored under nohup. Remembered, since a library may make another error of it in the middle of an
    import.
    """
    _interrupts.clear()
    _answers.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _heed)
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heeded = [getattr(signal, name) for name in names if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, _heed)
    try:
        yield
    finally:
        if not _answers:  # what has been answered stays ignored to the end
            for number in heeded:
                signal.signal(number, signal.SIG_DFL)


def was_interrupted() -> bool:
    """Has there been a Ctrl-C, or a signal like it?"""
    return bool(_interrupts)


def require_uninterrupted() -> None:
    """Raise KeyboardInterrupt again where one fell into code whose errors Python drops, such as a `__del__`."""
    if _interrupts and not _answers:
        raise KeyboardInterrupt


def is_interrupt_answered() -> bool:
    """Has this command said what Ctrl-C has ended?"""
    return bool(_answers)


def _heed(number: int, frame: object) -> None:
    global _last_s
    now = time.monotonic()
    if _interrupts and now - _last_s < PATIENCE_S:
        return
    _last_s = now
    _interrupts.append(number)
    raise KeyboardInterrupt


def ignore_impatience() -> None:
    """A second Ctrl-C while we say what the first one did would only end in some library's traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _heed:
            signal.signal(number, signal.SIG_IGN)


def answer_interrupt(message: str = "interrupted") -> int:
    """Say what Ctrl-C has ended. Returns what a shell reports for a program that this signal ended: 130 for Ctrl-C."""
    ignore_impatience()
    _answers.append(message)
    return complain(message, 128 + (_interrupts[0] if _interrupts else signal.SIGINT))


def plain(text: str) -> str:
    """One line of printable characters: a label or a path must not drive the terminal, or turn it round."""
    text = streams.readable(text).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"\n+", " ", "".join(mark if mark.isprintable() else "\n" for mark in text)).strip()


def print_json(document: object) -> None:
    """The one object on standard output. Raises ValueError for a number that JSON does not have."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_tables(tables: Sequence[Table]) -> None:
    """Rich tables in a terminal; Markdown where the output is piped, so that it can be pasted."""
    from effbench.report.tables import cells

    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for item in tables:
            cells.render_terminal(item, console)
        return
    print("\n\n".join(cells.render_markdown(item) for item in tables))
