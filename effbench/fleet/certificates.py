"""Check the certificate of a machine or person before it is used (`fleet.authority` makes them).

Each certificate serves as server and as client, since dask's schedulers, workers and clients are both. The standard
library can check certificates, so a board needs no further package.
"""

from __future__ import annotations

import os
import shlex
import ssl
import stat
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import InvalidValue, StorageError

if TYPE_CHECKING:
    pass

CA, CA_KEY = "ca.pem", "ca-key.pem"
CERT, KEY = "cert.pem", "key.pem"
FILES = (CA, CERT, KEY)
"""The files in the folder of a machine or person."""

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""


@dataclass(frozen=True)
class Certificates:
    """The checked certificate of one machine or person, and its key."""

    folder: Path
    name: str
    expires: datetime

    @property
    def ca(self) -> Path:
        return self.folder / CA

    @property
    def cert(self) -> Path:
        return self.folder / CERT

    @property
    def key(self) -> Path:
        return self.folder / KEY

    def security_arguments(self) -> dict[str, Any]:
        """The arguments of ``distributed.Security``."""
        made: dict[str, Any] = {"require_encryption": True, "tls_ca_file": str(self.ca)}
        for role in ("scheduler", "worker", "client"):
            made |= {f"tls_{role}_cert": str(self.cert), f"tls_{role}_key": str(self.key)}
        return made

    def context(self, protocol: int = ssl.PROTOCOL_TLS_CLIENT) -> ssl.SSLContext:
        """A context that shows this certificate, and trusts those that its authority signed, whatever their host."""
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.cert, self.key, password=lambda: "")  # never asks for one at the terminal
        return context


def load(folder: Path) -> Certificates:
    """Check the folder of a machine or person. Raises InvalidValue, StorageError in one line that names the file."""
    again = "copy the folder again from where `effbench fleet certs` made it"
    for name in FILES:
        path = folder / name
        try:
            path.read_bytes()
        except FileNotFoundError:
            own = sorted(found.parent.name for found in folder.glob(f"*/{CERT}"))
            if own:
                again = f"give one of the folders in it: {folder / own[0]}"
            raise StorageError(f"there is no {path}; {again}") from None
        except OSError as error:
            raise StorageError(f"cannot read {path} ({error.strerror or error}); {again}") from error
    found = Certificates(folder, folder.name, now())
    refuse_open_key(found.key)
    for path in (found.ca, found.cert):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError as error:
            raise InvalidValue(f"{path} holds no certificate ({error.reason}); {again}") from error
    try:
        server, client = found.context(ssl.PROTOCOL_TLS_SERVER), found.context()
    except (ssl.SSLError, ValueError) as error:
        if "MISMATCH" in (getattr(error, "reason", None) or ""):
            raise InvalidValue(f"{found.key} is not the key of {found.cert}; {again}") from error
        raise InvalidValue(f"{found.key} holds no key that can be read without a password; {again}") from error
    try:
        seen = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        raise InvalidValue(f"{found.cert} was not signed by {found.ca} ({error.verify_message}); {again}") from error
    except ssl.SSLError as error:
        raise InvalidValue(f"{found.cert} cannot be used for TLS ({error.reason}); {again}") from error
    renew = "make a new one where it was made: effbench fleet certs FOLDER NAME --renew"
    expires = _refuse_stated_times(found.cert, seen, renew)
    for authority in client.get_ca_certs():
        if authority["subject"] == seen["issuer"]:
            _refuse_stated_times(found.ca, authority, "make a new authority in another folder: effbench fleet certs")
    names = [value for part in seen["subject"] for key, value in part if key == "commonName"]
    return Certificates(folder, names[0] if names else folder.name, expires)


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Let both sides check the certificate of the other, whatever the time, as they will on a network.

    Returns what the certificate says. Raises ssl.SSLError.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    for context in (server, client):
        context.verify_flags |= _NO_CHECK_TIME
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):  # the server is done after its second turn
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found: dict[str, Any] = sides[0].getpeercert() or {}
    return found


def _refuse_stated_times(path: Path, stated: dict[str, Any], remedy: str) -> datetime:
    first, last = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(stated[key]), timezone.utc) for key in ("notBefore", "notAfter")
    )
    refuse_times(path, first, last, remedy)
    return last


def refuse_times(path: Path, first: datetime, last: datetime, remedy: str) -> None:
    """Raise InvalidValue, with the remedy, for a certificate that has expired or is not valid yet."""
    today = now()
    if today > last:
        raise InvalidValue(f"{path} expired on {last:%Y-%m-%d}; {remedy}")
    if today < first:
        raise InvalidValue(
            f"{path} is not valid before {first:%Y-%m-%d}, and this machine's clock says {today:%Y-%m-%d %H:%M} UTC; "
            "set the clock, such as with: sudo timedatectl set-ntp true"
        )


def refuse_open_key(path: Path) -> None:
    """Raise InvalidValue for a key that others than its owner may read."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise InvalidValue(
            f"{path} is open to others than its owner (mode {mode:03o}); chmod 600 {shlex.quote(str(path))}"
        )


def now() -> datetime:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)
