"""Which files each side of a gate holds, for the check that it runs no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from effbench import scratch
from effbench.gates import git
from effbench.measurement import origins


@contextmanager
def kept(tree: Path, top: Path) -> Iterator[tuple[Path, Path]]:
    """Two files that list the paths in a revision's `tree` and in the working tree at `top`, until the block ends."""
    with scratch.folder() as place:
        files = place / "baseline", place / "candidate"
        origins.write_listing(files[0], _walked(tree))
        origins.write_listing(files[1], _known_to_git(top))
        yield files


def _walked(top: Path) -> Iterator[str]:
    """Everything below a folder that holds a revision and nothing else."""
    for folder, inside, files in os.walk(top):
        inside[:] = [name for name in inside if name != ".git"]
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")


def _known_to_git(top: Path) -> list[str]:
    """The files of a working tree without those that git ignores, such as a virtual environment's."""
    try:
        tracked = git.output(top, "ls-files", "-z", "--cached", "--recurse-submodules")
    except git.GitError:  # a submodule that git cannot read
        tracked = git.output(top, "ls-files", "-z", "--cached")
    others = git.fields(git.output(top, "ls-files", "-z", "--others", "--exclude-standard"))
    # An environment that nobody told git to ignore.
    new = [path for path in others if not {"site-packages", "dist-packages"}.intersection(path.split("/"))]
    return list(dict.fromkeys([*git.fields(tracked), *new]))
