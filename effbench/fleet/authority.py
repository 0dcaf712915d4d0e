"""Make the certificates of a fleet: an authority, and a folder for each machine or person. Needs cryptography."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from effbench.core.errors import InvalidValue, StorageError, first_line
from effbench.fleet import certificates, labels
from effbench.fleet.certificates import CA, CA_KEY, CERT, FILES, KEY
from effbench.host import optional_packages

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 90
CA_DAYS = 365

_EARLIER = timedelta(days=1)
"""Certificates are valid from a day before they are made: boards without a battery have clocks that are late."""


@dataclass(frozen=True)
class Issued:
    """A certificate that was made, with its folder and the time at which it expires."""

    name: str
    folder: Path
    expires: datetime


@dataclass(frozen=True)
class Created:
    """What `create` made: the certificates, and the authority that signed them, which may have been there before."""

    ca: Path
    ca_is_new: bool
    ca_expires: datetime
    issued: tuple[Issued, ...]


def create(folder: Path, names: Sequence[str], days: int = DAYS, renew: bool = False) -> Created:
    """Make a folder in `folder` for each name, with a certificate for `days` and its key.

    The authority is made too if `folder` has none. No certificate outlives its authority. A name that has a folder
    is refused unless `renew`, which replaces it. Raises MissingPackage, InvalidValue, StorageError, and then no folder
    is half made.
    """
    optional_packages.require("cryptography")
    if not 1 <= days <= CA_DAYS:
        raise InvalidValue(f"--days {days}: expected 1 to {CA_DAYS}, for which an authority is valid")
    for name in names:
        if labels.check_name(name) in (CA, CA_KEY):
            raise InvalidValue(f"'{name}' is a file of the authority; choose another name")
        if names.count(name) > 1:
            raise InvalidValue(f"'{name}' is given twice; name each machine or person once")
    try:
        for name in names:
            _refuse_what_is_there(folder / name, renew)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not (os.path.lexists(folder / CA) or os.path.lexists(folder / CA_KEY))
        if new:
            _make_ca(folder)
        ca, key = _read_ca(folder)
        expires = ca.not_valid_after_utc
        until = min(certificates.now() + timedelta(days=days), expires)
        issued = tuple(_issue(folder, name, ca, key, until) for name in names)
    except OSError as error:
        raise StorageError(
            f"cannot write certificates to {folder} ({error.strerror or error}); choose another folder"
        ) from error
    return Created(folder / CA, new, expires, issued)


def _refuse_what_is_there(place: Path, renew: bool) -> None:
    if not os.path.lexists(place):
        return
    if not renew:
        raise StorageError(f"{place} exists; replace its certificate with --renew, or choose another name")
    # What is replaced is removed, so it must be nothing but what was made here.
    if place.is_symlink() or not place.is_dir() or {*os.listdir(place)} - {*FILES}:
        raise StorageError(f"{place} holds other files than {', '.join(FILES)}; move them away, or use another name")


def _make_ca(folder: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # Two authorities of one name could not be told apart by those who refuse one of them.
    name = f"effbench fleet CA {os.urandom(4).hex()}"
    ca = _sign(name, key, None, key, certificates.now() + timedelta(days=CA_DAYS))
    _write(folder / CA_KEY, _private_pem(key), 0o600)
    try:
        _write(folder / CA, _pem(ca), 0o644)
    except BaseException:
        (folder / CA_KEY).unlink()
        raise


def _read_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for path, other in ((folder / CA, CA_KEY), (folder / CA_KEY, CA)):
        if not path.is_file():
            raise StorageError(
                f"{path} is missing beside {other}; put it back, or make a new authority in another folder"
            )
    certificates.refuse_open_key(folder / CA_KEY)
    try:
        ca = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        key = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except (ValueError, TypeError) as error:  # TypeError for an encrypted key
        raise InvalidValue(
            f"{folder / CA} or {folder / CA_KEY} cannot be read ({first_line(error, 80)}); put both back"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise InvalidValue(f"{folder / CA_KEY} is not the key of {folder / CA}; put the two back that belong together")
    certificates.refuse_times(
        folder / CA, ca.not_valid_before_utc, ca.not_valid_after_utc, "make a new authority in another folder"
    )
    return ca, key


def _issue(
    folder: Path, name: str, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, expires: datetime
) -> Issued:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    place = folder / name
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        made.chmod(0o700)
        _write(made / KEY, _private_pem(key), 0o600)
        _write(made / CERT, _pem(_sign(name, key, ca, ca_key, expires)), 0o644)
        _write(made / CA, _pem(ca), 0o644)
        if place.exists():
            old = made.with_name(f"{made.name}-old")
            place.rename(old)
            try:
                made.rename(place)
            except BaseException:
                old.rename(place)
                raise
            shutil.rmtree(old)
        else:
            made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Issued(name, place, expires)


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate | None,
    ca_key: ec.EllipticCurvePrivateKey,
    expires: datetime,
) -> x509.Certificate:
    """The certificate of `name`, signed by `ca`; that of an authority, signed by itself, where `ca` is None."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    unused = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    usage = x509.KeyUsage(digital_signature=ca is not None, key_cert_sign=ca is None, crl_sign=ca is None, **unused)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if ca is None else ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificates.now() - _EARLIER)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=0 if ca is None else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if ca is not None:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that has its mode before its first byte, whatever the umask."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(opened, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(opened, mode)
        file.write(data)
        file.flush()
        os.fsync(opened)
