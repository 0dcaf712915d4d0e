"""Write files atomically, so that whatever ends a session, its finished results are complete on disk."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

ARCHIVE = "session.tar.gz"


def write_text(path: Path, text: str) -> Path:
    """Write a file under a temporary name, flush it to disk, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    with half.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    _name(half, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, indent=1, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Return the value, or None if the file is missing or no JSON."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def pack(folder: Path, names: Iterable[str]) -> Path:
    """Pack these files and folders into one archive, for machines that return only few files."""
    target = folder / ARCHIVE
    half = folder / f".{ARCHIVE}.{os.getpid()}"
    with tarfile.open(half, "w:gz", compresslevel=3) as archive:
        for name in names:
            if (folder / name).exists():
                archive.add(folder / name, arcname=f"session/{name}")
    _name(half, target)
    return target


def _name(half: Path, path: Path) -> None:
    half.replace(path)
    with suppress(OSError):  # not every file system can flush a folder
        place = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
