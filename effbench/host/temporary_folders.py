"""Temporary folders that do not outlive their process, however it ends.

Each holds a file that its process keeps locked; the system gives the lock back when the process ends. What a process
that was killed has left, the next one removes: `folder` looks for it once a process.
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
"""The file in a folder that its process keeps locked. A folder without it is none of ours, or of an older version."""

SETTLED_S = 60.0
"""A younger folder may belong to a process that has not locked it yet."""

_tidied: set[str] = set()


@contextmanager
def folder(parent: str | Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """A new, empty folder (but for a hidden file), removed when the block ends.

    Parameters
    ----------
    parent
        Where to make it; the system's temporary folder by default.
    prefix
        How its name begins. Folders of that name whose process was killed are removed first, once a process.

    Yields
    ------
    Path
        The folder. It may be moved away within the block: then it stays.

    Raises
    ------
    OSError
        Where it cannot be made.
    """
    place = str(tempfile.gettempdir() if parent is None else parent)
    tidy(place, prefix)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = _locked(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def tidy(place: str, prefix: str = PREFIX) -> None:
    """Remove this user's folders in `place` whose process was killed. The first call does; what fails is left."""
    if place + prefix in _tidied or sys.platform == "win32":
        return
    _tidied.add(place + prefix)
    with suppress(OSError), os.scandir(place) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(prefix)]:
            with suppress(OSError):
                _remove_if_dead(path)


def _remove_if_dead(path: str) -> None:
    """Raises OSError where it is not a settled folder of this user's, has no lock, or its process lives."""
    import fcntl

    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or time.time() - found.st_mtime < SETTLED_S:
        return
    lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(path: Path) -> int | None:
    """The descriptor that holds the folder's lock; None where there are no such locks, as on some network drives."""
    if sys.platform == "win32":
        return None
    import fcntl

    # Not inherited by programs that are started: they may outlive this process.
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        (path / LOCK).unlink()
        return None
    return lock
