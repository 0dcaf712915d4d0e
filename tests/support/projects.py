"""A user's little repository for the gates: networks, an effbench.toml, and commits that change them."""

from __future__ import annotations

import subprocess
from pathlib import Path

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels, kernel=3, extra=0):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.extra = extra

    def forward(self, x):
        y = torch.relu(self.conv(x)) + x
        for _ in range(self.extra):
            y = y + 1e-3
        return y

def small():
    return nn.Sequential(*[Block(16) for _ in range(4)])

def wide():
    return nn.Sequential(Block(32, {kernel}, {extra}), *[Block(32, {kernel}) for _ in range(3)])
"""

CONFIG = """
[check]
tolerance = "3%"

[models.small]
model = "nets.py:small"
input = "16x16x16"

[models.wide]
model = "nets.py:wide"
input = "32x16x16"
"""


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write(folder: Path, kernel: int = 1, extra: int = 0, comment: str = "") -> None:
    """The networks; `wide` has kernels of this size, and so many extra additions in one of its four blocks."""
    (folder / "nets.py").write_text(comment + NETS.format(kernel=kernel, extra=extra))


def repository(folder: Path) -> Path:
    """A project on `main`, with nothing uncommitted."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", ".")
    write(folder)
    (folder / "effbench.toml").write_text(CONFIG)
    (folder / ".gitignore").write_text("results/\n__pycache__/\n")
    commit(folder, "begin")
    return folder


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)
