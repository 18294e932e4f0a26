"""MQTT as a transport: paho-mqtt behind the four methods of `transport.Transport`.

MQTT 3.1.1, clean sessions, **QoS 0**. The protocol above repeats what matters, so an acknowledgement by the broker buys
nothing: it vouches for one hop only, and Mosquitto gives it for a message that it then drops (a denied topic, a full
queue). QoS 1 would cost 4 bytes of PUBACK and 2 of packet id per hop, keep messages in memory that cannot be dropped
any more, and send one that the broker refuses again after every reconnection, for ever. A message costs its payload,
its topic and 4 to 6 bytes.

What paho leaves to its user is done here: one network thread of our own (its own dies of an exception in a callback
while `is_connected()` stays true, and its `loop_stop` may block for ever), back-off with jitter (its own has none, so
that a fleet comes back in step), a bounded queue, nothing queued while offline, bytes counted on the socket.
"""

import logging
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.errors import ConfigError, LinkError
from edge_runtime.link import CONNECT_S, Link, Witness, mind_clock, outlived, tls_context, why_closed, why_unreachable
from edge_runtime.quota import ANY, Pace
from edge_runtime.socket_bytes import SocketBytes
from edge_runtime.transport import Connected, Receive, Traffic

__all__ = ["Link", "Mqtt"]

log = logging.getLogger(__name__)

_ANSWER_S = 10.0
_STABLE_S = 10.0
_GOOD_S = 3.0
"""A connection that lived for so long was none of a series of failures."""
_TAKEOVERS = 3
_CLOSE_S = 0.8
_FILTERS = 8
"""That one SUBSCRIBE may have at AWS IoT."""
_TCP_THIN_LINEAR_TIMEOUTS = 16
"""From linux/tcp.h; Python has no name for it, and elsewhere the number means something else."""
_RELEASE_S = 0.05
_STUCK_S = 60.0
"""Longer than connecting and any callback may take."""
_SMALL_BYTES = 8_192
"""After a larger packet, a broker that hangs up may mean the packet."""


