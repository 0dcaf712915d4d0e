"""What a machine says of its runs, and gives away of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effbench.core.errors import InvalidValue
from effbench.fleet.machine_folder import MachineFolder
from effbench.fleet.orders import Order

ORDER = Order("r", "pi5-a", study="g2_groups")


def plant(root: Path, data: bytes) -> MachineFolder:
    folder = MachineFolder(root)
    folder.run(ORDER).mkdir(parents=True)
    (folder.run(ORDER) / "run.jsonl").write_bytes(data)
    return folder


def test_only_whole_lines_are_given_away(tmp_path: Path) -> None:
    folder = plant(tmp_path, b"one\ntwo\nthr")
    assert folder.growth(ORDER, 0) == b"one\ntwo\n"
    assert folder.growth(ORDER, 4) == b"two\n"
    assert folder.growth(ORDER, 8) == b""
    assert folder.growth(ORDER, 0, most=6) == b"one\n"
    assert folder.growth(ORDER, 0, most=2) == b"one\n", "one line at least, however long"


def test_what_is_given_away_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not take back what a copy has."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    folder = plant(tmp_path, b"one\n")
    folder.growth(ORDER, 0)
    assert synced == [str(folder.run(ORDER) / "run.jsonl")]


def test_a_file_without_a_whole_line_is_nothing_yet(tmp_path: Path) -> None:
    assert plant(tmp_path, b'{"kind":"hea').standing(ORDER).size == 0
    assert MachineFolder(tmp_path / "none").standing(ORDER).size == 0


def test_a_copy_can_be_added_to_only_if_it_is_the_beginning(tmp_path: Path) -> None:
    import hashlib

    folder = plant(tmp_path, b"one\ntwo\n")
    assert folder.has_prefix(ORDER, 0, "")
    assert folder.has_prefix(ORDER, 4, hashlib.sha256(b"one\n").hexdigest())
    assert not folder.has_prefix(ORDER, 4, hashlib.sha256(b"eno\n").hexdigest())
    assert not folder.has_prefix(ORDER, 9, hashlib.sha256(b"one\ntwo\n.").hexdigest()), "longer than the file"


@pytest.mark.parametrize("digest", ["..", "a" * 63, "A" * 64, "/" * 64])
def test_a_bundle_lies_in_its_own_folder(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidValue):
        MachineFolder(tmp_path).bundle(digest)
