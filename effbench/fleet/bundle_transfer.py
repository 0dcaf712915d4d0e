"""Send a bundle to a machine in pieces, each file checked against its SHA-256."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from effbench.bundles import bundle as stored_bundle
from effbench.bundles.bundle import BUNDLE_FILE, Bundle, CorruptBundle
from effbench.core import decoding
from effbench.core.errors import InvalidValue, StorageError
from effbench.fleet.machine_folder import MachineFolder

PIECE_BYTES = 4 << 20


def manifest_of(bundle: Bundle) -> str:
    """Return the files of a verified bundle with their SHA-256 and sizes, as JSON."""
    names = [BUNDLE_FILE]
    names += [f"{model.folder}/{name}" for model in bundle.models for name in model.files]
    extra = [path.name for path in bundle.directory.iterdir() if path.is_file() and path.name not in names]
    files = {}
    for name in (*dict.fromkeys(names), *sorted(extra)):
        path = bundle.directory / name
        files[name] = {"sha256": stored_bundle.sha256(path), "bytes": path.stat().st_size}
    return json.dumps({"digest": bundle.digest, "files": files})


def pieces(path: Path) -> list[tuple[int, int]]:
    """Return offset and length of the pieces of a file; one empty piece for an empty file."""
    size = path.stat().st_size
    return [(at, min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES)] or [(0, 0)]


def missing(folder: MachineFolder, manifest: str) -> list[str]:
    """Return the files that this machine lacks, or has only in part. Nothing if the bundle is there.

    Raises InvalidValue, StorageError.
    """
    digest, files = _parse(manifest)
    if (folder.bundle(digest) / BUNDLE_FILE).exists():
        return []
    part = _part(folder, digest)
    return [name for name, (sha256, _) in files.items() if not _is_whole(part / name, sha256)]


def put(folder: MachineFolder, manifest: str, name: str, offset: int, piece: bytes) -> None:
    """Write a piece of a file. Two clients may send the same bundle at once. Raises InvalidValue, StorageError."""
    digest, files = _parse(manifest)
    if name not in files or not 0 <= offset <= files[name][1] - len(piece):
        raise InvalidValue(f"{name[:60]!r} is no file of this bundle, or longer than it says")
    if folder.bundle(digest).exists():
        return
    path = _part(folder, digest) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not emptied first: another client may have written it, and be about to check it.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600), "wb") as file:
            file.seek(offset)
            file.write(piece)
            file.flush()
            if offset + len(piece) == files[name][1]:
                file.truncate()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def seal(folder: MachineFolder, manifest: str) -> None:
    """Check all files, and move the bundle to its place. Raises CorruptBundle, StorageError, InvalidValue."""
    digest, files = _parse(manifest)
    place, part = folder.bundle(digest), _part(folder, digest)
    if place.exists():
        return
    for name, (sha256, _) in files.items():
        if not _is_whole(part / name, sha256):
            if place.exists():  # another client was faster
                return
            (part / name).unlink(missing_ok=True)
            raise CorruptBundle(f"{name} of the bundle was damaged on the way: its SHA-256 differs")
    if stored_bundle.sha256(part / BUNDLE_FILE) != digest:
        shutil.rmtree(part, ignore_errors=True)
        raise CorruptBundle("the bundle's description was damaged on the way: its SHA-256 differs")
    try:
        os.replace(part, place)
    except OSError as error:
        if not place.exists():  # another client was faster
            raise StorageError(f"cannot write {place}: {error.strerror or error}") from error


def _part(folder: MachineFolder, digest: str) -> Path:
    return folder.bundle(digest).with_suffix(".part")


def _parse(manifest: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """Read a manifest. Raises InvalidValue for a file that may lie outside of the bundle."""
    try:
        values = decoding.parse(manifest.encode())
        files = {str(name): (str(each["sha256"]), int(each["bytes"])) for name, each in values["files"].items()}
        for name in files:
            stored_bundle.require_inside(name)
        return str(values["digest"]), files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidValue(f"this is no list of a bundle's files: {error}") from None


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and not path.is_symlink() and stored_bundle.sha256(path) == sha256
