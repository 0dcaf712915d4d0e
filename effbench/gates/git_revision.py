"""Find a git revision of the user's project by name and check it out into a temporary folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effbench.core.errors import EffbenchError
from effbench.gates import git_checkout, git_command
from effbench.host import streams, temporary_folders

_HASH = re.compile(r"[0-9a-fA-F]{7,64}")


@dataclass(frozen=True)
class Revision:
    """A commit and the name it was found by, shown as ``main (1a2b3c4)``."""

    name: str
    commit: str

    def __str__(self) -> str:
        short = self.commit[:7]
        return short if self.commit.startswith(self.name) else f"{streams.readable(self.name)} ({short})"


def repository(folder: Path) -> Path:
    """The top of the git repository that holds this folder. Raises EffbenchError."""
    try:
        return Path(git_command.text(folder, "rev-parse", "--show-toplevel"))
    except git_command.OwnedByAnother:
        raise
    except git_command.GitError as error:
        if "must be run in a work tree" in error.stderr:
            why = "a bare repository or a .git folder has no files; check a clone of it"
        elif "not a git repository: " in error.stderr:
            raise EffbenchError(f"the .git of {folder} names a repository that is not there ({error})") from None
        elif "not a git repository" in error.stderr:
            why = "make one with git init, and commit what is to be the baseline"
        else:
            raise EffbenchError(f"git cannot read the repository of {folder} ({error}); correct that first") from None
        raise EffbenchError(f"--against needs a git repository, and {folder} is in none: {why}") from None


def find(top: Path, name: str) -> Revision:
    """The commit that a branch, tag, hash or expression such as ``HEAD~1`` names. Raises EffbenchError."""
    try:
        return Revision(name, git_command.text(top, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}"))
    except git_command.GitError as error:
        listed = git_command.text(
            top, "for-each-ref", "--format=%(refname:short)", "--count=12", "refs/heads", "refs/remotes"
        )
        raise EffbenchError(
            f"there is no revision named '{name}' here. Known: {', '.join(listed.splitlines()) or 'none'}, and any "
            f"commit.{_advice(top, name, error.stderr)}"
        ) from None


def working_tree(top: Path) -> str:
    """The name of the working tree in reports: ``working tree (1a2b3c4 and uncommitted changes)``."""
    try:
        commit = git_command.text(top, "rev-parse", "--verify", "--short=7", "HEAD")
    except git_command.GitError:
        return "working tree (no commit yet)"
    words = ("status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=none")
    try:
        changed = " and uncommitted changes" if git_command.output(top, *words) else ""
    except git_command.GitError:
        # A filter that git needs to compare files may be missing here.
        changed = " and perhaps uncommitted changes"
    return f"working tree ({commit}{changed})"


@contextmanager
def check_out(top: Path, revision: Revision, notes: list[str] | None = None) -> Iterator[Path]:
    """Check out a revision with its submodules into a temporary folder, which is removed when the block ends.

    The user's repository does not change. Sentences on what is missing, such as a submodule without a local clone, are
    appended to `notes`. Raises EffbenchError where git cannot write the files.
    """
    with temporary_folders.folder() as place:
        folder = place.resolve() / "baseline"
        try:
            lacking = git_checkout.write_files(top, revision.commit, folder)
        except git_command.GitError as error:
            raise EffbenchError(f"the files of {revision} cannot be written ({error}){_remedy(error.stderr)}") from None
        if notes is not None:
            notes += lacking
        yield folder


def _advice(top: Path, name: str, said: str) -> str:
    """Advice about an unknown revision name: a sentence that starts with a space, or an empty string."""
    if "is ambiguous" in said:
        return " Several objects begin like that: give more characters of the hash."
    if git_command.text(top, "rev-parse", "--is-shallow-repository") == "true":
        return " This clone is shallow: fetch more of it (actions/checkout: fetch-depth: 0)."
    if not git_command.output(top, "for-each-ref", "--count=1") and name.startswith(("HEAD", "@")):
        return " This repository has no commit yet: commit what is to be the baseline."
    remote, slash, branch = name.partition("/")
    if slash and branch and remote in git_command.text(top, "remote").splitlines():
        return f" If the remote has it: git fetch {remote} {branch}:refs/remotes/{name}"
    if _HASH.fullmatch(name):
        return " A commit of another clone has to be fetched first: git fetch origin and its hash."
    return ""


def _remedy(said: str) -> str:
    if re.search(r"No space left|Disk quota", said):
        return "; make room in the folder for temporary files, or set TMPDIR to another"
    if re.search(r"bad |corrupt|missing|promisor|unable to (?:read|find)|unpack|invalid object", said):
        return "; run git fsck, and git fetch what is missing or damaged"
    return ""
