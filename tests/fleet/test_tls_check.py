"""What one look at a server says: real servers on loopback, each with one fault."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from effbench.core.errors import EffbenchError, InvalidValue
from effbench.fleet import certificates, tls_check
from effbench.fleet.addresses import Address
from effbench.fleet.authority import create
from effbench.fleet.certificates import Certificates, load
from effbench.fleet.tls_check import NotTrusted, Unreachable, require_accepted

pytestmark = pytest.mark.timeout(60)

Serve = Callable[..., Address]
TLS_SERVER = ssl.PROTOCOL_TLS_SERVER


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of one authority: hub, alice, and old and early, which are not valid today; bob is of another."""
    folder = tmp_path_factory.mktemp("certs")
    now = datetime.now(timezone.utc).replace(microsecond=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: now - timedelta(days=100))
        create(folder, ["old"])
        patch.setattr(certificates, "now", lambda: now + timedelta(days=100))
        create(folder, ["early"])
    create(folder, ["hub", "alice"])
    create(folder / "other", ["bob"])
    return folder


def unchecked(folder: Path) -> Certificates:
    """A folder that `load` would refuse."""
    return Certificates(folder, folder.name, datetime.now(timezone.utc))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that accepts one connection, greets, and waits until the other side closes."""
    with ExitStack() as stack:

        def start(
            context: ssl.SSLContext | None = None,
            greeting: bytes = b"",
            *,
            answers: bool = True,
            reads_first: bool = False,
        ) -> Address:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def work() -> None:
                # What the server sees of a fault is not what is asked here.
                try:
                    accepted, _ = listening.accept()
                    accepted.settimeout(20)
                    with accepted if context is None else context.wrap_socket(accepted, server_side=True) as talking:
                        if greeting:
                            talking.sendall(greeting)
                        # Read in full, what was sent is no reason to reset the connection: the end is an orderly one.
                        while answers and talking.recv(16384) and not reads_first:
                            pass
                except OSError:
                    pass

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            stack.callback(thread.join, 20)
            return Address("tls" if context else "tcp", *listening.getsockname())

        yield start


def refused(kind: type[EffbenchError], address: Address, own: Certificates | None, *parts: str) -> None:
    with pytest.raises(kind) as caught:
        require_accepted(address, own, timeout_s=5)
    said = str(caught.value)
    assert "\n" not in said
    for part in parts:
        assert part in said


# --- accepted -----------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("greeting", [b"", b"\x03\x00\x00\x00"])
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_accepting_server_is_known_without_waiting(
    newest: ssl.TLSVersion, greeting: bytes, fleet: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_check, "_SILENCE_S", 60.0)
    context = load(fleet / "hub").context(TLS_SERVER)
    context.maximum_version = newest
    require_accepted(serve(context, greeting), load(fleet / "alice"))


def test_a_server_that_says_nothing_at_all_accepts(fleet: Path, serve: Serve) -> None:
    context = load(fleet / "hub").context(TLS_SERVER)
    context.num_tickets = 0
    require_accepted(serve(context), load(fleet / "alice"))


def test_a_scheduler_of_dask_accepts(fleet: Path) -> None:
    import asyncio

    from distributed import Security
    from distributed.comm import listen

    async def look(secure: bool) -> None:
        async def handle(_: object) -> None:
            pass

        security = Security(**load(fleet / "hub").security_arguments()) if secure else Security()
        scheme = "tls" if secure else "tcp"
        async with listen(f"{scheme}://127.0.0.1:0", handle, **security.get_listen_args("scheduler")) as listener:
            host, port = listener.get_host_port()
            own = load(fleet / "alice")
            await asyncio.to_thread(require_accepted, Address(scheme, host, port), own if secure else None)
            if secure:
                with pytest.raises(NotTrusted):
                    await asyncio.to_thread(
                        require_accepted, Address(scheme, host, port), load(fleet / "other" / "bob")
                    )

    asyncio.run(look(True))
    asyncio.run(look(False))


# --- certificates -------------------------------------------------------------------------------------


def test_a_server_of_another_authority(fleet: Path, serve: Serve) -> None:
    address = serve(load(fleet / "other" / "bob").context(TLS_SERVER))
    refused(NotTrusted, address, load(fleet / "alice"), "signed by another CA than", str(fleet / "alice" / "ca.pem"))


def test_a_server_whose_certificate_expired(fleet: Path, serve: Serve) -> None:
    address = serve(unchecked(fleet / "old").context(TLS_SERVER))
    refused(NotTrusted, address, load(fleet / "alice"), f"the certificate of {address} has expired", "--renew")


def test_a_server_whose_certificate_is_not_valid_yet(fleet: Path, serve: Serve) -> None:
    address = serve(unchecked(fleet / "early").context(TLS_SERVER))
    refused(NotTrusted, address, load(fleet / "alice"), f"the certificate of {address} is not valid yet", "clock")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("who", "said"), [("bob", "signed by another CA"), ("old", "has expired"), ("early", "is not valid yet")]
)
def test_a_server_that_refuses_our_certificate(
    who: str, said: str, newest: ssl.TLSVersion, fleet: Path, serve: Serve, tmp_path: Path
) -> None:
    place = fleet / "other" / who if who == "bob" else fleet / who
    for name in certificates.FILES:
        shutil.copy(place / name, tmp_path)
    shutil.copy(fleet / "ca.pem", tmp_path)  # we know the server, it does not know us
    context = load(fleet / "hub").context(TLS_SERVER)
    context.maximum_version = newest
    address = serve(context)
    refused(NotTrusted, address, unchecked(tmp_path), f"{address} refuses {tmp_path / 'cert.pem'}: it ", said)


def test_a_server_that_wants_a_certificate(fleet: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: Certificates) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(fleet / "ca.pem")
        return context

    server = load(fleet / "hub").context(TLS_SERVER)
    own = load(fleet / "alice")
    monkeypatch.setattr(Certificates, "context", without)
    refused(NotTrusted, serve(server), own, "asks for a certificate and got none")


# --- other servers, or none ---------------------------------------------------------------------------


def test_a_server_of_plain_tcp(fleet: Path, serve: Serve) -> None:
    address = replace(serve(greeting=b"\x02" + bytes(31)), scheme="tls")
    refused(NotTrusted, address, load(fleet / "alice"), "speaks no TLS", "with --certs")


def test_a_server_that_does_not_answer_in_tls(fleet: Path, serve: Serve) -> None:
    address = replace(serve(), scheme="tls")
    with pytest.raises(NotTrusted, match=r"does not answer in TLS within 0\.3 s"):
        require_accepted(address, load(fleet / "alice"), timeout_s=0.3)


def test_a_server_that_closes(fleet: Path, serve: Serve) -> None:
    own = load(fleet / "alice")
    refused(Unreachable, replace(serve(answers=False), scheme="tls"), own, "closes the connection at once")
    refused(Unreachable, replace(serve(reads_first=True), scheme="tls"), own, "closes the connection at once")
    refused(Unreachable, serve(answers=False), None, "closes the connection at once")


def test_plain_tcp_to_a_server_of_tls(fleet: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_check, "_PLAIN_SILENCE_S", 0.1)
    for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = load(fleet / "hub").context(TLS_SERVER)
        context.maximum_version = newest
        address = serve(context)
        wanted = f"write {address} and give certificates"
        refused(NotTrusted, replace(address, scheme="tcp"), None, "speaks TLS", wanted)


def test_plain_tcp_to_a_server_of_plain_tcp(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    require_accepted(serve(greeting=b"\x02"))
    monkeypatch.setattr(tls_check, "_PLAIN_SILENCE_S", 0.1)
    require_accepted(serve())


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_nobody_listens(scheme: str, fleet: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = Address(scheme, "127.0.0.1", port)
    refused(Unreachable, address, load(fleet / "alice"), f"nothing listens at {address}", "effbench fleet scheduler")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "cannot find hub.lab; check the name"),
        (UnicodeError("label too long"), "cannot find hub.lab; check the name"),
        (TimeoutError("timed out"), "tls://hub.lab:8786 does not answer within 5 s"),
        (OSError(113, "No route to host"), "cannot reach tls://hub.lab:8786 (No route to host)"),
    ],
)
def test_no_way_to_the_machine(error: Exception, said: str, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    refused(Unreachable, Address("tls", "hub.lab", 8786), load(fleet / "alice"), said)


def test_tls_without_certificates() -> None:
    refused(InvalidValue, Address("tls", "hub.lab", 8786), None, "needs certificates", "--certs")
