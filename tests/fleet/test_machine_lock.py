"""The lock of a machine is one that other programs can hold too."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from effbench.core.errors import StorageError
from effbench.fleet import machine_lock


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with machine_lock.try_lock(path) as first, machine_lock.try_lock(path) as second:
        assert (first, second) == (True, False)
    with machine_lock.try_lock(path) as again:
        assert again


def test_flock_of_the_shell_takes_part(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with machine_lock.try_lock(path) as is_free:
            assert not is_free
    with machine_lock.try_lock(path) as is_free, path.open() as other:
        assert is_free
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_everybody_can_lock_the_file_that_one_has_made(tmp_path: Path) -> None:
    path, before = tmp_path / "lock", os.umask(0o077)
    try:
        with machine_lock.try_lock(path):
            assert path.stat().st_mode & 0o444 == 0o400  # as the umask of this user has it
    finally:
        os.umask(before)


def test_a_link_or_a_missing_folder_is_an_error_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "link", tmp_path / "none" / "lock"):
        with pytest.raises(StorageError, match="cannot open the machine's lock"), machine_lock.try_lock(path):
            pass
    assert not (tmp_path / "secret").exists()
