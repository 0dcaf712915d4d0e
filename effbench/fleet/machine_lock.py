"""The lock of a machine: whoever holds it is the only one who measures.

It is a file with an advisory lock, so that ``flock FILE effbench run …`` in a cron job or over ssh takes part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from effbench.core.errors import StorageError


def default_path() -> Path:
    """Return the file that all users of this machine lock."""
    return Path(tempfile.gettempdir()) / "effbench.lock"


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the machine's lock until the block ends. Yields whether it was free; does not wait.

    Raises StorageError if the file can be neither opened nor created.
    """
    import fcntl

    try:
        descriptor = _open(path)
    except OSError as error:
        raise StorageError(f"cannot open the machine's lock {path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # In /tmp the kernel refuses to open another user's file with O_CREAT, so only look first.
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o444)
