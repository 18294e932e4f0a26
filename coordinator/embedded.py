"""amqtt as a broker that can be left alone: `python -m edge_runtime.coordinator.embedded --port 1883`.

amqtt 0.12.1 is a pure Python broker, there wherever pip is. What this guard changes, each with a test of its own in
`tests/coordinator/test_embedded.py` that shows the fault on the unguarded broker too:

* a client got other clients' retained messages without having subscribed to them: nothing is retained;
* a client that had not given its password yet, or a wrong one, could end the session of another: who it is comes first;
* a second client of the same id left the first one connected but deaf: the first one's connection is closed;
* a client could claim a packet of 256 MB and have it buffered: packets have a limit;
* a client that sent packets of a forbidden type was read on for as long as it went on, at full speed: it is hung up on;
* a silent connection, before CONNECT or after, stayed for ever: deadlines, and keep-alive as MQTT has it (1.5 times);
* clients that came over and over left the others no time, as each costs milliseconds: they are let in one by one;
* messages for a client that does not read were kept without limit: a limit per client, then they are dropped;
* a client that floods the broker was read as fast as it sent, and others waited behind what it had said: a client is
  read on when most of what it said has been passed on, clients take turns, and each has a share of what may wait.

With a fleet (`pki.py`) it speaks TLS and lets in only who has a certificate of it (`doors.py`): its CN is user and
client id, each may say and hear what the fleet's rules allow, and who is revoked is hung up on within `WATCH_S`. amqtt
sends a client's will without asking whether it may speak there; here a will obeys the same rules.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import signal
import ssl
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Action, Broker
from amqtt.mqtt.connack import BAD_USERNAME_PASSWORD, ConnackPacket
from amqtt.mqtt.constants import QOS_0
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import OutgoingApplicationMessage, Session
from amqtt.utils import gen_client_id

from edge_runtime.coordinator import passwords
from edge_runtime.coordinator.broker import MAX_CONNECTIONS, MAX_PACKET_BYTES
from edge_runtime.coordinator.refusals import Refusals
from edge_runtime.errors import ConfigError
from edge_runtime.link import is_loopback

if TYPE_CHECKING:
    from edge_runtime.coordinator.doors import Doors
    from edge_runtime.coordinator.pki import Fleet

log = logging.getLogger(__name__)

CONNECT_S = 10.0
PACKET_S = 60.0
MAX_QUEUED_BYTES = 33_554_432
MAX_SHARE_BYTES = 4_194_304
"""Of what waits for one client, from one client: four times what a device is sent at a time."""
MAX_UNHEARD = 32
"""Messages of one client that wait to be passed on: above that it is not read."""
CONNECT_PAUSE_S = 0.02
"""From one client's coming in to the next one's: two hundred that come at once are in after four seconds."""
_TURNS = 8
"""Messages of all clients whose turn has come."""
_PAUSE_S = 0.005
WATCH_S = 0.5


class Reader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt is untyped
    """Reads only what is small enough and comes in time, and nothing once it was told to stop."""

    stopped = False
    name: str | None = None
    """Whom the client's certificate names."""
    serial = 0
    backlog: "asyncio.Queue[Any] | None" = None
    """What this client said, and nobody has been told yet."""

    async def read(self, n: int = -1) -> bytes:
        """Read exactly `n` bytes.

        Raises:
            ConnectionAbortedError: too many, or too slow. amqtt swallows other errors, and gets out of step.
        """
        if self.stopped:
            raise ConnectionAbortedError("the client is gone")
        if n > MAX_PACKET_BYTES:
            raise ConnectionAbortedError(f"a packet of {n} bytes; the limit is {MAX_PACKET_BYTES}")
        if n <= 1:
            while self._unheard() >= MAX_UNHEARD and not self.stopped:  # noqa: ASYNC110  # amqtt's queue has no event
                await asyncio.sleep(_PAUSE_S)
            return bytes(await super().read(n))  # between packets: the keep-alive watches over this
        try:
            async with asyncio.timeout(PACKET_S):
                return bytes(await super().read(n))
        except TimeoutError as error:
            raise ConnectionAbortedError(f"a packet that took longer than {PACKET_S:.0f} s") from error

    def _unheard(self) -> int:
        return 0 if self.backlog is None else self.backlog.qsize()


class Said(bytes):
    """What a client said."""

    by = ""
    """Its id."""

    def __repr__(self) -> str:
        """Be short: amqtt writes each message out for a log that is off."""
        return f"{len(self)} bytes of {self.by}"


