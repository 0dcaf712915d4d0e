"""Git revisions: found by any name, checked out into a temporary folder, removed afterwards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from effbench.core.errors import EffbenchError
from effbench.gates import git_revision


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "part").mkdir(parents=True)
    git(folder.parent, "init", "-q", str(folder))
    (folder / "part" / "net.py").write_text("first\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v1")
    (folder / "part" / "net.py").write_text("second\n")
    git(folder, "commit", "-qam", "two")
    return folder


def test_a_revision_by_any_name(project: Path) -> None:
    first = git(project, "rev-parse", "HEAD~1")
    assert git_revision.find(project, "v1").commit == git_revision.find(project, "HEAD~1").commit == first
    assert str(git_revision.find(project, "v1")) == f"v1 ({first[:7]})"
    assert str(git_revision.find(project, first[:10])) == first[:7]


def test_the_tree_holds_that_revision_and_is_gone_afterwards(project: Path) -> None:
    (project / "part" / "net.py").write_text("uncommitted\n")
    with git_revision.check_out(project, git_revision.find(project, "v1")) as folder:
        assert (folder / "part" / "net.py").read_text() == "first\n"
        assert not folder.is_relative_to(project)
    assert not folder.exists() and not folder.parent.exists()
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert (project / "part" / "net.py").read_text() == "uncommitted\n"


def test_the_tree_is_gone_after_an_error_too(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), git_revision.check_out(project, git_revision.find(project, "v1")) as folder:
        raise ZeroDivisionError
    assert not folder.exists()
    assert len(git(project, "worktree", "list").splitlines()) == 1


def test_a_branch_that_is_checked_out_can_be_the_baseline(project: Path) -> None:
    with git_revision.check_out(project, git_revision.find(project, "main")) as folder:
        assert (folder / "part" / "net.py").read_text() == "second\n"


def test_a_hook_does_not_lead_git_astray(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hook, git sets these for every program it starts."""
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert git_revision.repository(project) == project.resolve()
    assert git_revision.find(project, "v1").name == "v1"


def test_what_is_there_now_has_a_name(project: Path) -> None:
    short = git(project, "rev-parse", "--short=7", "HEAD")
    assert git_revision.working_tree(project) == f"working tree ({short})"
    (project / "new.py").write_text("")
    assert git_revision.working_tree(project) == f"working tree ({short} and uncommitted changes)"


@pytest.mark.parametrize("name", ["nope", "--upload-pack=x", "-h", "", "main:part", "v1^{tree}"])
def test_a_name_that_is_no_revision_lists_those_that_are(project: Path, name: str) -> None:
    with pytest.raises(EffbenchError) as refused:
        git_revision.find(project, name)
    assert "\n" not in str(refused.value) and "main" in str(refused.value)


def test_a_folder_outside_git(tmp_path: Path) -> None:
    with pytest.raises(EffbenchError, match="needs a git repository"):
        git_revision.repository(tmp_path)


def test_a_shallow_clone_is_told_what_it_lacks(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", project.as_uri(), str(tmp_path / "shallow"))
    with pytest.raises(EffbenchError, match="fetch-depth: 0"):
        git_revision.find(tmp_path / "shallow", "HEAD~1")


def test_submodules_are_part_of_the_tree(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From 2.38 on git refuses file:// submodules unless told otherwise; a user's are on a server.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q", ".")
    (library / "block.py").write_text("block\n")
    git(library, "add", ".")
    git(library, "commit", "-qm", "block")
    git(project, "submodule", "add", "-q", str(library), "library")
    git(project, "commit", "-qm", "three")
    with git_revision.check_out(project, git_revision.find(project, "HEAD")) as folder:
        assert (folder / "library" / "block.py").read_text() == "block\n"
    assert not folder.exists()
