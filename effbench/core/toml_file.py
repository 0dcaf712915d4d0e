"""Read a TOML file with one-line errors."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path
from typing import Any

from effbench.core.errors import InvalidValue, StorageError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: Path) -> dict[str, Any]:
    """The tables and keys of a file. Raises StorageError, InvalidValue."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    try:
        return tomllib.loads(_decoded(path, data))
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        reason = first_line(error, 120)
        raise InvalidValue(f"{path} is not TOML: {reason}; correct that place") from error


def _decoded(path: Path, data: bytes) -> str:
    """Decode a file, with or without a byte order mark. Raises InvalidValue where it is not UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise InvalidValue(f"{path} is UTF-16, as PowerShell's > writes it, or no text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")  # Notepad and PowerShell write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidValue(
            f"{path} is not UTF-8: byte {data[error.start]:#x} in line {line}; save it as UTF-8"
        ) from None
    # Paths in the file must match those of the locale, even if its encoding is ASCII.
    return text if text.isascii() else os.fsdecode(text.encode())
