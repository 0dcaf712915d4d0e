"""List the files of each side of an A/B gate, for the check that a side imports no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from effbench.gates import git_checkout, git_command
from effbench.host import temporary_folders
from effbench.user_code import source_trees


@contextmanager
def write_listings(tree: Path, top: Path) -> Iterator[tuple[Path, Path]]:
    """Write two temporary lists of paths: those in a revision's `tree` and those in the working tree at `top`."""
    with temporary_folders.folder() as place:
        files = place / "baseline", place / "candidate"
        source_trees.write_listing(files[0], _files_below(tree))
        source_trees.write_listing(files[1], _known_to_git(top))
        yield files


def _files_below(top: Path) -> Iterator[str]:
    """All files below a folder, without git's own."""
    for folder, inside, files in os.walk(top):
        inside[:] = [name for name in inside if name != ".git"]
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")


def _known_to_git(top: Path) -> list[str]:
    """The files of a working tree, without ignored ones and those of virtual environments."""
    listed = git_command.fields(git_command.output(top, "ls-files", "-z", "--cached"))
    others = git_command.fields(git_command.output(top, "ls-files", "-z", "--others", "--exclude-standard"))
    # Also leave out an environment that .gitignore does not list.
    found = [
        *listed,
        *(path for path in others if not {"site-packages", "dist-packages"}.intersection(path.split("/"))),
    ]
    for place in git_checkout.submodules(top):
        # Includes submodules that were cloned by hand, which git does not count as active.
        if (top / place / ".git").exists():
            with suppress(git_command.GitError):  # one that git cannot read
                found += [f"{place}/{path}" for path in _known_to_git(top / place)]
    return list(dict.fromkeys(found))