class Handler(BrokerProtocolHandler):  # type: ignore[misc]
    """The protocol with one client: keep-alive enforced, and a bound on what waits for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Begin with nothing that waits."""
        super().__init__(*arguments, **options)
        self._waiting_bytes = 0
        self._shares: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Lock] = {}

    def handle_read_timeout(self) -> None:
        """Take a client that has been silent for too long as gone."""
        self._closing = asyncio.ensure_future(self.handle_connection_closed())

    async def handle_connection_closed(self) -> None:
        """End the connection, whatever the client had still to say."""
        if isinstance(self.reader, Reader):
            self.reader.stopped = True
        await super().handle_connection_closed()

    async def mqtt_publish(
        self, topic: str, data: bytes | bytearray, qos: int | None, retain: bool, ack_timeout: int | None = None
    ) -> OutgoingApplicationMessage:
        """Send a message, or drop it if the client does not keep up.

        The message that is returned is empty: amqtt keeps it while an earlier one, to any client, is under way.
        """
        empty = OutgoingApplicationMessage(None, topic, qos, b"", retain)
        by = data.by if isinstance(data, Said) else ""
        full = self._waiting_bytes + len(data) > MAX_QUEUED_BYTES or self._shares[by] + len(data) > MAX_SHARE_BYTES
        if self.session is None or full:
            return empty
        self._waiting_bytes += len(data)
        self._shares[by] += len(data)
        try:
            # One message of each client waits for the socket, so that who says much does not come before the others.
            async with self._turns.setdefault(by, asyncio.Lock()) if qos == QOS_0 else contextlib.nullcontext():
                await super().mqtt_publish(topic, data, qos, retain, ack_timeout)
        finally:
            self._waiting_bytes -= len(data)
            self._shares[by] -= len(data)
            if not self._shares[by]:
                del self._shares[by]
                self._turns.pop(by, None)
        return empty


def _doors(fleet: "Fleet", refusals: Refusals) -> "Doors":
    from edge_runtime.coordinator.doors import Doors  # without a fleet there need be no `cryptography`

    return Doors(fleet, refusals)


class GuardedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker without its faults."""

    def __init__(self, host: str, port: int, hashes: dict[str, str] | None, fleet: "Fleet | None" = None) -> None:
        """Prepare to listen; `hashes` of passwords by user, or None to let anybody in whom the fleet, if any, lets."""
        bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        secured = {"ssl": True} if fleet else {}
        super().__init__({"listeners": {"default": {"type": "tcp", "bind": bind, **secured}}, "plugins": {}})
        self._broadcast_queue: asyncio.Queue[Any] = asyncio.Queue(_TURNS)
        self._next_turn = asyncio.Lock()
        """First come, first served. Those who wait for a full queue itself are not: who always comes just as a place is
        free takes it from one who was woken for it, and a client that never pauses keeps all others out for good."""
        self._hashes = hashes
        self._open = 0
        self._next_s = 0.0
        self.refusals = Refusals()
        self._doors = _doors(fleet, self.refusals) if fleet else None

    def _create_ssl_context(self, _listener: Any) -> ssl.SSLContext:
        if self._doors is None:
            raise ConfigError("no fleet, and so no certificates")
        return self._doors.context()

    async def _create_server_instance(
        self, listener_name: str, _kind: Any, address: str | None, port: int, ssl_context: ssl.SSLContext | None
    ) -> asyncio.Server:
        serve = partial(self.stream_connected, listener_name=listener_name)
        deadline_s = CONNECT_S if ssl_context else None  # asyncio would wait a minute for a silent client
        return await asyncio.start_server(
            serve, address, port, reuse_address=True, ssl=ssl_context, ssl_handshake_timeout=deadline_s
        )

    async def watch(self) -> None:
        """Keep to the fleet as it is: hang up on who is revoked. Never returns."""
        while self._doors is not None:
            await asyncio.sleep(WATCH_S)
            self._doors.look()
            for session, handler in list(self._sessions.values()):
                reader = handler.reader
                if isinstance(reader, Reader) and self._doors.closed_to(reader.serial):
                    self.refusals.add(f"{session.client_id!r} was connected: its certificate is revoked")
                    await self._forget(session.client_id)

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection to its end, and close it."""
        self._open += 1
        try:
            guarded = Reader(reader)
            if self._open <= MAX_CONNECTIONS and self._opens_to(guarded, writer) and await self._turn(reader):
                await self._client_connected(listener_name, guarded, StreamWriterAdapter(writer))
        except Exception as error:  # noqa: BLE001  # whatever a client sends may end its own connection, and nothing else
            log.info("a connection ended: %r", error)
        finally:
            self._open -= 1
            writer.close()

    async def _turn(self, reader: asyncio.StreamReader) -> bool:
        """Wait for this client's turn to come in; False if it is gone by then."""
        now_s = asyncio.get_running_loop().time()
        pause_s, self._next_s = max(0.0, self._next_s - now_s), max(self._next_s, now_s) + CONNECT_PAUSE_S
        await asyncio.sleep(pause_s)
        return not reader.at_eof() and reader.exception() is None

    def _opens_to(self, reader: Reader, writer: asyncio.StreamWriter) -> bool:
        """Read the client's certificate, which TLS has verified already; False if it is revoked."""
        if self._doors is None:
            return True
        found: Any = writer.get_extra_info("peercert") or {}
        subject = dict(part[0] for part in found.get("subject", ()))
        reader.name, reader.serial = subject.get("commonName", ""), int(found.get("serialNumber", "0"), 16)
        if self._doors.closed_to(reader.serial):
            self.refusals.add(f"{reader.name!r}: its certificate is revoked")
            return False
        return bool(reader.name)

    async def _initialize_client_session(
        self, reader: Any, writer: Any, remote_address: str, remote_port: int
    ) -> tuple[Handler, Session]:
        """Read CONNECT. No session outlives its connection, and none is touched before we know who this is."""
        try:
            async with asyncio.timeout(CONNECT_S):
                handler, session = await Handler.init_from_connect(reader, writer, self.plugins_manager)
        except TimeoutError as error:
            raise ConnectionAbortedError(f"{remote_address}:{remote_port} did not say CONNECT") from error
        session.clean_session, session.parent = True, 0
        if reader.name is not None:
            if session.client_id != reader.name:
                self.refusals.add(f"{reader.name!r} came as client {str(session.client_id)[:64]!r}: taken as itself")
            session.client_id = session.username = reader.name
        session.client_id = session.client_id or gen_client_id()
        session.will_flag = session.will_flag and await self._topic_filtering(
            session, str(session.will_topic), Action.PUBLISH
        )
        session.keep_alive = math.ceil(1.5 * session.keep_alive)  # MQTT 3.1.1, section 3.1.2.10
        return handler, session

    async def _handle_client_session(
        self, reader: Any, writer: Any, client_session: Session, handler: Handler, server: Any, listener_name: str
    ) -> None:
        if not self._knows(client_session):
            await ConnackPacket.build(0, BAD_USERNAME_PASSWORD).to_stream(writer)
            return
        await self._forget(client_session.client_id)
        reader.backlog = client_session.delivered_message_queue
        try:
            await super()._handle_client_session(reader, writer, client_session, handler, server, listener_name)
        finally:
            if self._sessions.get(client_session.client_id, (None,))[0] is client_session:
                await self._forget(client_session.client_id)

    def _knows(self, session: Session) -> bool:
        if self._hashes is None:
            return True
        hashed = self._hashes.get(session.username or "", "")
        return passwords.matches(hashed, session.password or "")

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """Say whether a client may do that. What it receives is what it was allowed to subscribe to."""
        if self._doors is None or action == Action.RECEIVE:
            return True
        return self._doors.allows(session.client_id, "write" if action == Action.PUBLISH else "read", topic)

    async def _authenticate(self, _session: Session, _listener: Any) -> bool:
        """Say yes: who is not known does not come this far."""
        return True

    async def _forget(self, client_id: str) -> None:
        """Drop a client's subscriptions, and its connection if there is one."""
        _, handler = self._sessions.get(client_id, (None, None))
        await self._delete_session(client_id)
        if handler is not None:
            await handler.handle_connection_closed()

    async def _broadcast_message(
        self, session: Session | None, topic: str | None, data: bytes | bytearray | None, force_qos: int | None = None
    ) -> None:
        said = Said(data or b"")
        said.by = str(session.client_id) if session else ""
        async with self._next_turn:
            await super()._broadcast_message(session, topic, said, force_qos)

    async def retain_message(self, *arguments: Any) -> None:
        """Retain nothing."""


async def serve(host: str, port: int, hashes: dict[str, str] | None, fleet: "Fleet | None" = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broker = GuardedBroker(host, port, hashes, fleet)
    await broker.start()
    watching = asyncio.ensure_future(broker.watch())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([watching, stopped] if fleet else [stopped], return_when=asyncio.FIRST_COMPLETED)
    if watching.done() and watching.exception():  # without knowing who is revoked, nobody is served
        log.error("the broker stops: %s", watching.exception())
    watching.cancel()
    with contextlib.suppress(TimeoutError):  # nothing is kept, so nothing is lost by leaving at once
        async with asyncio.timeout(1.0):
            await broker.shutdown()


def main() -> None:
    """Run the broker."""
    parser = argparse.ArgumentParser(prog="embedded broker", description="amqtt behind a guard.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--passwords", type=Path)
    parser.add_argument("--fleet-folder", type=Path)
    parser.add_argument("--insecure", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    if not (options.fleet_folder or options.insecure or is_loopback(options.host)):
        sys.stderr.write(f"a broker on {options.host} needs --fleet-folder, or --insecure\n")
        sys.exit(ConfigError.exit_code)
    hashes = None if options.passwords is None else passwords.decode(options.passwords.read_text())
    asyncio.run(serve(options.host, options.port, hashes, _fleet(options.fleet_folder)))


def _fleet(folder: Path | None) -> "Fleet | None":
    if folder is None:
        return None
    from edge_runtime.coordinator.pki import Fleet

    return Fleet(folder)


if __name__ == "__main__":
    main()
