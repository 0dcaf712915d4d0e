"""A bundle that was damaged on the way is refused, and only its damaged file is sent again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from effbench.bundles import bundle as stored_bundle
from effbench.bundles.bundle import CorruptBundle
from effbench.core.errors import EffbenchError
from effbench.fleet import bundle_transfer
from effbench.fleet.machine_folder import MachineFolder


def test_a_damaged_file_is_refused_and_sent_again(bundle: Path, tmp_path: Path) -> None:
    folder, source = MachineFolder(tmp_path), stored_bundle.load(bundle)
    manifest = bundle_transfer.manifest_of(source)
    names = bundle_transfer.missing(folder, manifest)
    whole = {name: (bundle / name).read_bytes() for name in names}
    damaged = names[-1]
    for name, data in whole.items():
        sent = data if name != damaged else bytes([data[0] ^ 1]) + data[1:]
        bundle_transfer.put(folder, manifest, name, 0, sent)
    with pytest.raises(CorruptBundle, match="damaged on the way"):
        bundle_transfer.seal(folder, manifest)
    assert not folder.bundle(source.digest).exists()
    assert bundle_transfer.missing(folder, manifest) == [damaged]
    bundle_transfer.put(folder, manifest, damaged, 0, whole[damaged])
    bundle_transfer.seal(folder, manifest)
    assert bundle_transfer.missing(folder, manifest) == []
    assert stored_bundle.load(folder.bundle(source.digest)).digest == source.digest


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_file_outside_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    manifest = json.dumps({"digest": "0" * 64, "files": {name: {"sha256": "0" * 64, "bytes": 1}}})
    with pytest.raises(EffbenchError):
        bundle_transfer.put(MachineFolder(tmp_path), manifest, name, 0, b"x")
    assert not list(tmp_path.rglob("x"))
