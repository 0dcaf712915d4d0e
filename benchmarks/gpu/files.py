"""Files that are either whole or not there: whatever ends a session, what it had finished is on disk."""

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
    """Write a file under another name, flush it to the disk, then give it its own name."""
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
    """The value, or None where the file is missing or is no JSON."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def pack(folder: Path, names: Iterable[str]) -> Path:
    """Everything under these names of the folder as one file beside them, for machines that give back few files."""
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
    with suppress(OSError):  # not every file system lets a folder be flushed
        place = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
