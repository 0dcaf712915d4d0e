"""Addresses of schedulers and workers. Plain TCP is for loopback only; everything else needs certificates."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from effbench.core.errors import InvalidValue

PORT = 8786
"""The port of a scheduler unless another is given, as dask has it."""

_SHAPE = re.compile(r"(?:(tls|tcp)://)?(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:/@?#%\[\]]+))(?::(\d{1,5}))?/?")


@dataclass(frozen=True)
class Address:
    """Where a scheduler or worker listens. `scheme` is ``tls`` or ``tcp``; the host of IPv6 is without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(text: str, certs: Path | None) -> Address:
    """``tls://hub.lab:8786``, also without the port, or without ``tls://`` where there are certificates.

    `certs` is the folder with the certificate of this machine or person. Raises InvalidValue for an address that
    cannot be used, before anything is sent to it: for plain TCP to another machine, and for TLS without certificates.
    """
    found = _SHAPE.fullmatch(text)
    if found is None or not 0 < int(found[4] or PORT) < 2**16:
        raise InvalidValue(
            f"{text[:100]!r} is no address; write it as tls://hub.lab:{PORT}, an address of IPv6 as tls://[fd00::1]:{PORT}"
        )
    return check(
        Address(found[1] or ("tcp" if certs is None else "tls"), found[2] or found[3], int(found[4] or PORT)), certs
    )


def check(address: Address, certs: Path | None) -> Address:
    """Return the address if it is safe to listen at or to connect to. Raises InvalidValue."""
    remedy = "make certificates with `effbench fleet certs certs NAME…` and give one of their folders with --certs"
    if certs is not None:
        remedy = "write tls:// for the certificates of `effbench fleet certs`"
    if address.scheme == "tls":
        if certs is None:
            raise InvalidValue(f"{address} needs certificates; {remedy}")
        return address
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # an impossible name is a UnicodeError
        reason = getattr(error, "strerror", None) or "no possible name"
        raise InvalidValue(f"{address}: cannot find {address.host} ({reason}); check the name of the host") from error
    for *_, place in found:
        if not ipaddress.ip_address(place[0]).is_loopback:
            at = f" at {place[0]}" * (place[0] != address.host)
            raise InvalidValue(
                f"{address} is another machine or open to others{at}, and plain TCP would let anyone run code there; "
                f"{remedy}"
            )
    return address
