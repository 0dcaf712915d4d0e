"""The client's folder: orders that can be gone on with, and copies that grow by whole lines."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from effbench.core.errors import EffbenchError, StorageError
from effbench.fleet import mirror
from effbench.fleet.mirror import Mirror, StoredOrder
from effbench.fleet.orders import Order

STORED = StoredOrder(Order("r1", "pi5-a", study="g2_groups"), "tls://hub:8786", "/certs/alice")


def test_stored_orders_are_loaded_as_they_were(tmp_path: Path) -> None:
    other = replace(STORED, order=replace(STORED.order, machine="gpu-1"))
    mirror.store(tmp_path / "out", {"pi5-a": STORED})
    mirror.store(tmp_path / "out", {"gpu-1": other})  # another order joins the folder
    assert mirror.load(tmp_path / "out") == {"gpu-1": other, "pi5-a": STORED}
    with pytest.raises(StorageError, match=r"has a run of pi5-a already; go on with: effbench fleet run --resume"):
        mirror.store(tmp_path / "out", {"other": other, "pi5-a": STORED})
    assert sorted(mirror.load(tmp_path / "out")) == ["gpu-1", "pi5-a"]


def test_a_folder_without_orders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run of a fleet"):
        mirror.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"order": {}}', '{"order": {"run": "../x", "machine": "pi5-a", "study": "s"}, "scheduler": ""}']
)
def test_a_damaged_order_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    mirror.store(tmp_path, {"pi5-a": STORED})
    (tmp_path / ".fleet" / "pi5-a.json").write_text(text)
    with pytest.raises(EffbenchError, match=r"pi5-a.json is damaged: .*; restore it$") as refused:
        mirror.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_order_of_another_machine_is_refused(tmp_path: Path) -> None:
    mirror.store(tmp_path, {"pi5-a": STORED})
    (tmp_path / ".fleet" / "pi5-a.json").rename(tmp_path / ".fleet" / "pi5-b.json")
    with pytest.raises(EffbenchError, match="is an order for 'pi5-a'"):
        mirror.load(tmp_path)


def test_a_copy_grows_and_drops_an_incomplete_line(tmp_path: Path) -> None:
    with Mirror(tmp_path, STORED) as copy:
        assert copy.size == 0 and copy.sha256().startswith("e3b0c442")
        copy.drop_incomplete_line()
        assert not copy.path.parent.exists()
        copy.append(b"one\n")
        with copy.path.open("ab") as file:
            file.write(b"tw")  # as a client that was killed leaves it
        copy.drop_incomplete_line()
        copy.append(b"two\n")
        assert copy.path.read_bytes() == b"one\ntwo\n" and copy.size == 8


def test_a_copy_has_one_writer(tmp_path: Path) -> None:
    with Mirror(tmp_path, STORED):
        with pytest.raises(StorageError, match="another effbench fleet conducts pi5-a of"), Mirror(tmp_path, STORED):
            pass
        with Mirror(tmp_path, replace(STORED, order=replace(STORED.order, machine="gpu-1"))):
            pass
    with Mirror(tmp_path, STORED):
        pass


def test_a_copy_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "pi5-a").mkdir()
    (tmp_path / "pi5-a" / "run.jsonl").symlink_to(tmp_path / "secret")
    with Mirror(tmp_path, STORED) as copy, pytest.raises(StorageError, match="it is a link"):
        copy.append(b"x\n")
    assert (tmp_path / "secret").read_text() == "mine"


def test_a_copy_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Mirror(tmp_path, STORED) as copy:
        copy.append(b"one\n")
        really = Path.open

        class Full:
            def __init__(self, path: Path) -> None:
                self._file = really(path, "ab", buffering=0)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def write(self, data: bytes) -> None:
                self._file.write(data[:2])
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "open", lambda path, *_: Full(path))
        with pytest.raises(StorageError, match="No space left on device"):
            copy.append(b"two\n")
        monkeypatch.undo()
        assert copy.path.read_bytes() == b"one\n"
    assert os.listdir(tmp_path / ".fleet")
