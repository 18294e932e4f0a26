"""A look at a broker, a step at a time: its port, its TLS, and a connection to try things out on.

Nothing here goes on by itself: no thread, no reconnection. `mqtt.py` is what runs use.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edge_runtime.errors import LinkError
from edge_runtime.link import CONNECT_S, Link, mind_clock, tls_context, why_closed, why_unreachable

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_ANSWER_S = 10.0
_ALERT_S = 0.5
_TURN_S = 0.02


@dataclass(frozen=True)
class Handshake:
    """A TLS handshake that went well."""

    version: str
    cipher: str
    subject: str
    issuer: str
    ends_s: float
    """When the broker's certificate ends, Unix seconds."""


def reach(link: Link) -> float:
    """Connect to the broker's port, and say how many seconds that took.

    Raises:
        LinkError: nobody is there.
    """
    started_s = time.monotonic()
    try:
        socket.create_connection((link.host, link.port), CONNECT_S).close()
    except OSError as error:
        raise LinkError(why_unreachable(link, error)) from error
    return time.monotonic() - started_s


def shake_hands(link: Link) -> Handshake:
    """Speak TLS with the broker, as an agent would, up to where it has looked at our certificate.

    Raises:
        LinkError: the broker's certificate is not accepted, or it does not accept ours.
    """
    context = tls_context(link)
    if context is None:
        raise LinkError(f"the link to {link.address} is in clear")
    mind_clock(context, link)
    try:
        with _connected(link, context) as sock:
            _wait_for_alert(sock)
            found: Any = sock.getpeercert() or {}
            names = [dict(part[0] for part in found.get(who, ())) for who in ("subject", "issuer")]
            subject, issuer = (str(name.get("commonName", "?")) for name in names)
            ends_s = float(ssl.cert_time_to_seconds(found["notAfter"]))
            return Handshake(str(sock.version()), str((sock.cipher() or ("?",))[0]), subject, issuer, ends_s)
    except OSError as error:
        raise LinkError(why_unreachable(link, error)) from error


@contextlib.contextmanager
def _connected(link: Link, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((link.host, link.port), CONNECT_S) as bare,
        context.wrap_socket(bare, server_hostname=link.host) as sock,
    ):
        yield sock


def _wait_for_alert(sock: ssl.SSLSocket) -> None:
    """Let the broker say that it does not like our certificate: in TLS 1.3 it says so after the handshake."""
    sock.settimeout(_ALERT_S)
    try:
        sock.recv(1)
    except TimeoutError:
        return


def presented(link: Link) -> "Certificate | None":
    """Fetch the certificate that the broker shows, whoever signed it; None: it shows none."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _connected(link, context) as sock:
            data = sock.getpeercert(binary_form=True)
    except OSError:
        return None
    return x509.load_der_x509_certificate(data) if data else None


class Probe:
    """One connection to the broker; leaving it as a context ends it."""

    def __init__(self, link: Link) -> None:
        """Prepare it.

        Raises:
            ConfigError: certificates or key cannot be read, or others could read the link.
        """
        self.link = link
        self.heard: list[tuple[str, bytes]] = []
        self.lost = False
        """Whether the broker has hung up."""
        self._connected: Any = None
        self._granted: dict[int, list[bool]] = {}
        context = tls_context(link)
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=link.client_id, clean_session=True, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_message, client.on_disconnect = self._on_message, self._on_disconnect
        if link.username is not None:
            client.username_pw_set(link.username, link.password)
        if context is not None:
            mind_clock(context, link)
            client.tls_set_context(context)
        client.connect_async(link.host, link.port, link.keepalive_s)
        self._client = client

    def __enter__(self) -> "Probe":
        """Connect.

        Raises:
            LinkError: no broker there, or it refuses us.
        """
        try:
            self._client.reconnect()
        except OSError as error:
            raise LinkError(why_unreachable(self.link, error)) from error
        if not self.wait(lambda: self._connected is not None, _ANSWER_S):
            silent = f"{self.link.address} does not answer as an MQTT broker would: check -h and -p"
            why = why_closed(self.link) if self.lost else silent
            self.close()
            raise LinkError(why)
        if self._connected.is_failure:
            self.close()
            who = f"{self.link.client_id!r}" + (f" as user {self.link.username!r}" if self.link.username else "")
            raise LinkError(f"the broker at {self.link.address} refuses {who} ({self._connected}): check -u and -P")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.disconnect()
        sock: Any = self._client.socket()
        if sock is not None:
            self._client.loop(_TURN_S)
            sock.close()

    def subscribe(self, topics: Sequence[str], within_s: float = _ANSWER_S) -> list[bool]:
        """Subscribe, and say of each whether the broker grants it; one that hangs up or is silent grants nothing."""
        _, number = self._client.subscribe([(topic, 0) for topic in topics])
        if number is None or not self.wait(lambda: number in self._granted, within_s):
            return [False] * len(topics)
        return self._granted[number]

    def publish(self, topic: str, payload: bytes) -> None:
        """Say something, without an answer (QoS 0)."""
        self._client.publish(topic, payload, qos=0)

    def wait(self, until: Callable[[], bool], within_s: float) -> bool:
        """Serve the connection until something is true; False: it did not become so in time, or the broker hung up."""
        deadline_s = time.monotonic() + within_s
        while not until():
            if self.lost or time.monotonic() > deadline_s:
                return until()
            if self._client.loop(_TURN_S) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.lost = True
        return True

    def hears(self, topic: str, payload: bytes, within_s: float) -> bool:
        """Wait until a message was heard."""
        return self.wait(lambda: (topic, payload) in self.heard, within_s)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        self._connected = reason

    def _on_subscribe(self, _client: Any, _data: Any, number: int, reasons: list[Any], _more: Any) -> None:
        self._granted[number] = [not reason.is_failure for reason in reasons]

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.heard.append((message.topic, bytes(message.payload)))

    def _on_disconnect(self, *_: Any) -> None:
        self.lost = True
