"""Checkouts of a baseline: submodules, hooks, filters, odd names; the user's repository is unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from projects import git

from effbench.core.errors import EffbenchError
from effbench.gates import git_checkout, git_revision


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2.38 on git refuses file:// submodules unless told otherwise; a user's are on a server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')


def made(folder: Path, files: dict[str, str | bytes], *options: str) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q", *options, ".")
    return changed(folder, files)


def changed(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "change")
    return folder


def laid_out(top: Path, name: str = "HEAD") -> tuple[dict[str, str], list[str]]:
    """The files of a revision with what is in them, and the notes. Fails where the repository was changed meanwhile."""
    notes: list[str] = []
    before = registered(top)
    with git_revision.check_out(top, git_revision.find(top, name), notes) as folder:
        files = {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".git")
        }
    assert not folder.parent.exists()
    assert registered(top) == before
    return files, notes


def registered(top: Path) -> object:
    own = [path for path in sorted((top / ".git").rglob("*")) if path.is_file()] if (top / ".git").is_dir() else []
    words = ["git", "-C", str(top), "worktree", "list"]
    return [(path, path.stat().st_mtime_ns) for path in own], subprocess.run(words, capture_output=True).stdout


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return made(tmp_path / "library", {"block.py": "1"})


@pytest.fixture
def project(tmp_path: Path, library: Path) -> Path:
    """With a submodule that has one itself."""
    inner = made(tmp_path / "inner", {"deep.py": "deep"})
    git(library, "submodule", "add", "-q", str(inner), "inner")
    git(library, "commit", "-qm", "inner")
    top = made(tmp_path / "project", {"net.py": "net"})
    git(top, "submodule", "add", "-q", str(library), "third party")
    git(top, "commit", "-qm", "library")
    git(top, "submodule", "update", "-q", "--init", "--recursive")
    return top


WHOLE = {"net.py": "net", "third party/block.py": "1", "third party/inner/deep.py": "deep"}


def test_submodules_come_from_the_clones_that_are_here(project: Path, tmp_path: Path) -> None:
    """Their servers are gone. What is changed in them belongs to the candidate, whatever git is told to ignore."""
    shutil.rmtree(tmp_path / "library")
    shutil.rmtree(tmp_path / "inner")
    assert "uncommitted" not in git_revision.working_tree(project)
    (project / "third party" / "block.py").write_text("changed")
    git(project, "config", "submodule.third party.ignore", "all")
    assert laid_out(project) == (WHOLE, [])
    assert "uncommitted changes" in git_revision.working_tree(project)


def test_a_submodule_that_is_not_checked_out_is_on_neither_side(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(project), str(tmp_path / "clone"))
    files, notes = laid_out(tmp_path / "clone")
    assert files == {"net.py": "net"}
    assert len(notes) == 1 and "submodule third party is not checked out here" in notes[0]
    git(project, "submodule", "deinit", "-q", "--all", "--force")
    assert laid_out(project) == (files, notes)


@pytest.mark.parametrize("now", ["moved", "removed", "vendored", "renamed"])
def test_a_submodule_of_the_baseline_alone(project: Path, library: Path, now: str) -> None:
    if now == "moved":
        git(project, "mv", "third party", "elsewhere")
    else:
        git(project, "rm", "-qf", "third party")
    if now == "vendored":
        changed(project, {"third party/block.py": "vendored"})
    elif now == "renamed":
        git(project, "submodule", "add", "-q", "--name", "again", str(library), "third party")
        shutil.rmtree(project / ".git" / "modules" / "third party")
    git(project, "commit", "-qm", now, "--allow-empty")
    files, notes = laid_out(project, "HEAD~2" if now == "vendored" else "HEAD~1")
    if now == "renamed":
        assert files == {"net.py": "net", "third party/block.py": "1"}
        assert len(notes) == 1 and "submodule third party/inner is not checked out" in notes[0]
    else:
        assert (files, notes) == (WHOLE, [])


def test_a_commit_that_the_clone_lacks_is_named_with_what_to_fetch(
    project: Path, library: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--recurse-submodules", str(project), str(clone))
    changed(library, {"block.py": "2"})
    wanted = git(library, "rev-parse", "HEAD")
    git(project / "third party", "pull", "-q")
    git(project, "commit", "-qam", "newer")
    git(clone, "pull", "-q", "--no-recurse-submodules")
    files, notes = laid_out(clone)
    assert files == {"net.py": "net"}
    assert len(notes) == 1 and f"git -C '{clone}/third party' fetch origin {wanted}" in notes[0]
    assert laid_out(clone, "HEAD~1") == (WHOLE, []), "an older one is there"


def test_a_submodule_that_git_refuses_is_named_and_the_rest_goes_on(project: Path) -> None:
    (project / "third party" / ".git").write_text("gitdir: /nowhere\n")
    files, notes = laid_out(project)
    assert files == {"net.py": "net"} and len(notes) == 1 and "/nowhere" in notes[0]


def test_a_repository_within_that_gitmodules_does_not_know(tmp_path: Path) -> None:
    top = made(tmp_path / "top", {"net.py": "net"})
    made(top / "vendor", {"block.py": "1"})
    git(top, "-c", "advice.addEmbeddedRepo=false", "add", "vendor")
    git(top, "commit", "-qm", "vendor")
    assert laid_out(top) == ({"net.py": "net", "vendor/block.py": "1"}, [])


def test_a_linked_worktree_has_submodules_of_its_own(project: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(project, "worktree", "add", "-q", "--detach", str(linked))
    assert laid_out(linked)[0] == {"net.py": "net"}
    git(linked, "submodule", "update", "-q", "--init", "--recursive")
    assert laid_out(linked) == (WHOLE, [])


def test_no_program_of_the_user_runs(tmp_path: Path) -> None:
    """Nor does an option of his that is for his own checkout reach ours."""
    top = made(tmp_path / "top", {"a/x.py": "x", "b/y.py": "y"})
    git(top, "sparse-checkout", "set", "a")
    for name in ("core.splitIndex", "core.untrackedCache", "submodule.recurse"):
        git(top, "config", name, "true")
    git(top, "status")
    ran = tmp_path / "ran"
    for name in ("post-checkout", "post-index-change", "reference-transaction", "fsmonitor"):
        hook = top / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho {name} >> {ran}\nexit 1\n")
        hook.chmod(0o755)
    git(top, "config", "core.fsmonitor", str(top / ".git" / "hooks" / "fsmonitor"))
    notes: list[str] = []
    with git_revision.check_out(top, git_revision.find(top, "HEAD"), notes) as folder:
        assert (folder / "a" / "x.py").read_text() + (folder / "b" / "y.py").read_text() == "xy"
        assert git_revision.working_tree(top).startswith("working tree (")
    assert not ran.exists() and notes == []


def test_attributes_are_those_of_the_baseline(tmp_path: Path) -> None:
    top = made(
        tmp_path / "top", {".gitattributes": "*.txt text eol=crlf\n*.py ident\n", "a.txt": "1\n", "b.py": "$Id$"}
    )
    changed(top, {".gitattributes": "*.txt text eol=lf\n"})
    with git_revision.check_out(top, git_revision.find(top, "HEAD~1")) as folder:
        assert (folder / "a.txt").read_bytes() == b"1\r\n"
        assert (folder / "b.py").read_text().startswith("$Id: ")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize("part", ["process", "smudge"])
def test_a_required_filter_that_is_not_installed(tmp_path: Path, part: str) -> None:
    """Its files stay as git stores them, and one that works goes on working."""
    attributes = "*.bin filter=lfs\n*.up filter=upper\n"
    top = made(tmp_path / "top", {".gitattributes": attributes, "w.bin": POINTER, "a.up": "abc"})
    git(top, "config", "filter.upper.smudge", "tr a-z A-Z")
    git(top, "config", f"filter.lfs.{part}", "no-such-program --flag")
    git(top, "config", "filter.lfs.required", "true")
    files, notes = laid_out(top)
    assert files == {"w.bin": POINTER, "a.up": "ABC"}
    assert len(notes) == 2 and "filter lfs" in notes[0]
    assert "w.bin is a pointer of git-lfs" in notes[1] and "git lfs fetch" in notes[1]


def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    top = tmp_path / os.fsdecode(b"sp ace \xff m\xc3\xbc \n")
    made(top, {os.fsdecode(b"n\xff\n.py"): "net"})
    assert git_revision.repository(top) == top.resolve()
    assert laid_out(top) == ({os.fsdecode(b"n\xff\n.py"): "net"}, [])


def test_links_and_modes_of_a_repository_with_sha256(tmp_path: Path) -> None:
    top = made(tmp_path / "top", {"run.sh": ""}, "--object-format=sha256")
    (top / "run.sh").chmod(0o755)
    (top / "link").symlink_to("nowhere")
    changed(top, {})
    with git_revision.check_out(top, git_revision.find(top, "HEAD")) as folder:
        assert os.access(folder / "run.sh", os.X_OK) and os.readlink(folder / "link") == "nowhere"


def test_another_user_s_repository_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git's own tests set this variable. What a container sets to allow it reaches git."""
    top = made(tmp_path / "a b", {"net.py": "net"})
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(EffbenchError) as refused:
        git_revision.repository(top)
    advice = f"run: git config --global --add safe.directory '{top}'"
    assert str(refused.value) == f"git refuses {top} because another user owns it; {advice}"
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", str(top))):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert git_revision.repository(top) == top


