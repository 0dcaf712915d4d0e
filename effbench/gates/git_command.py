"""Run git without changing the user's repository and without prompts; report its errors in one line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from effbench.core.errors import EffbenchError

_OPTIONS = (
    # git starts no program of the user's and writes no index but ours.
    f"core.hooksPath={os.devnull}",
    "core.fsmonitor=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
)
_OF_ONE_REPOSITORY = re.compile(
    # As `git rev-parse --local-env-vars`, without those that carry configuration such as safe.directory.
    "GIT_(ALTERNATE_OBJECT_DIRECTORIES|ATTR_SOURCE|COMMON_DIR|CONFIG|DIR|GRAFT_FILE|IMPLICIT_WORK_TREE|INDEX_FILE"
    "|INDEX_VERSION|INTERNAL_SUPER_PREFIX|NAMESPACE|NO_REPLACE_OBJECTS|OBJECT_DIRECTORY|PREFIX|QUARANTINE_PATH"
    "|REPLACE_REF_BASE|SHALLOW_FILE|WORK_TREE|[A-Z]+_PATHSPECS|TRACE.*)"
)
"""Variables that a hook or `git --git-dir` sets for child processes: they would point git at another repository."""

_OWNED_BY_ANOTHER = re.compile(
    r"dubious ownership in repository at '(.+?)'$|unsafe repository \('(.+?)' is owned by someone else\)", re.M
)


class GitError(EffbenchError):
    """git failed. `stderr` is its standard error."""

    stderr: str = ""


class OwnedByAnother(GitError):
    """git refuses a repository because another user owns it."""


def output(
    folder: Path,
    *words: str,
    git_dir: Path | None = None,
    work_tree: Path | None = None,
    index: Path | None = None,
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Run one git command in a folder and return its standard output.

    Parameters
    ----------
    folder, words
        Where it runs, and the command with its arguments.
    git_dir, work_tree, index
        The repository, its files (of use with `git_dir` only) and the index, instead of those that git finds from the
        folder.
    options
        Configuration for this command alone.

    Raises
    ------
    OwnedByAnother
        Where git refuses the repository of another user.
    GitError
        Where git ends with an error.
    EffbenchError
        Where there is no git.
    """
    # A submodule's repository stores the path of its checkout, and git fails if that is gone. So name both.
    places = [] if git_dir is None else [f"--git-dir={git_dir}", f"--work-tree={work_tree or git_dir}"]
    set_here = [*_OPTIONS, *(f"{name}={value}" for name, value in (options or {}).items())]
    typed = ["git", "-C", str(folder), *places, *(word for one in set_here for word in ("-c", one)), *words]
    kept = {name: value for name, value in os.environ.items() if not _OF_ONE_REPOSITORY.fullmatch(name)}
    kept |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index is not None:
        kept["GIT_INDEX_FILE"] = str(index)
    try:
        done = subprocess.run(
            [_encoded(word) for word in typed], stdin=subprocess.DEVNULL, capture_output=True, env=kept, check=False
        )
    except OSError as error:
        raise EffbenchError(f"git cannot be run: {error.strerror or error}; install it") from error
    if done.returncode:
        raise _refusal(words[0], done.returncode, os.fsdecode(done.stderr))
    return done.stdout


def text(folder: Path, *words: str, git_dir: Path | None = None) -> str:
    """The output of one command as a path or name: undecodable bytes are kept, the last line break is removed."""
    return os.fsdecode(output(folder, *words, git_dir=git_dir).removesuffix(b"\n"))


def fields(said: bytes) -> list[str]:
    """Split the NUL-separated output of a command with ``-z``."""
    return [os.fsdecode(part) for part in said.split(b"\0") if part]


def _encoded(word: str) -> bytes:
    """Encode an argument for the system, or as UTF-8 (as git stores names) where the locale cannot."""
    try:
        return os.fsencode(word)
    except UnicodeEncodeError:
        return word.encode("utf-8", "surrogateescape")


def _refusal(command: str, code: int, said: str) -> GitError:
    error: GitError
    if found := _OWNED_BY_ANOTHER.search(said):
        owned = found[1] or found[2]
        error = OwnedByAnother(
            f"git refuses {owned} because another user owns it; run: "
            f"git config --global --add safe.directory {shlex.quote(owned)}"
        )
    else:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        # The "fatal:" line is the cause; lines after it are advice.
        fatal = [line for line in lines if line.startswith("fatal: ")]
        told = (fatal or lines or [f"exit code {code}"])[-1].removeprefix("fatal: ").removeprefix("error: ")
        error = GitError(f"git {command}: {told[:300]}")
    error.stderr = said
    return error
