"""Read the small files of /proc and /sys: text, numbers, and the kernel's lists of processors."""

from __future__ import annotations

from pathlib import Path

HERE = Path("/")
"""The root folder of this machine. Readers take a root, so that a copy of another machine's files can be read."""


def read_text(path: Path) -> str | None:
    """Return the stripped text of a file, or None. Device-tree strings end in a zero byte; sysfs files may refuse a
    read.
    """
    try:
        return path.read_text(errors="replace").strip("\x00 \n\t")
    except (OSError, ValueError):
        return None


def read_number(path: Path) -> int | None:
    """Return the one integer in a file, decimal or ``0x…``, or None."""
    found = read_text(path)
    try:
        return None if found is None else int(found, 16 if found.startswith("0x") else 10)
    except ValueError:
        return None


def cpu_list(spec: str | None) -> tuple[int, ...]:
    """Parse the kernel's list format, such as ``"0-2,8"``; empty for None."""
    numbers: list[int] = []
    for part in (spec or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)
