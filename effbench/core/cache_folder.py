"""The folder in which effbench keeps what it has learned about this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return effbench's folder in the user's cache. It need not exist, and cannot where there is no home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "effbench"
