"""Temporary folders: removed with their process, even a killed one, and never those of another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from effbench.host import temporary_folders

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no flock there")

KEEPER = """
import sys
from effbench.host import temporary_folders as scratch
with scratch.folder(sys.argv[1]) as folder:
    (folder / "sub").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def keeper(place: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def settled(folder: Path) -> None:
    os.utime(folder, (1, 1))


@pytest.fixture(autouse=True)
def first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_folders, "_cleaned", set())


def test_a_folder_is_there_empty_and_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folders.folder(tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith("effbench-")
        assert [path.name for path in folder.iterdir()] == [temporary_folders.LOCK]
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert not folder.exists()


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    dead, left = keeper(tmp_path)
    alive, held = keeper(tmp_path)
    try:
        dead.kill()
        dead.communicate()
        fresh, old = tmp_path / "effbench-fresh", tmp_path / "effbench-older-version"
        for folder in (fresh, old):
            folder.mkdir()
        (fresh / temporary_folders.LOCK).touch()  # its process has not come to lock it
        link = tmp_path / "effbench-link"
        link.symlink_to(left)
        for folder in (left, held, old):
            settled(folder)
        os.kill(alive.pid, signal.SIGSTOP)  # however long it stands still
        with temporary_folders.folder(tmp_path) as own:
            assert {path for path in tmp_path.iterdir() if path != own} == {held, fresh, old, link}
    finally:
        os.kill(alive.pid, signal.SIGCONT)
        alive.communicate()
    assert alive.returncode == 0 and not held.exists()


def test_a_drive_without_locks_and_a_place_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folders.folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []  # a lock that nobody holds would get it removed
    temporary_folders.remove_abandoned(str(tmp_path / "nowhere"))
