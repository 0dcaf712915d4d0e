"""Which files each side of a gate holds, for the check that it runs no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from effbench.gates import git_checkout, git_command
from effbench.host import temporary_folders
from effbench.user_code import source_trees


@contextmanager
def kept(tree: Path, top: Path) -> Iterator[tuple[Path, Path]]:
    """Two files that list the paths in a revision's `tree` and in the working tree at `top`, until the block ends."""
    with temporary_folders.folder() as place:
        files = place / "baseline", place / "candidate"
        source_trees.write_listing(files[0], _walked(tree))
        source_trees.write_listing(files[1], _known_to_git(top))
        yield files


def _walked(top: Path) -> Iterator[str]:
    """Everything below a folder that holds a revision and nothing else."""
    for folder, inside, files in os.walk(top):
        inside[:] = [name for name in inside if name != ".git"]
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")


def _known_to_git(top: Path) -> list[str]:
    """The files of a working tree without those that git ignores, such as a virtual environment's."""
    listed = git_command.fields(git_command.output(top, "ls-files", "-z", "--cached"))
    others = git_command.fields(git_command.output(top, "ls-files", "-z", "--others", "--exclude-standard"))
    # An environment that nobody told git to ignore.
    found = [
        *listed,
        *(path for path in others if not {"site-packages", "dist-packages"}.intersection(path.split("/"))),
    ]
    for place in git_checkout.submodules(top):
        # Also one that was cloned into its place by hand, which git does not call active.
        if (top / place / ".git").exists():
            with suppress(git_command.GitError):  # one that git cannot read
                found += [f"{place}/{path}" for path in _known_to_git(top / place)]
    return list(dict.fromkeys(found))
