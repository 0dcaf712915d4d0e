"""Another revision of the user's project as a tree of files, made by git and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effbench.errors import EffbenchError


@dataclass(frozen=True)
class Revision:
    """A commit and the name it was asked for by: ``main (1a2b3c4)``."""

    name: str
    commit: str

    def __str__(self) -> str:
        short = self.commit[:7]
        return short if self.commit.startswith(self.name) else f"{self.name} ({short})"


def repository(folder: Path) -> Path:
    """The top of the git repository that holds this folder. Raises EffbenchError."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except EffbenchError as error:
        raise EffbenchError(f"--against needs a git repository, and {folder} is in none ({error})") from None


def find(top: Path, name: str) -> Revision:
    """The commit that a branch, tag, hash or expression such as ``HEAD~1`` names. Raises EffbenchError."""
    try:
        return Revision(name, _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"))
    except EffbenchError:
        known = _git(top, "for-each-ref", "--format=%(refname:short)", "--count=12", "refs/heads", "refs/remotes")
        shallow = _git(top, "rev-parse", "--is-shallow-repository") == "true"
        advice = " This clone is shallow: fetch more of it (actions/checkout: fetch-depth: 0)." if shallow else ""
        raise EffbenchError(
            f"there is no revision named '{name}' here. Known: {', '.join(known.split()) or 'none'}, and any commit."
            f"{advice}"
        ) from None


def working_tree(top: Path) -> str:
    """What the files as they are now are called: ``working tree (1a2b3c4 and uncommitted changes)``."""
    commit = _git(top, "rev-parse", "--short=7", "HEAD")
    changed = _git(top, "status", "--porcelain", "--untracked-files=normal")
    return f"working tree ({commit} and uncommitted changes)" if changed else f"working tree ({commit})"


@contextmanager
def tree(top: Path, revision: Revision) -> Iterator[Path]:
    """The files of a revision in a folder of their own, with its submodules, until the block ends.

    Raises EffbenchError where git cannot make it.
    """
    with tempfile.TemporaryDirectory(prefix="effbench-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "baseline"
        _git(top, "worktree", "add", "--detach", "--force", str(folder), revision.commit)
        try:
            if (folder / ".gitmodules").exists():
                _git(folder, "submodule", "update", "--init", "--recursive")
            yield folder.resolve()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _git(top, "worktree", "prune")


def _git(folder: Path, *words: str) -> str:
    # In a hook git sets GIT_DIR and its like, which would lead every command to the repository of the hook.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            env={**variables, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise EffbenchError(f"git cannot be run: {error.strerror or error}; install it") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise EffbenchError(f"git {words[0]}: {(said[-1] if said else f'exit code {done.returncode}')[:200]}")
    return done.stdout.strip()
