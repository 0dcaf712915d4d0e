"""One look at a server before dask connects to it, since dask tells the cause of a failure badly or not at all."""

from __future__ import annotations

import selectors
import socket
import ssl
import time

from effbench.core.errors import EffbenchError, InvalidValue
from effbench.fleet.addresses import Address
from effbench.fleet.certificates import Certificates

TIMEOUT_S = 5.0

_SILENCE_S = 0.2
"""How long to wait for a refusal, beside the time of the handshake, from a server that says nothing at all."""

_PLAIN_SILENCE_S = 1.0
"""How long a server of plain TCP may take for its greeting. Dask greets at once; a server of TLS waits for ours."""

_EXPIRED, _NOT_YET_VALID = 10, 9
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""


class Unreachable(EffbenchError):
    """Nobody answers at an address; this may change without a change here."""


class NotTrusted(EffbenchError):
    """The server and this side do not trust each other, or one of them uses TLS and the other does not."""


def require_accepted(address: Address, certificates: Certificates | None = None, timeout_s: float = TIMEOUT_S) -> None:
    """Connect once and return if the server accepts us and we it. Raises Unreachable, NotTrusted, InvalidValue."""
    if address.scheme == "tls" and certificates is None:
        raise InvalidValue(f"{address} needs certificates; give their folder with --certs")
    begun = time.monotonic()
    try:
        connected = socket.create_connection((address.host, address.port), timeout_s)
    except (socket.gaierror, UnicodeError) as error:
        raise Unreachable(f"cannot find {address.host}; check the name of the host in {address}") from error
    except ConnectionRefusedError as error:
        raise Unreachable(f"nothing listens at {address}; start it there: effbench fleet scheduler") from error
    except TimeoutError as error:
        raise Unreachable(
            f"{address} does not answer within {timeout_s:g} s; check that the machine is on, that its firewall lets "
            "the port through, and that `effbench fleet scheduler` runs there"
        ) from error
    except OSError as error:
        raise Unreachable(
            f"cannot reach {address} ({error.strerror or error}); check the network, and that `effbench fleet "
            "scheduler` runs there"
        ) from error
    with connected:
        if certificates is None or address.scheme == "tcp":
            _require_plain(connected, address)
            return
        try:
            with certificates.context().wrap_socket(connected) as secured:
                # Of TLS 1.3, this side is done before the server has seen its certificate.
                answer = _first_answer(secured, time.monotonic() - begun + _SILENCE_S)
        except ssl.SSLCertVerificationError as error:
            raise NotTrusted(_why_not_trusted(error, address, certificates)) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise Unreachable(_closed(address)) from error
        except ssl.SSLError as error:
            raise NotTrusted(_why_refused(error, address, certificates)) from error
        except TimeoutError as error:
            raise NotTrusted(
                f"{address} does not answer in TLS within {timeout_s:g} s; does `effbench fleet scheduler` run there "
                "with --certs?"
            ) from error
        except OSError as error:
            raise Unreachable(_closed(address)) from error
        if answer == b"":
            raise Unreachable(_closed(address))


def _first_answer(secured: ssl.SSLSocket, patience_s: float) -> bytes | None:
    """The first byte of the server, b"" if it closes; None once it has accepted us without a word.

    Raises ssl.SSLError if it refuses us.
    """
    deadline = time.monotonic() + patience_s
    secured.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(secured, selectors.EVENT_READ)
        while True:
            try:
                return secured.recv(1)
            except ssl.SSLWantReadError:
                # A server issues a ticket only after it has accepted our certificate. With TLS 1.2, it has by now.
                session = secured.session
                if secured.version() != "TLSv1.3" or (session is not None and session.has_ticket):
                    return None
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None


def _require_plain(connected: socket.socket, address: Address) -> None:
    """Return unless the server speaks TLS. Raises NotTrusted, Unreachable."""
    connected.settimeout(_PLAIN_SILENCE_S)
    try:
        if connected.recv(1):
            return
        raise Unreachable(_closed(address))
    except TimeoutError:
        pass
    except OSError as error:
        raise Unreachable(_closed(address)) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(connected).close()
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return
    except OSError:
        return
    raise NotTrusted(f"{address} speaks TLS; write tls://{str(address)[6:]} and give certificates with --certs")


def _closed(address: Address) -> str:
    return f"{address} closes the connection at once; is it `effbench fleet scheduler`? Its log may say why"


def _why_not_trusted(error: ssl.SSLCertVerificationError, address: Address, certificates: Certificates) -> str:
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {address} has expired; renew it where it was made and start the scheduler again: "
            "effbench fleet certs FOLDER NAME --renew"
        )
    if error.verify_code == _NOT_YET_VALID:
        return f"the certificate of {address} is not valid yet by the clock of this machine; set the clock"
    return (
        f"the certificate of {address} was signed by another CA than {certificates.ca} ({error.verify_message}); use a "
        "folder of the same `effbench fleet certs`"
    )


_REFUSALS = {
    "UNKNOWN_CA": "it was signed by another CA than the server's; use a folder of the same `effbench fleet certs`",
    "DECRYPT_ERROR": "it was signed by another CA than the server's; use a folder of the same `effbench fleet certs`",
    "CERTIFICATE_EXPIRED": "it has expired by the server's clock; renew it: effbench fleet certs FOLDER NAME --renew",
    "CERTIFICATE_REQUIRED": "it asks for a certificate and got none",
    "BAD_CERTIFICATE": "it is not valid yet by the server's clock, or damaged; set the clocks of both machines",
}
"""What the alert of a server means, by a part of OpenSSL's name for it, which differs between versions."""


def _why_refused(error: ssl.SSLError, address: Address, certificates: Certificates) -> str:
    reason = error.reason or str(error)
    if "ALERT" not in reason:
        return f"{address} speaks no TLS ({reason}); is it `effbench fleet scheduler` with --certs?"
    meaning = next((text for part, text in _REFUSALS.items() if part in reason), reason)
    return f"{address} refuses {certificates.cert}: {meaning}"
