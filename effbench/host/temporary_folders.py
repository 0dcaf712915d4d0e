"""Create temporary folders that are removed when their process ends, even if it was killed.

Each folder holds a file that its process keeps locked; the system releases the lock when the process ends. Folders of
killed processes are removed by the next process, which searches for them in its first call of `folder`.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "effbench-"
LOCK = ".effbench-lock"
"""The locked file in each folder. A folder without it is not effbench's, or was made by an older version."""

MIN_AGE_S = 60.0
"""Minimum age in seconds of a folder that is removed. A younger one may belong to a process that has not locked it
yet.
"""

_cleaned: set[str] = set()


@contextmanager
def folder(parent: str | Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """Create an empty folder (except for a hidden file) and remove it when the block ends.

    Parameters
    ----------
    parent
        Where to create it; the system's temporary folder by default.
    prefix
        How its name begins. Folders with this prefix whose process was killed are removed first, once per process.

    Yields
    ------
    Path
        The folder. If it is moved away within the block, it is kept.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    place = str(tempfile.gettempdir() if parent is None else parent)
    remove_abandoned(place, prefix)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = _lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(place: str, prefix: str = PREFIX) -> None:
    """Remove this user's folders in `place` whose process was killed. Only the first call per process does; errors are
    ignored.
    """
    if place + prefix in _cleaned or sys.platform == "win32":
        return
    _cleaned.add(place + prefix)
    with suppress(OSError), os.scandir(place) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(prefix)]:
            with suppress(OSError):
                _remove_if_dead(path)


def _remove_if_dead(path: str) -> None:
    """Remove one folder. Raises OSError if it has no lock file or its process is alive. Skips young and foreign
    folders.
    """
    import fcntl

    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or time.time() - found.st_mtime < MIN_AGE_S:
        return
    lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(path: Path) -> int | None:
    """Lock the folder and return the descriptor; None on file systems without such locks, as some network drives."""
    if sys.platform == "win32":
        return None
    import fcntl

    # Not inherited by child processes, which may outlive this one.
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        (path / LOCK).unlink()
        return None
    return lock
