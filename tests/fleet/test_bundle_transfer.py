"""A bundle comes to a machine whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundles import tiny_bundle

from effbench.bundles import bundle as stored_bundle
from effbench.bundles.bundle import Bundle, CorruptBundle
from effbench.core.errors import InvalidValue
from effbench.fleet import bundle_transfer
from effbench.fleet.machine_folder import MachineFolder


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(bundle_transfer, "PIECE_BYTES", 64)
    return stored_bundle.load(tiny_bundle(tmp_path / "bundle", model_bytes=150))


@pytest.fixture
def machine(tmp_path: Path) -> MachineFolder:
    return MachineFolder(tmp_path / "machine")


def pieces_of(made: Bundle, name: str) -> list[tuple[int, bytes]]:
    data = (made.directory / name).read_bytes()
    return [(at, data[at : at + size]) for at, size in bundle_transfer.pieces(made.directory / name)]


def send(made: Bundle, machine: MachineFolder, names: list[str]) -> None:
    manifest = bundle_transfer.manifest_of(made)
    for name in names:
        for at, piece in pieces_of(made, name):
            bundle_transfer.put(machine, manifest, name, at, piece)


def test_what_is_missing_is_sent(made: Bundle, machine: MachineFolder) -> None:
    manifest = bundle_transfer.manifest_of(made)
    names = bundle_transfer.missing(machine, manifest)
    assert len(names) == 9 and "bundle.json" in names
    send(made, machine, names[:5])
    assert bundle_transfer.missing(machine, manifest) == names[5:]  # a client that was killed goes on
    send(made, machine, names[5:])
    bundle_transfer.seal(machine, manifest)
    assert bundle_transfer.missing(machine, manifest) == []
    there = stored_bundle.load(machine.bundle(made.digest))
    stored_bundle.verify(there, {model.cell.id: model for model in there.models})
    assert [path.name for path in (machine.path / "bundles").iterdir()] == [made.digest]


def test_a_damaged_file_is_sent_once_more(made: Bundle, machine: MachineFolder) -> None:
    manifest = bundle_transfer.manifest_of(made)
    send(made, machine, bundle_transfer.missing(machine, manifest))
    bundle_transfer.put(machine, manifest, "1/model.onnx", 64, b"x" * 64)
    with pytest.raises(CorruptBundle, match=r"1/model.onnx of the bundle was damaged on the way"):
        bundle_transfer.seal(machine, manifest)
    assert bundle_transfer.missing(machine, manifest) == ["1/model.onnx"]
    send(made, machine, ["1/model.onnx"])
    bundle_transfer.seal(machine, manifest)


def test_a_longer_file_that_was_left_there_is_cut(made: Bundle, machine: MachineFolder) -> None:
    manifest = bundle_transfer.manifest_of(made)
    send(made, machine, bundle_transfer.missing(machine, manifest))
    part = machine.bundle(made.digest).with_suffix(".part")
    (part / "0" / "model.onnx").write_bytes(b"x" * 1000)
    send(made, machine, bundle_transfer.missing(machine, manifest))
    bundle_transfer.seal(machine, manifest)


def test_two_clients_may_send_the_same_bundle(made: Bundle, machine: MachineFolder) -> None:
    """The second is in the middle of a file, at any of its pieces, when the first has sent all."""
    manifest = bundle_transfer.manifest_of(made)
    names = bundle_transfer.missing(machine, manifest)
    begun, *rest = pieces_of(made, "1/model.onnx")
    send(made, machine, names)
    bundle_transfer.put(machine, manifest, "1/model.onnx", *begun)  # begins what the first has sent already
    bundle_transfer.seal(machine, manifest)
    for at, piece in rest:
        bundle_transfer.put(machine, manifest, "1/model.onnx", at, piece)
    bundle_transfer.seal(machine, manifest)
    assert [path.name for path in (machine.path / "bundles").iterdir()] == [made.digest]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a\\x", "C:x", ""])
def test_no_file_lies_outside_of_the_bundle(made: Bundle, machine: MachineFolder, name: str) -> None:
    manifest = json.loads(bundle_transfer.manifest_of(made))
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(InvalidValue):
        bundle_transfer.put(machine, json.dumps(manifest), name, 0, b"x")
    assert not machine.path.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"digest": "../x", "files": {}}', '{"digest": "00", "files": {"a": 1}}'])
def test_what_is_no_list_of_files_is_refused(machine: MachineFolder, text: str) -> None:
    with pytest.raises(InvalidValue):
        bundle_transfer.missing(machine, text)


def test_more_than_was_announced_is_refused(made: Bundle, machine: MachineFolder) -> None:
    with pytest.raises(InvalidValue, match="longer than it says"):
        bundle_transfer.put(machine, bundle_transfer.manifest_of(made), "0/model.onnx", 140, b"x" * 20)
    with pytest.raises(InvalidValue, match="is no file of this bundle"):
        bundle_transfer.put(machine, bundle_transfer.manifest_of(made), "0/other", 0, b"")
    with pytest.raises(InvalidValue):
        bundle_transfer.put(machine, bundle_transfer.manifest_of(made), "0/model.onnx", -5, b"x")
