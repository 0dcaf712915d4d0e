"""A user's repository in a temporary folder: networks, an effbench.toml, one commit; and the gate run on it."""

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
"""The networks of inside/nets.py and the width of their input."""
THREE = ("dense_a", "wide_a", "grouped_b")
GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false")


@contextlib.contextmanager
def repository(cells: Sequence[str]) -> Iterator[Path]:
    """A committed repository whose effbench.toml names these networks."""
    with tempfile.TemporaryDirectory(prefix="effbench-bench-") as scratch:
        folder = Path(scratch)
        shutil.copy(INSIDE / "nets.py", folder / "nets.py")
        entries = [
            f'[models.{cell}]\nmodel = "nets.py:build"\narguments = {{name = "{cell}"}}\ninput = "{NETS[cell]}x28x28"\n'
            for cell in cells
        ]
        (folder / "effbench.toml").write_text("\n".join(entries))
        for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "Three networks")):
            process([*GIT, *words], folder=folder)
        yield folder


def slow_down(folder: Path, cell: str, extra: int) -> None:
    """A candidate that does more: so many additions in every forward pass of one network."""
    path = folder / "nets.py"
    text = path.read_text()
    path.write_text(text.replace("EXTRA: dict[str, int] = {}", f"EXTRA: dict[str, int] = {{{cell!r}: {extra}}}"))


def effbench(folder: Path, *words: str) -> Ended:
    return process([sys.executable, "-m", "effbench", *words], folder=folder, codes=(0, 1, 3, 4))


def gate(folder: Path, *words: str) -> tuple[dict[str, Any], Ended]:
    """The files as they are against the commit: what `effbench check --json` says, and the process."""
    done = effbench(folder, "check", "--against", "HEAD", "--json", "--out", "measured", *words)
    found = json.loads(done.out)
    shutil.rmtree(folder / "measured", ignore_errors=True)
    return found, done
