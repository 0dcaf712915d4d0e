"""The files that this process has opened for reading since it began to watch.

An audit hook of Python's sees them however they are opened, but for what C code opens by itself. It stays until the
process ends, so only measuring processes watch.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_paths: dict[str, None] | None = None


def watch() -> None:
    """Watch from now on."""
    global _paths
    if _paths is None:
        _paths = {}
        sys.addaudithook(_hear)


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
