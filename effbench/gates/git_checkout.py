"""Write the files of a commit into a temporary folder, from the objects of the user's clone.

git reads the commit into a separate index. So nothing changes in the user's repository, none of its hooks runs, and a
killed process leaves only a temporary folder behind. Submodules are written the same way from the clones inside the
user's checkout, without network access.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from effbench.core.errors import EffbenchError
from effbench.gates import git_command

_POINTER = b"version https://git-lfs.github.com/spec/"
_SUBMODULE = "160000"
_LISTED = 5


@dataclass(frozen=True)
class _Clone:
    """A repository of the user: its git directory, and the folder where its files are checked out, if any."""

    git_dir: Path
    files: Path | None


@dataclass(frozen=True)
class _Declared:
    """A submodule entry of a .gitmodules file."""

    name: str
    path: str
    url: str


def write_files(top: Path, commit: str, folder: Path) -> tuple[str, ...]:
    """Write the files of a commit, with its submodules, into a new folder.

    Parameters
    ----------
    top
        The top of the user's checkout.
    commit
        The hash of a commit that its repository has.
    folder
        The folder to create. A temporary index is written beside it.

    Returns
    -------
    tuple of str
        Sentences on what the folder lacks: submodules, contents that a git filter would provide.

    Raises
    ------
    EffbenchError
        Where git cannot write the files of the commit itself.
    """
    notes: list[str] = []
    absent: list[str] = []
    clone = _Clone(Path(git_command.text(top, "rev-parse", "--absolute-git-dir")), top)
    _write_commit(clone, commit, folder, PurePosixPath(), notes, absent)
    if absent:
        names = "submodule " + _list_names(absent) + (" is" if len(absent) == 1 else " are")
        notes.append(f"{names} not checked out here, so not on either side; git submodule update --init --recursive")
    return tuple(notes)


def submodules(files: Path) -> list[str]:
    """The paths of the submodules of a checkout, checked out or not."""
    return list(_submodule_commits(files))


def _write_commit(
    clone: _Clone, commit: str, folder: Path, place: PurePosixPath, notes: list[str], absent: list[str]
) -> None:
    """Write a commit of one repository, then its submodules. `place` is its path in the outermost repository."""
    index = folder.parent / f"{folder.name}.index-of-effbench"
    notes += _write_files(clone, commit, folder, index, place)
    try:
        links = _submodule_commits(folder, clone.git_dir, index)
        for path, linked in links.items():
            _write_submodule(clone, path, linked, folder, place, notes, absent)
    finally:
        index.unlink(missing_ok=True)


def _write_submodule(
    clone: _Clone,
    path: str,
    commit: str,
    folder: Path,
    place: PurePosixPath,
    notes: list[str],
    absent: list[str],
) -> None:
    shown = str(place / path)
    if (
        clone.files is not None
        and not (clone.files / path / ".git").exists()
        and path in _submodule_commits(clone.files)
    ):
        absent.append(shown)
        return
    missing = ""
    try:
        for found in _clones(clone, path, _declared(folder)):
            if _has_commit(found, commit):
                _write_commit(found, commit, folder / path, place / path, notes, absent)
                return
            if not missing:
                there = f"-C {shlex.quote(str(found.files or found.git_dir))}"
                missing = (
                    f"its commit {commit[:7]} is not in the clone here, so the baseline lacks it; to have it: "
                    f"git {there} fetch origin {commit}"
                )
    except EffbenchError as error:
        shutil.rmtree(folder / path, ignore_errors=True)
        missing = f"the baseline lacks it: {error}"
    notes.append(f"submodule {shown}: {missing or 'there is no clone of it here, so the baseline lacks it'}")


def _write_files(clone: _Clone, commit: str, folder: Path, index: Path, place: PurePosixPath) -> list[str]:
    without: list[str] = []
    while True:
        off = {f"filter.{name}.{part}": "" for name in without for part in ("smudge", "process")}
        try:
            _read_tree(clone, commit, folder, index, off | {f"filter.{name}.required": "false" for name in without})
            break
        except git_command.GitError as error:
            failing = [name for name in _failing_filters(clone.git_dir, error.stderr) if name not in without]
            if not failing:
                raise
            without += failing
            shutil.rmtree(folder, ignore_errors=True)
            index.unlink(missing_ok=True)
    notes = []
    if without:
        notes.append(
            f"git cannot run its filter {' or '.join(without)} here, so the baseline has the files concerned as git "
            "stores them"
        )
    if pointers := list(_pointers(clone.git_dir, folder, index)):
        notes.append(
            f"in the baseline {_list_names([str(place / path) for path in pointers])} "
            f"{'are pointers' if len(pointers) > 1 else 'is a pointer'} of git-lfs, not the content: install git-lfs "
            f"and run git lfs fetch origin {commit}"
        )
    return notes


def _read_tree(clone: _Clone, commit: str, folder: Path, index: Path, options: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # The baseline gets all files even if the user's checkout is sparse.
    whole = {"core.sparseCheckout": "false", "core.sparseCheckoutCone": "false", "index.sparse": "false"}
    words = ("read-tree", "--reset", "-u", "--no-recurse-submodules", commit)
    git_command.output(
        folder, *words, git_dir=clone.git_dir, work_tree=folder, index=index, options={**whole, **options}
    )


def _failing_filters(git_dir: Path, said: str) -> list[str]:
    """The filters to disable after a failure: the one that git names, else those whose program is missing."""
    try:
        listed = git_command.output(
            git_dir, "config", "-z", "--get-regexp", r"^filter\..*\.(smudge|process)$", git_dir=git_dir
        )
    except git_command.GitError:
        return []
    programs: dict[str, set[str]] = {}
    for entry in git_command.fields(listed):
        key, _, command = entry.partition("\n")
        programs.setdefault(key.partition(".")[2].rpartition(".")[0], set()).update(command.split()[:1])
    if named := re.findall(r"smudge filter '?(.+?)'? failed", said):
        return [name for name in dict.fromkeys(named) if name in programs]
    gone = [name for name, words in programs.items() if any(shutil.which(word) is None for word in words)]
    # git does not name a filter that closed its pipe.
    return gone or (list(programs) if "hung up" in said or "filter" in said else [])


def _pointers(git_dir: Path, folder: Path, index: Path) -> Iterator[str]:
    words = ("ls-files", "-z", "--", ":(attr:filter=lfs)")
    for path in git_command.fields(git_command.output(folder, *words, git_dir=git_dir, work_tree=folder, index=index)):
        file = folder / path
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                if opened.read(len(_POINTER)) == _POINTER:
                    yield path


def _submodule_commits(files: Path, git_dir: Path | None = None, index: Path | None = None) -> dict[str, str]:
    """The path and commit of every submodule in an index. Default: the index of the checkout in this folder."""
    work_tree = None if git_dir is None else files
    listed = git_command.output(files, "ls-files", "--stage", "-z", git_dir=git_dir, work_tree=work_tree, index=index)
    found = {}
    for entry in git_command.fields(listed):
        about, _, path = entry.partition("\t")
        mode, commit, _ = about.split(" ")
        if mode == _SUBMODULE:
            found[path] = commit
    return found


def _clones(clone: _Clone, path: str, declared: Sequence[_Declared]) -> Iterator[_Clone]:
    """Local clones that may hold this submodule: at its path, at the path it was moved to, in git's own folder."""
    if clone.files is not None and (clone.files / path / ".git").exists():
        yield _checked_out(clone.files / path)
    then = next((item for item in declared if item.path == path), None)
    if then is None:
        return
    now = _declared(clone.files) if clone.files is not None else []
    moved = [item for item in now if item.path != path and (item.name == then.name or item.url == then.url)]
    for item in moved:
        if clone.files is not None and (clone.files / item.path / ".git").exists():
            yield _checked_out(clone.files / item.path)
    common = Path(
        clone.git_dir, git_command.text(clone.git_dir, "rev-parse", "--git-common-dir", git_dir=clone.git_dir)
    )
    for git_dir in dict.fromkeys((clone.git_dir, common)):
        stored = git_dir / "modules" / then.name
        if ".." not in PurePosixPath(then.name).parts and (stored / "HEAD").is_file():
            yield _Clone(stored, None)


def _checked_out(files: Path) -> _Clone:
    return _Clone(Path(git_command.text(files, "rev-parse", "--absolute-git-dir")), files)


def _has_commit(clone: _Clone, commit: str) -> bool:
    try:
        git_command.output(clone.git_dir, "cat-file", "-e", f"{commit}^{{commit}}", git_dir=clone.git_dir)
    except git_command.GitError:
        return False
    return True


def _declared(files: Path) -> list[_Declared]:
    """The submodules in the .gitmodules file of a checkout; none if git cannot read one."""
    file = files / ".gitmodules"
    if not file.is_file():
        return []
    try:
        listed = git_command.output(
            files, "config", "-z", "--file", str(file), "--get-regexp", r"^submodule\..*\.(path|url)$"
        )
    except git_command.GitError:
        return []
    entries: dict[str, dict[str, str]] = {}
    for entry in git_command.fields(listed):
        key, _, value = entry.partition("\n")
        name, _, part = key.partition(".")[2].rpartition(".")
        entries.setdefault(name, {})[part] = value
    return [_Declared(name, said.get("path", ""), said.get("url", "")) for name, said in entries.items()]


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
