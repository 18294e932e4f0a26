"""Each fault of amqtt that the guard mends, shown on amqtt as it is and on the guarded broker.

When a test fails on the bare broker's half, amqtt has mended that fault itself, and its part of the guard can go.
"""

import asyncio
import gc
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from amqtt.broker import Broker

from edge_runtime.coordinator import embedded, passwords

Scenario = Callable[[int], Awaitable[Any]]
CONNACK = b"\x20\x02\x00\x00"


class Bare(Broker):  # type: ignore[misc]
    """amqtt as it is, with one user for the tests that need one."""

    def __init__(self, port: int, only: str | None) -> None:
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}}
        super().__init__({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": plugins})
        self.only = only

    async def _authenticate(self, session: Any, listener: Any) -> bool:
        return self.only is None or session.username == self.only


def on_both(scenario: Scenario, only: str | None = None) -> tuple[Any, Any]:
    """Play a scenario on a bare and on a guarded broker at the same time; `only` is the one user and password."""
    hashes = None if only is None else passwords.decode(passwords.encode({only: only}))

    async def play(make: Callable[[int], Broker]) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        broker = make(port)
        await broker.start()
        try:
            return await scenario(port)
        finally:
            await broker.shutdown()

    async def both() -> list[Any]:
        return await asyncio.gather(
            play(lambda port: Bare(port, only)), play(lambda port: embedded.GuardedBroker("127.0.0.1", port, hashes))
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the bare broker leaves connections open
        bare, guarded = asyncio.run(both())
        gc.collect()
    return bare, guarded


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


def packet(first: int, body: bytes) -> bytes:
    length, rest = b"", len(body)
    while True:
        rest, low = divmod(rest, 128)[0], rest % 128
        length += bytes([low | (0x80 if rest else 0)])
        if not rest:
            return bytes([first]) + length + body


def connect_packet(client_id: str, user: str | None = None, keepalive_s: int = 60) -> bytes:
    flags = 0x02 if user is None else 0xC2
    login = b"" if user is None else text(user) + text(user)
    return packet(0x10, text("MQTT") + bytes([4, flags]) + struct.pack("!H", keepalive_s) + text(client_id) + login)


def publish_packet(topic: str, payload: bytes, retain: bool = False) -> bytes:
    return packet(0x31 if retain else 0x30, text(topic) + payload)


class Wire:
    """A client of a few bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Wire":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def connect(cls, port: int, client_id: str, user: str | None = None, keepalive_s: int = 60) -> "Wire":
        wire = await cls.open(port)
        wire.writer.write(connect_packet(client_id, user, keepalive_s))
        assert await wire.reader.readexactly(4) == CONNACK
        return wire

    async def subscribe(self, topic: str) -> None:
        self.writer.write(packet(0x82, b"\x00\x01" + text(topic) + b"\x00"))
        assert await self.reader.readexactly(5) == b"\x90\x03\x00\x01\x00"

    async def hears(self, wait_s: float = 0.3) -> bytes:
        """Read what comes within a while; b"closed" if the broker hangs up."""
        try:
            return await asyncio.wait_for(self.reader.read(4096), wait_s) or b"closed"
        except TimeoutError:
            return b""
        except ConnectionError:
            return b"closed"

    def close(self) -> None:
        self.writer.close()


def test_a_client_gets_no_retained_message_that_it_did_not_subscribe_to() -> None:
    async def scenario(port: int) -> bytes:
        owner, other = await Wire.connect(port, "owner"), await Wire.open(port)
        await owner.subscribe("secret/#")
        owner.writer.write(publish_packet("secret/x", b"mine", retain=True))
        assert b"mine" in await owner.hears()
        other.writer.write(connect_packet("other"))
        assert await other.reader.readexactly(4) == CONNACK
        heard = await other.hears()
        owner.close()
        other.close()
        return heard

    bare, guarded = on_both(scenario)
    assert b"mine" in bare
    assert guarded == b""


def test_a_client_without_the_password_cannot_end_the_session_of_another() -> None:
    async def scenario(port: int) -> tuple[int, bytes]:
        victim = await Wire.connect(port, "victim", "known")
        await victim.subscribe("t")
        attacker = await Wire.open(port)
        attacker.writer.write(connect_packet("victim", "stranger"))
        refusal = (await attacker.reader.readexactly(4))[3]
        sender = await Wire.connect(port, "sender", "known")
        sender.writer.write(publish_packet("t", b"for the victim"))
        heard = await victim.hears()
        for wire in (victim, attacker, sender):
            wire.close()
        return refusal, heard

    bare, guarded = on_both(scenario, only="known")
    assert bare == (5, b"")
    assert guarded == (4, publish_packet("t", b"for the victim"))


def test_a_second_client_of_one_id_ends_the_first_ones_connection_and_is_heard_itself() -> None:
    async def scenario(port: int) -> tuple[bytes, bytes]:
        first = await Wire.connect(port, "twin")
        await first.subscribe("t")
        second = await Wire.connect(port, "twin")
        await second.subscribe("t")
        ended = await first.hears()
        second.writer.write(publish_packet("t", b"x"))
        heard = await second.hears()
        first.close()
        second.close()
        return ended, heard

    bare, guarded = on_both(scenario)
    assert bare[0] == b""
    assert guarded == (b"closed", publish_packet("t", b"x"))


def test_a_packet_over_the_limit_ends_the_connection_before_it_is_read() -> None:
    async def scenario(port: int) -> bytes:
        hostile = await Wire.connect(port, "hostile")
        hostile.writer.write(b"\x30\xff\xff\xff\x7f\x00\x01t" + bytes(300_000))  # 256 MB, it says
        heard = await hostile.hears()
        hostile.close()
        return heard

    bare, guarded = on_both(scenario)
    assert bare == b""
    assert guarded == b"closed"


def test_a_packet_of_a_forbidden_type_ends_the_connection() -> None:
    async def scenario(port: int) -> bytes:
        hostile = await Wire.connect(port, "hostile")
        hostile.writer.write(bytes(200))
        heard = await hostile.hears()
        hostile.close()
        return heard

    assert on_both(scenario) == (b"", b"closed")


def test_who_does_not_say_connect_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "CONNECT_S", 0.1)

    async def scenario(port: int) -> list[bytes]:
        silent, halting = await Wire.open(port), await Wire.open(port)
        halting.writer.write(connect_packet("halting")[:9])
        heard = [await silent.hears(0.4), await halting.hears(0.1)]
        silent.close()
        halting.close()
        return heard

    bare, guarded = on_both(scenario)
    assert bare == [b"", b""]
    assert guarded == [b"closed", b"closed"]


def test_who_does_not_end_a_packet_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKET_S", 0.1)

    async def scenario(port: int) -> bytes:
        halting = await Wire.connect(port, "halting")
        halting.writer.write(publish_packet("t", bytes(1000))[:-1])
        heard = await halting.hears(0.5)
        halting.close()
        return heard

    assert on_both(scenario) == (b"", b"closed")


def test_a_client_that_is_silent_for_longer_than_its_keep_alive_is_gone_and_one_that_is_just_in_time_is_not() -> None:
    async def scenario(port: int) -> tuple[bytes, bytes]:
        silent, late = (
            await Wire.connect(port, "silent", keepalive_s=1),
            await Wire.connect(port, "late", keepalive_s=1),
        )
        waiting = asyncio.ensure_future(silent.hears(2.5))
        await asyncio.sleep(1.2)
        late.writer.write(b"\xc0\x00")
        answered = await late.hears()
        heard = await waiting
        silent.close()
        late.close()
        return heard, answered

    bare, guarded = on_both(scenario)
    assert bare[0] == b""
    assert guarded == (b"closed", b"\xd0\x00")


def test_what_waits_for_a_client_that_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_QUEUED_BYTES", 500_000)
    count, size_bytes = 400, 60_000

    async def scenario(port: int) -> int:
        slow, fast = await Wire.connect(port, "slow"), await Wire.connect(port, "fast")
        await slow.subscribe("t")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await fast.subscribe("end")
        for _ in range(count):
            fast.writer.write(publish_packet("t", bytes(size_bytes)))
            await fast.writer.drain()
        fast.writer.write(publish_packet("end", b""))
        assert await fast.hears(5.0)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        heard = 0
        while True:
            try:
                heard += len(await asyncio.wait_for(slow.reader.read(1_000_000), 0.5))
            except TimeoutError:
                break
        slow.close()
        fast.close()
        return heard

    bare, guarded = on_both(scenario)
    assert bare >= count * size_bytes
    assert 500_000 < guarded < count * size_bytes


def test_one_connection_too_many_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_CONNECTIONS", 1)

    async def scenario(port: int) -> tuple[bytes, bytes]:
        first, second = await Wire.connect(port, "first"), await Wire.open(port)
        second.writer.write(connect_packet("second"))
        turned_away = await second.hears()
        first.close()
        await asyncio.sleep(0.1)
        third = await Wire.connect(port, "third")
        second.close()
        third.close()
        return turned_away, CONNACK

    bare, guarded = on_both(scenario)
    assert bare[0] == CONNACK
    assert guarded == (b"closed", CONNACK)


def test_on_any_address_but_loopback_it_wants_a_fleet() -> None:
    command = [sys.executable, "-m", "edge_runtime.coordinator.embedded", "--host", "0.0.0.0", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "a broker on 0.0.0.0 needs --fleet-folder, or --insecure\n")
