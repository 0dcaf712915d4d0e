"""Addresses, and where plain TCP is refused before anything is sent."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from effbench.core.errors import InvalidValue
from effbench.fleet import addresses
from effbench.fleet.addresses import Address

pytestmark = pytest.mark.quick

CERTS = Path("certs/alice")
HOSTS = {
    "localhost": ["127.0.0.1", "::1"],
    "hub.lab": ["10.1.2.3"],
    "mixed.lab": ["127.0.0.1", "192.0.2.7"],
    "127.0.0.1": ["127.0.0.1"],
    "::1": ["::1"],
    "0.0.0.0": ["0.0.0.0"],
    "::": ["::"],
    "fe80::1%eth0": ["fe80::1%eth0"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host not in HOSTS:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in HOSTS[host]]

    def no_socket(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "socket", no_socket)


@pytest.mark.parametrize(
    ("text", "certs", "address"),
    [
        ("tls://hub.lab:8786", CERTS, Address("tls", "hub.lab", 8786)),
        ("hub.lab:9000", CERTS, Address("tls", "hub.lab", 9000)),
        ("tls://hub.lab", CERTS, Address("tls", "hub.lab", 8786)),
        ("tls://hub.lab/", CERTS, Address("tls", "hub.lab", 8786)),
        ("tls://[fd00::1]:9000", CERTS, Address("tls", "fd00::1", 9000)),
        ("[fd00::1]", CERTS, Address("tls", "fd00::1", 8786)),
        ("tls://nowhere.lab", CERTS, Address("tls", "nowhere.lab", 8786)),
        ("tcp://127.0.0.1:8786", None, Address("tcp", "127.0.0.1", 8786)),
        ("tcp://127.0.0.1:8786", CERTS, Address("tcp", "127.0.0.1", 8786)),
        ("localhost", None, Address("tcp", "localhost", 8786)),
        ("tcp://[::1]:1", None, Address("tcp", "::1", 1)),
    ],
)
def test_addresses(text: str, certs: Path | None, address: Address) -> None:
    found = addresses.parse(text, certs)
    assert found == address
    assert addresses.parse(str(found), CERTS) == found


def test_an_address_of_ipv6_is_written_in_brackets() -> None:
    assert str(Address("tls", "fd00::1", 8786)) == "tls://[fd00::1]:8786"


@pytest.mark.parametrize(
    "text",
    ["", "::1:8786", "tls://", "http://hub.lab", "tls://hub.lab:0", "hub.lab:65536", "a b", "tls://a@hub.lab", "hub/x"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"is no address; write it as tls://hub\.lab:8786") as caught:
        addresses.parse(text, CERTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["tcp://hub.lab", "hub.lab:8786", "tcp://mixed.lab", "tcp://0.0.0.0", "tcp://[::]", "tcp://[fe80::1%eth0]"],
)
def test_plain_tcp_is_for_loopback_only(text: str) -> None:
    with pytest.raises(InvalidValue, match="plain TCP would let anyone run code there") as caught:
        addresses.parse(text, None)
    said = str(caught.value)
    assert "effbench fleet certs" in said and said.startswith("tcp://") and "\n" not in said


def test_certificates_make_plain_tcp_to_another_machine_no_better() -> None:
    with pytest.raises(InvalidValue, match=r"at 192\.0\.2\.7.*write tls://"):
        addresses.parse("tcp://mixed.lab", CERTS)


def test_tls_needs_certificates() -> None:
    with pytest.raises(InvalidValue, match=r"tls://hub\.lab:8786 needs certificates; make .* `effbench fleet certs"):
        addresses.parse("tls://hub.lab", None)


@pytest.mark.parametrize("error", [None, UnicodeError("label too long")])
def test_a_host_that_does_not_exist(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if error is not None:

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(InvalidValue, match=r"cannot find nowhere.lab \(.+\); check the name of the host"):
        addresses.parse("tcp://nowhere.lab", None)


def test_a_server_may_take_any_free_port() -> None:
    address = Address("tcp", "127.0.0.1", 0)
    assert addresses.check(address, None) is address
    with pytest.raises(InvalidValue, match="effbench fleet certs"):
        addresses.check(Address("tcp", "0.0.0.0", 0), None)