def test_damage_is_named_with_what_to_do(tmp_path: Path) -> None:
    top = made(tmp_path / "top", {"net.py": "net"})
    blob = git(top, "rev-parse", "HEAD:net.py")
    (top / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(EffbenchError, match=r"the files of HEAD \(\w{7}\) cannot be written .*net\.py.*git fsck"):
        laid_out(top)


def test_a_folder_without_commits_or_files(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "empty")
    git(tmp_path, "init", "-q", "--bare", "bare")
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / ".git").write_text("gitdir: /nowhere/worktrees/x\n")
    assert git_revision.working_tree(tmp_path / "empty") == "working tree (no commit yet)"
    with pytest.raises(EffbenchError, match="no commit yet"):
        git_revision.find(tmp_path / "empty", "HEAD")
    with pytest.raises(EffbenchError, match="bare"):
        git_revision.repository(tmp_path / "bare")
    with pytest.raises(EffbenchError, match="names a repository that is not there"):
        git_revision.repository(tmp_path / "copied")


def test_a_branch_of_the_remote_is_named_with_what_to_fetch(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(project), str(tmp_path / "clone"))
    with pytest.raises(EffbenchError, match="git fetch origin a/b:refs/remotes/origin/a/b"):
        git_revision.find(tmp_path / "clone", "origin/a/b")


def test_a_name_of_a_submodule_does_not_lead_out_of_gits_folder(tmp_path: Path) -> None:
    """git refuses to make such a name; a .gitmodules file can hold it all the same."""
    top = made(tmp_path / "top", {"net.py": "net"})
    (top / ".git" / "modules").mkdir()
    clone = git_checkout._Clone(top / ".git", None)
    assert list(git_checkout._clones(clone, "p", [git_checkout._Declared("../../.git", "p", "")])) == []
