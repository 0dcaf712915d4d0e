"""The files that this process has opened for reading since it began to watch.

An audit hook of Python's sees them however they are opened, but for what C code opens by itself. It stays until the
process ends, so only measuring processes watch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_paths: dict[str, None] | None = None
_is_hooked = False


def watch() -> None:
    """Watch from now on."""
    global _paths, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    _paths = {}


@contextmanager
def unwatched() -> Iterator[None]:
    """Within the block whoever opens files is effbench itself."""
    global _paths
    paths, _paths = _paths, None
    try:
        yield
    finally:
        _paths = paths


def so_far() -> list[str]:
    """Their absolute paths, links not resolved; nothing where nobody watches."""
    return list(_paths or ())


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or _paths is None:
        return
    path, _, flags = args
    if isinstance(flags, int) and flags & os.O_WRONLY:
        return
    if isinstance(path, (str, bytes, os.PathLike)):
        name = os.fsdecode(path)
        try:
            _paths[name if os.path.isabs(name) else os.path.join(os.getcwd(), name)] = None
        except OSError:  # the folder that it works in is gone
            return
