"""Make the standard streams safe: a closed stream is replaced by /dev/null, and a failed write does not end the
process.

Measurements, output files and the exit code must not depend on whether somebody reads the output.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported, and the command starts here
if TYPE_CHECKING:
    from typing import Any

_NAMES = ("stdin", "stdout", "stderr")


class _LenientFile(io.FileIO):
    """A file descriptor that stores write errors instead of raising them."""

    write_error: OSError | None = None
    """The first write error that has not been fetched yet."""
    _is_broken = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._is_broken:
            return size
        try:
            return super().write(data) or 0
        except OSError as error:
            self.write_error, self._is_broken = error, True
            return size


def make_safe() -> None:
    """Give this process three usable standard streams. Call it before any file is opened."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            # os.open takes the lowest free descriptor, which is this one. Otherwise the next opened file would become
            # it.
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and sys.platform != "win32" and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _storing_write_errors(number, stream))


def _storing_write_errors(number: int, stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LenientFile(number, "w", closefd=False)),
        encoding=stream.encoding,
        # A terminal that cannot show × gets an escape, not a crash.
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def readable(text: str) -> str:
    """Decode bytes that the locale could not decode, as UTF-8, which they mostly are.

    Such bytes come from arguments and paths. Other surrogates, as JSON can hold them, are kept.
    """
    if all("\udc80" <= character <= "\udcff" for character in text if "\ud800" <= character <= "\udfff"):
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def write_error(stream: Any) -> OSError | None:
    """Flush the stream and return its write error, once; None if there was none."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    except ValueError:  # already closed
        return None
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if not isinstance(raw, _LenientFile):
        return None
    found, raw.write_error = raw.write_error, None
    return found
