"""Create a user's repository in a temporary folder (networks, effbench.toml, one commit), and run the gate on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.session import INSIDE, Ended, process

NETS: Mapping[str, int] = {
    **{"dense_a": 64, "dense_b": 96, "dense_c": 128, "wide_a": 32, "wide_b": 64, "wide_c": 48},
    **{"grouped_a": 64, "grouped_b": 128, "grouped_c": 64},
    **{"depthwise_a": 128, "depthwise_b": 256, "depthwise_c": 64},
}
"""The networks of inside/nets.py with the width of their input."""
THREE = ("dense_a", "wide_a", "grouped_b")
GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false")


@contextlib.contextmanager
def repository(cells: Sequence[str]) -> Iterator[Path]:
    """Create a committed repository whose effbench.toml lists these networks."""
    with tempfile.TemporaryDirectory(prefix="effbench-bench-") as scratch:
        folder = Path(scratch)
        shutil.copy(INSIDE / "nets.py", folder / "nets.py")
        entries = [
            f'[models.{cell}]\nmodel = "nets.py:build"\narguments = {{name = "{cell}"}}\ninput = "{NETS[cell]}x28x28"\n'
            for cell in cells
        ]
        (folder / "effbench.toml").write_text("\n".join(entries))
        for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "Three networks")):
            process([*GIT, *arguments], folder=folder)
        yield folder


def slow_down(folder: Path, cell: str, extra: int) -> None:
    """Modify the working tree so that one network does `extra` additions in every forward pass."""
    path = folder / "nets.py"
    text = path.read_text()
    path.write_text(text.replace("EXTRA: dict[str, int] = {}", f"EXTRA: dict[str, int] = {{{cell!r}: {extra}}}"))


def effbench(folder: Path, *arguments: str) -> Ended:
    return process([sys.executable, "-m", "effbench", *arguments], folder=folder, codes=(0, 1, 3, 4))


def gate(folder: Path, *arguments: str) -> tuple[dict[str, Any], Ended]:
    """Check the working tree against the commit. Returns the JSON of `effbench check` and the ended process."""
    done = effbench(folder, "check", "--against", "HEAD", "--json", "--out", "measured", *arguments)
    found = json.loads(done.out)
    shutil.rmtree(folder / "measured", ignore_errors=True)
    return found, done
