"""Standard streams that cannot fail: closed ones lead nowhere, and output that cannot be written ends nothing.

What was measured, the files that were asked for and the exit code must not hang on whether somebody reads the output.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported, and the command starts here
if TYPE_CHECKING:
    from typing import Any

_NAMES = ("stdin", "stdout", "stderr")


class _Forgiving(io.FileIO):
    """A descriptor whose failures to write are remembered instead of raised."""

    trouble: OSError | None = None
    """The first failure that nobody has asked for yet."""
    _is_gone = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._is_gone:
            return size
        try:
            return super().write(data) or 0
        except OSError as error:
            self.trouble, self._is_gone = error, True
            return size


def make_safe() -> None:
    """Give this process its three standard streams, whatever it was started with. Call it before any file is opened."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Otherwise the next file to be opened would be standard output.
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and sys.platform != "win32" and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _forgiving(number, stream))


def _forgiving(number: int, stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Forgiving(number, "w", closefd=False)),
        encoding=stream.encoding,
        # A terminal that cannot show × gets an escape, not a crash.
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def readable(text: str) -> str:
    """The text with bytes that the locale could not read as UTF-8, which they mostly are.

    Such bytes come from arguments and paths. Surrogates of another kind, as JSON can hold them, stay.
    """
    if all("\udc80" <= mark <= "\udcff" for mark in text if "\ud800" <= mark <= "\udfff"):
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def trouble(stream: Any) -> OSError | None:
    """Write what is left to be written, and return why it could not be, once."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    except ValueError:  # closed by whoever had it
        return None
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if not isinstance(raw, _Forgiving):
        return None
    found, raw.trouble = raw.trouble, None
    return found
