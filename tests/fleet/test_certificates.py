"""Certificates: who can read them, how long they last, and what a check of them says."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as read_key

from effbench.core.errors import EffbenchError, InvalidValue, StorageError
from effbench.fleet import authority, certificates
from effbench.fleet.authority import create
from effbench.fleet.certificates import load
from effbench.host import optional_packages
from effbench.host.optional_packages import MissingPackage

TODAY = datetime.now(timezone.utc)


def at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the clock be this many days from now."""
    monkeypatch.setattr(certificates, "now", lambda: TODAY.replace(microsecond=0) + timedelta(days=days))


def refused(folder: Path, kind: type[EffbenchError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load(folder)
    said = str(caught.value)
    assert "\n" not in said
    for part in parts:
        assert part in said


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    create(tmp_path / "certs", ["hub", "alice"])
    return tmp_path / "certs"


# --- make ---------------------------------------------------------------------------------------------


def test_what_is_made_can_be_used(fleet: Path) -> None:
    found = load(fleet / "alice")
    assert found.name == "alice" and found.folder == fleet / "alice"
    assert timedelta(days=89) < found.expires - TODAY < timedelta(days=91)
    assert sorted(os.listdir(fleet)) == ["alice", "ca-key.pem", "ca.pem", "hub"]
    assert sorted(os.listdir(fleet / "hub")) == sorted(certificates.FILES)
    assert found.ca.read_bytes() == (fleet / "ca.pem").read_bytes()
    assert found.key.read_bytes() != (fleet / "hub" / "key.pem").read_bytes()


def test_both_sides_accept_each_other_under_strict_rules(fleet: Path) -> None:
    """Python from 3.13 on checks strictly by default."""
    server = load(fleet / "hub").context(ssl.PROTOCOL_TLS_SERVER)
    client = load(fleet / "alice").context()
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    seen = certificates._shake_hands(server, client)
    assert seen["subjectAltName"] == (("DNS", "hub"),)


def test_the_arguments_are_those_that_dask_takes(fleet: Path) -> None:
    from distributed import Security

    found = load(fleet / "alice")
    security = Security(**found.security_arguments())
    assert security.require_encryption
    for role in ("scheduler", "worker", "client"):
        context = security.get_connection_args(role)["ssl_context"]
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert security.get_tls_config_for_role(role)["key"] == str(found.key)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_only_the_owner_can_read_keys_whatever_the_umask(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = tmp_path / "certs", {}
    folder.mkdir(mode=0o700)
    real = os.fdopen

    def look(descriptor: int, *arguments: str) -> object:
        opened[os.readlink(f"/proc/self/fd/{descriptor}")] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return real(descriptor, *arguments)

    if Path("/proc/self/fd").exists():
        monkeypatch.setattr(os, "fdopen", look)
    before = os.umask(umask)
    try:
        create(folder, ["alice"])
    finally:
        os.umask(before)
    keys = [mode for path, mode in opened.items() if path.endswith("key.pem")]
    assert not any(mode & 0o077 for mode in keys) and len(keys) in (0, 2)
    assert mode(folder / "ca-key.pem") == mode(folder / "alice" / "key.pem") == 0o600
    assert mode(folder / "alice") == 0o700
    assert load(folder / "alice").name == "alice"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_new_folder_is_its_owners(fleet: Path) -> None:
    assert mode(fleet) == 0o700


def test_an_authority_is_made_once(fleet: Path) -> None:
    before = (fleet / "ca.pem").read_bytes(), (fleet / "ca-key.pem").read_bytes()
    created = create(fleet, ["pi5-a"], days=7)
    assert not created.ca_is_new and [item.name for item in created.issued] == ["pi5-a"]
    assert created.issued[0].folder == fleet / "pi5-a"
    assert created.issued[0].expires == load(fleet / "pi5-a").expires
    assert timedelta(days=6) < created.issued[0].expires - TODAY < timedelta(days=8)
    assert before == ((fleet / "ca.pem").read_bytes(), (fleet / "ca-key.pem").read_bytes())


def test_no_certificate_outlives_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, -300)
    assert create(tmp_path, []).ca_is_new
    at(monkeypatch, 0)
    created = create(tmp_path, ["alice"])
    assert created.issued[0].expires == created.ca_expires < TODAY + timedelta(days=66)
    at(monkeypatch, 66)
    with pytest.raises(InvalidValue, match=r"ca\.pem expired on .*; make a new authority in another folder"):
        create(tmp_path, ["bob"])


def test_a_name_is_replaced_only_if_asked(fleet: Path) -> None:
    before = (fleet / "hub" / "key.pem").read_bytes()
    with pytest.raises(StorageError, match=r"hub exists; replace its certificate with --renew"):
        create(fleet, ["bob", "hub"])
    assert (fleet / "hub" / "key.pem").read_bytes() == before and not (fleet / "bob").exists()
    create(fleet, ["bob", "hub"], renew=True)
    assert (fleet / "hub" / "key.pem").read_bytes() != before
    assert load(fleet / "hub").name == "hub" and load(fleet / "bob").name == "bob"
    assert sorted(os.listdir(fleet)) == ["alice", "bob", "ca-key.pem", "ca.pem", "hub"]


def test_renewing_removes_nothing_of_others(fleet: Path) -> None:
    (fleet / "hub" / "notes.txt").write_text("mine")
    (fleet / "bob").symlink_to(fleet / "alice")
    for name in ("hub", "bob"):
        with pytest.raises(StorageError, match="holds other files"):
            create(fleet, [name], renew=True)
    assert (fleet / "hub" / "notes.txt").read_text() == "mine"
    assert load(fleet / "alice").name == "alice"


@pytest.mark.parametrize("renew", [False, True])
@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem", "rename"])
def test_a_full_disk_leaves_no_half_made_folder(
    name: str, renew: bool, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (fleet / "hub" / "cert.pem").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    real, moved = authority._write, Path.rename

    def write(path: Path, data: bytes, mode: int) -> None:
        if path.name == name:
            path.touch()
            full()
        real(path, data, mode)

    def rename(path: Path, to: Path) -> Path:
        return full() if name == "rename" and to.name in ("hub", "bob") and "old" not in path.name else moved(path, to)

    monkeypatch.setattr(authority, "_write", write)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StorageError, match=r"cannot write certificates to .*No space left on device"):
        create(fleet, ["hub" if renew else "bob"], renew=renew)
    assert sorted(os.listdir(fleet)) == ["alice", "ca-key.pem", "ca.pem", "hub"]
    assert (fleet / "hub" / "cert.pem").read_bytes() == before


def test_an_authority_that_cannot_be_written_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = authority._write

    def write(path: Path, data: bytes, mode: int) -> None:
        if path.name == "ca.pem":
            raise OSError(28, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(authority, "_write", write)
    with pytest.raises(StorageError, match="No space left"):
        create(tmp_path, ["alice"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("names", "days", "said"),
    [
        (["a", "Hub"], 90, "cannot be a name"),
        (["../hub"], 90, "cannot be a name"),
        (["ca.pem"], 90, "file of the authority"),
        (["a", "a"], 90, "given twice"),
        (["a"], 0, "expected 1 to 365"),
        (["a"], 366, "expected 1 to 365"),
    ],
)
def test_a_wrong_order_makes_nothing(names: list[str], days: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=said):
        create(tmp_path / "certs", names, days=days)
    assert not (tmp_path / "certs").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write certificates to"):
        create(tmp_path / "file", ["alice"])


@pytest.mark.parametrize("missing", ["ca.pem", "ca-key.pem"])
def test_half_an_authority(missing: str, fleet: Path) -> None:
    (fleet / missing).unlink()
    with pytest.raises(StorageError, match=rf"{missing} is missing beside ca.*; put it back"):
        create(fleet, ["bob"])
    assert not (fleet / missing).exists() and not (fleet / "bob").exists()


def test_the_key_of_another_authority(fleet: Path, tmp_path: Path) -> None:
    create(tmp_path / "other", [])
    shutil.copy(tmp_path / "other" / "ca-key.pem", fleet / "ca-key.pem")
    with pytest.raises(InvalidValue, match=r"ca-key\.pem is not the key of"):
        create(fleet, ["bob"])


def test_a_damaged_or_open_authority(fleet: Path) -> None:
    (fleet / "ca-key.pem").chmod(0o640)
    with pytest.raises(InvalidValue, match=r"chmod 600 .*ca-key\.pem"):
        create(fleet, ["bob"])
    (fleet / "ca-key.pem").chmod(0o600)
    (fleet / "ca-key.pem").write_text("rubbish")
    with pytest.raises(InvalidValue, match="cannot be read"):
        create(fleet, ["bob"])


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "has", lambda module: module != "cryptography")
    with pytest.raises(MissingPackage, match=r"needs cryptography, .*; pip install cryptography$"):
        create(tmp_path / "certs", ["alice"])
    assert not (tmp_path / "certs").exists()


def test_a_machine_needs_no_package_to_check(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    assert load(fleet / "hub").name == "hub"


# --- check --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", certificates.FILES)
def test_a_missing_file(name: str, fleet: Path) -> None:
    (fleet / "hub" / name).unlink()
    refused(fleet / "hub", StorageError, f"there is no {fleet / 'hub' / name}", "copy the folder again")


def test_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "certs", StorageError, "there is no", "effbench fleet certs")


def test_a_file_that_cannot_be_read(fleet: Path) -> None:
    (fleet / "hub" / "key.pem").unlink()
    (fleet / "hub" / "key.pem").mkdir()
    refused(fleet / "hub", StorageError, f"cannot read {fleet / 'hub' / 'key.pem'}")


def test_the_folder_of_the_authority_is_that_of_nobody(fleet: Path) -> None:
    refused(fleet, StorageError, f"give one of the folders in it: {fleet / 'alice'}")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("others", [0o640, 0o604, 0o620])
def test_a_key_that_is_open_to_others(others: int, fleet: Path) -> None:
    key = fleet / "hub" / "key.pem"
    key.chmod(others)
    refused(fleet / "hub", InvalidValue, f"chmod 600 {key}", f"mode {others:o}")
    key.chmod(0o400)
    assert load(fleet / "hub").name == "hub"


def test_an_expired_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, -100)
    created = create(tmp_path, ["hub"])
    at(monkeypatch, 0)
    day = f"{created.issued[0].expires:%Y-%m-%d}"
    refused(tmp_path / "hub", InvalidValue, f"{tmp_path / 'hub' / 'cert.pem'} expired on {day}", "--renew")


def test_an_expired_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificates are valid for longer only if others made them."""
    at(monkeypatch, -400)
    create(tmp_path, [])
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    key = read_key((tmp_path / "ca-key.pem").read_bytes(), None)
    at(monkeypatch, 0)
    authority._issue(tmp_path, "hub", ca, key, TODAY + timedelta(days=9))  # type: ignore[arg-type]
    refused(tmp_path / "hub", InvalidValue, f"{tmp_path / 'hub' / 'ca.pem'} expired on", "new authority")


def test_the_clock_of_a_board_without_battery(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, -0.5)
    assert load(fleet / "hub").name == "hub"
    at(monkeypatch, -3000)
    refused(fleet / "hub", InvalidValue, "cert.pem is not valid before", "clock says", "timedatectl set-ntp true")


def test_the_key_of_another(fleet: Path) -> None:
    shutil.copy(fleet / "alice" / "key.pem", fleet / "hub" / "key.pem")
    refused(fleet / "hub", InvalidValue, f"{fleet / 'hub' / 'key.pem'} is not the key of {fleet / 'hub' / 'cert.pem'}")


def test_the_authority_of_another(fleet: Path, tmp_path: Path) -> None:
    create(tmp_path / "other", [])
    shutil.copy(tmp_path / "other" / "ca.pem", fleet / "hub" / "ca.pem")
    refused(fleet / "hub", InvalidValue, f"{fleet / 'hub' / 'cert.pem'} was not signed by {fleet / 'hub' / 'ca.pem'}")


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem"])
@pytest.mark.parametrize("text", ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_a_certificate(name: str, text: str, fleet: Path) -> None:
    (fleet / "hub" / name).write_text(text)
    refused(fleet / "hub", InvalidValue, f"{fleet / 'hub' / name} holds no certificate")


def test_a_key_that_wants_a_password_does_not_ask_for_it(fleet: Path) -> None:
    path = fleet / "hub" / "key.pem"
    key = read_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    refused(fleet / "hub", InvalidValue, f"{path} holds no key that can be read without a password")
    path.write_text("rubbish")
    refused(fleet / "hub", InvalidValue, f"{path} holds no key")