class Mqtt:
    """A `Transport` over a broker.

    `error` is None until the link is lost for good: another client keeps taking over our id, or the network thread
    died. Then nothing is received or sent any more, and whoever owns the transport should raise it.
    """

    def __init__(self, link: Link) -> None:
        """Prepare a connection; nothing is sent before `start`.

        Raises:
            ConfigError: the settings cannot be used, or a certificate or key cannot be read.
        """
        self.error: LinkError | None = None
        self.dropped = 0
        self.callback_failures = 0
        self._link = link
        self._topics: list[str] = []
        self._needed: frozenset[str] = frozenset()
        self._subscribed: list[str] = []
        self._subscription: int | None = None
        self._receive: Receive = lambda topic, payload: None
        self._connected: Connected = lambda up: None
        self._up = self._was_up = False
        self._trouble = self._said = ""
        self._up_since_s = self._turned_s = 0.0
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._waiting_bytes = self._largest_bytes = 0
        """Bytes that wait for the socket, and the largest packet on this connection."""
        self._pace = Pace(link.quota) if link.quota != ANY else None
        self._held: deque[tuple[str, bytes]] = deque()
        """What the quota does not let go yet."""
        self._bytes = SocketBytes()
        self._witness = Witness(link)
        self._started, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._tls = tls_context(link)
        self._client = self._make_client()

    def start(self, topics: Sequence[str], receive: Receive, connected: Connected) -> None:
        """Connect, subscribe to `topics` and return once the broker has confirmed it; see `Transport.start`.

        Raises:
            LinkError: no broker there, or it refuses us: the address, why, and what to do.
        """
        self._topics, self._receive, self._connected = [*topics, *self._topics], receive, connected
        self._needed = frozenset(topics)
        self._thread.start()
        # The network thread has deadlines of its own; this one is for a name server that does not answer.
        if not self._started.wait(2 * CONNECT_S + _ANSWER_S):
            self._trouble = f"no broker answers at {self._link.address} (no answer in time): check -h and -p"
        if not self._was_up:
            self.close()
            raise LinkError(self._trouble)

    def listen(self, topics: Sequence[str]) -> None:
        """Subscribe to more topics, from now on and after every reconnection; a refusal is logged."""
        more = [topic for topic in topics if topic not in self._topics]
        self._topics = [*self._topics, *more]  # before asking: a reconnection in between then subscribes to them too
        if more and self._up:
            self._subscribe(more)

    def _subscribe(self, topics: Sequence[str]) -> int | None:
        """Subscribe, a few topics at a time; give the id of the first request."""
        first, rest = topics[:_FILTERS], topics[_FILTERS:]
        _, number = self._client.subscribe([(topic, 0) for topic in first])
        if rest:
            self._subscribe(rest)
        return number

    def unlisten(self, topics: Sequence[str]) -> None:
        """Subscribe to these no longer, now or after a reconnection."""
        fewer = [topic for topic in topics if topic in self._topics]
        self._topics = [topic for topic in self._topics if topic not in fewer]
        if fewer and self._up:
            self._client.unsubscribe(fewer)

    def unsent_bytes(self) -> int:
        """Count what waits for the socket; as much as may wait, while the quota is spent."""
        with self._lock:
            return self._link.max_queued_bytes if self._held else self._waiting_bytes

    def send(self, topic: str, payload: bytes) -> bool:
        """Hand one message over; False if the link is down or too much is waiting for it. Any thread may call this.

        Raises:
            ValueError: the packet would be larger than `max_packet_bytes`. The caller's chunks are too large: a
                broker would close the connection on it.
        """
        size_bytes = _packet_bytes(topic, payload)
        if size_bytes > self._link.max_packet_bytes:
            raise ValueError(f"a packet of {size_bytes} bytes on {topic}; the limit is {self._link.max_packet_bytes}")
        if not self._reserve(size_bytes):
            self.dropped += 1
            return False
        if self._pace is not None and self._hold(topic, payload):
            return True
        # Outside the lock: paho holds locks of its own here and while it calls `_on_publish`.
        return self._client.publish(topic, payload, qos=0).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _hold(self, topic: str, payload: bytes) -> bool:
        """Keep a message back if others are, or if the quota is spent."""
        with self._lock:
            if self._held or not self._takes(topic, payload):
                self._held.append((topic, payload))
            return bool(self._held)

    def _takes(self, topic: str, payload: bytes) -> bool:
        return self._pace is None or self._pace.take(_packet_bytes(topic, payload), time.monotonic())

    def _release(self) -> None:
        """Let go what the quota allows by now."""
        while self._held:
            topic, payload = self._held[0]
            if not self._takes(topic, payload):
                return
            self._client.publish(topic, payload, qos=0)
            with self._lock:
                if self._held:
                    self._held.popleft()

    def _reserve(self, size_bytes: int) -> bool:
        with self._lock:
            if not self._up or self._waiting_bytes + size_bytes > self._link.max_queued_bytes:
                return False
            self._waiting.append(size_bytes)
            self._waiting_bytes += size_bytes
            self._largest_bytes = max(self._largest_bytes, size_bytes)
            return True

    def alive(self) -> bool:
        """Say whether the network thread is there and has not been stuck for long, whatever the broker does."""
        longest_s = _STUCK_S + self._link.max_retry_s
        return self._thread.is_alive() and time.monotonic() - self._turned_s < longest_s

    def traffic(self) -> Traffic:
        """Count what crossed the sockets so far, over all reconnections: MQTT and TLS included, TCP and IP not."""
        return self._bytes.read()

    def close(self) -> None:
        """Say goodbye, and leave within a second whatever the broker does."""
        self._closing.set()
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return
        self._client.disconnect()
        self._thread.join(_CLOSE_S)
        self._hang_up()
        self._thread.join(0.2)

    def _make_client(self) -> paho.Client:
        link = self._link
        # Left on, paho would answer a refusal by trying MQTT 3.1 and other client ids.
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=link.client_id, clean_session=True, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        client.on_connect, client.on_subscribe = self._guard(self._on_connect), self._guard(self._on_subscribe)
        client.on_disconnect, client.on_message = self._guard(self._on_disconnect), self._guard(self._on_message)
        client.on_publish = self._guard(self._on_publish)
        counted = self._bytes  # by a name of its own: the client that holds these must not hold us
        client.on_socket_open = lambda client, data, sock: _opened(sock, counted)
        client.on_socket_close = lambda client, data, sock: counted.closing(sock)
        # With this set, paho writes to the socket in the network thread only, not in the thread that calls publish.
        client.on_socket_register_write = lambda client, data, sock: None
        if link.username is not None:
            client.username_pw_set(link.username, link.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        try:
            client.connect_async(link.host, link.port, link.keepalive_s)
        except ValueError as error:
            raise ConfigError(f"no broker can be at {link.address}: {error}") from error
        return client

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception:  # an exception of the layer above must not end the network thread
                self.callback_failures += 1
                log.exception("a callback of the MQTT link failed")

        return guarded

    def _run(self) -> None:
        """Keep a connection until `close`: the body of the network thread."""
        try:
            self._keep_connected()
        finally:
            self._witness.close()
            self._trouble = self._trouble or f"the link to {self._link.address} ended by a fault in its own program"
            if self._was_up and not self._closing.is_set() and self.error is None:
                self.error = LinkError(self._trouble)
            self._up = False
            self._started.set()
            self._let_go()

    def _let_go(self) -> None:
        """Part from paho's client and from who listens: held in a circle, paho would leave its own sockets open."""
        for name in ("connect", "subscribe", "disconnect", "message", "publish"):
            setattr(self._client, f"on_{name}", None)
        self._receive, self._connected = (lambda topic, payload: None), (lambda up: None)

    def _keep_connected(self) -> None:
        attempts = takeovers = 0
        while not self._closing.is_set():
            lived_s = self._connect_once()
            if self._closing.is_set() or not self._was_up:
                return
            # A short life counts as a failed attempt: two clients in a fight must not speed each other up.
            attempts = 0 if lived_s >= _GOOD_S else attempts + 1
            taken = 0 < lived_s < _STABLE_S and self._largest_bytes <= _SMALL_BYTES and self._witness.stands()
            takeovers = takeovers + 1 if taken else 0
            self._witness.close()
            if takeovers >= _TAKEOVERS:
                self.error = LinkError(
                    f"the broker at {self._link.address} closed {takeovers} connections in a row right after they were "
                    f"made: is another client connected as {self._link.client_id!r}? Each needs an id of its own"
                )
                return
            self._say_trouble()
            longest_s = min(self._link.max_retry_s, self._link.retry_s * 2 ** min(max(attempts - 1, 0), 16))
            self._closing.wait(random.uniform(0, longest_s))  # noqa: S311  # jitter, no secret
            if 0 < lived_s < _STABLE_S:
                self._witness.open()

    def _say_trouble(self) -> None:
        """Say why there is no connection; aloud, once, where it may be for good: a certificate, theirs or ours."""
        trouble = self._trouble or f"the link to {self._link.address} was lost"
        aloud = "certificate" in trouble and trouble != self._said
        self._said = trouble if aloud else self._said
        log.log(logging.WARNING if aloud else logging.INFO, "%s; trying again", trouble)

    def _connect_once(self) -> float:
        """Connect and serve until the connection ends; return how long it was up, in seconds (0: never)."""
        self._trouble, self._up_since_s, self._largest_bytes = "", 0.0, 0
        if self._tls is not None:
            mind_clock(self._tls, self._link)
        self._turned_s = time.monotonic()
        try:
            self._client.reconnect()
        except OSError as error:
            self._trouble = why_unreachable(self._link, error)
            return 0.0
        if outlived(self._client.socket(), self._link):
            self._trouble = f"the certificate of {self._link.address} has ended: renew it"
            self._hang_up()
        deadline_s = time.monotonic() + _ANSWER_S
        while self._client.socket() is not None and self._loop():
            if not self._up_since_s and time.monotonic() > deadline_s:
                self._trouble = f"{self._link.address} does not answer as an MQTT broker would: check -h and -p"
                break
            if self._up_since_s and time.monotonic() - self._up_since_s > _STABLE_S:
                self._witness.close()
        self._hang_up()  # where the loop was left early
        self._lost()
        if not self._up_since_s and not self._trouble:
            self._trouble = why_closed(self._link)
        return time.monotonic() - self._up_since_s if self._up_since_s else 0.0

    def _loop(self) -> bool:
        """Read and write what there is; False if the connection must not be used any more."""
        self._turned_s = time.monotonic()
        try:
            self._client.loop(1.0 if self._pace is None else _RELEASE_S)
            self._release()
        except Exception:  # a packet that paho stumbles over: its parser is only fit again after a reconnection
            self.callback_failures += 1
            log.exception("the broker at %s sent what MQTT does not allow", self._link.address)
            return False
        return True

    def _hang_up(self) -> None:
        sock: Any = self._client.socket()
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("the connection was closed already: %s", error)

    def _lost(self) -> None:
        with self._lock:
            was_up, self._up = self._up, False
            self._waiting.clear()
            self._held.clear()
            self._waiting_bytes = 0
        if was_up:
            self._guard(self._connected)(False)

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        if reason.is_failure:
            who = f"{self._link.client_id!r}" + (f" as user {self._link.username!r}" if self._link.username else "")
            self._trouble = f"the broker at {self._link.address} refuses {who} ({reason}): check -u and -P"
            client.disconnect()
        elif self._topics:
            self._subscribed = self._topics
            self._subscription = self._subscribe(self._subscribed)
        else:
            self._ready()

    def _on_subscribe(self, client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _more: Any) -> None:
        first = mid == self._subscription
        topics = self._subscribed[:_FILTERS] if first else ["more topics"] * len(reasons)
        refused = [topic for topic, reason in zip(topics, reasons, strict=False) if reason.is_failure]
        who = f"the broker at {self._link.address} does not let {self._link.client_id!r} read"
        fatal = [topic for topic in refused if topic in self._needed]
        if fatal:
            self._trouble = f"{who} {fatal[0]}"
            client.disconnect()
            return
        if refused:
            log.warning("%s %s", who, refused[0])
        if first:
            self._ready()

    def _ready(self) -> None:
        self._up_since_s, self._up, self._was_up = time.monotonic(), True, True
        self._guard(self._connected)(True)
        self._started.set()

    def _on_disconnect(self, *_: Any) -> None:
        self._lost()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        payload = bytes(message.payload)
        self._bytes.received(_packet_bytes(message.topic, payload))
        self._receive(message.topic, payload)

    def _on_publish(self, *_: Any) -> None:
        with self._lock:
            size_bytes = self._waiting.popleft() if self._waiting else 0
            self._waiting_bytes -= size_bytes
        self._bytes.sent(size_bytes)


def _opened(sock: Any, counted: SocketBytes) -> None:
    # An answer must not wait for the acknowledgement of what was said before it (Nagle): where that is lost, it would
    # wait for a retransmission. Nor need so thin a stream wait twice as long each time that it is lost again.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
    counted.opened(sock)


def _packet_bytes(topic: str, payload: bytes) -> int:
    """Measure a PUBLISH packet of QoS 0 (MQTT 3.1.1, section 3.3)."""
    body_bytes = 2 + len(topic.encode()) + len(payload)
    return 1 + max(1, -(-body_bytes.bit_length() // 7)) + body_bytes
