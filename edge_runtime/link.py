"""Where a broker is, who we are there, and how to say what is wrong with either."""

import contextlib
import select
import socket
import ssl
from dataclasses import dataclass, field

from edge_runtime.errors import ConfigError

CONNECT_S = 5.0
_MOMENT_S = 0.3


@dataclass(frozen=True)
class Link:
    """Where the broker is and who we are there.

    Attributes:
        client_id: unique at the broker: a second client of the same id throws the first one out.
        cafile: certificates that the broker's must be signed by; given, the connection is TLS.
        insecure: with TLS, do not ask that the certificate names `host` (it must still be signed).
        max_packet_bytes: of one MQTT packet, framing included; AWS IoT takes 128 KiB.
        max_queued_bytes: of messages that wait for the socket.
        retry_s: longest pause before the first reconnection, doubled for each that fails, up to `max_retry_s`.
    """

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cafile: str | None = None
    cert: str | None = None
    key: str | None = None
    insecure: bool = False
    keepalive_s: int = 30
    max_packet_bytes: int = 131_072
    max_queued_bytes: int = 33_554_432
    retry_s: float = 1.0
    max_retry_s: float = 30.0

    @property
    def address(self) -> str:
        """The broker as a person would write it."""
        return f"{self.host}:{self.port}"


class Witness:
    """A second, silent TCP connection to the broker: it tells why the first one was closed.

    MQTT 3.1.1 has no word for "somebody else has come with your id". But a broker that dies takes all connections
    along, and one that prefers somebody else closes only one.
    """

    def __init__(self, link: Link) -> None:
        self._address = link.host, link.port
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect; if that fails there is no witness."""
        self.close()
        with contextlib.suppress(OSError):
            self._socket = socket.create_connection(self._address, CONNECT_S)

    def stands(self) -> bool:
        """Say whether the connection is still there, a moment after the other one went."""
        if self._socket is None:
            return False
        closed, _, _ = select.select([self._socket], [], [], _MOMENT_S)
        return not closed  # a broker never speaks first, so that only the end of the connection can be read

    def close(self) -> None:
        """Send the witness away."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def tls_context(link: Link) -> ssl.SSLContext:
    """Read certificates and key.

    Raises:
        ConfigError: one of them cannot be read, or they do not belong together.
    """
    try:
        context = ssl.create_default_context(cafile=link.cafile)
        if link.cert is not None:
            context.load_cert_chain(link.cert, link.key)
    except OSError as error:
        files = ", ".join(name for name in (link.cafile, link.cert, link.key) if name)
        raise ConfigError(f"TLS cannot be set up from {files}: {error.strerror or error}") from error
    context.check_hostname = not link.insecure
    return context


def why_unreachable(link: Link, error: OSError) -> str:
    """Say in one line why no connection came about, and what to do."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the certificate of {link.address} is not accepted ({error.verify_message}): check -h and --cafile"
        case ssl.SSLError():
            return f"no TLS with {link.address} ({error.reason or error}): check -p, --cafile, --cert and --key"
        case socket.gaierror():
            return f"no broker answers at {link.address} (unknown host): check -h"
        case ConnectionRefusedError():
            reason = "connection refused"
        case TimeoutError():
            reason = f"no answer in {CONNECT_S:.0f} s"
        case _:
            reason = error.strerror or str(error)
    return f"no broker answers at {link.address} ({reason}): start one with `edge-coordinator broker` or give -h and -p"
