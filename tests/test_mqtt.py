import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import mqtt, socket_bytes
from edge_runtime.coordinator import broker as brokers
from edge_runtime.errors import ConfigError, LinkError
from edge_runtime.mqtt import Link, Mqtt
from edge_runtime.transport import Traffic

KINDS = [
    "amqtt",
    pytest.param(
        "mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
    ),
]
PASSWORDS = {"wrist": "right"}


@pytest.fixture(params=KINDS, scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.start(request.param, folder=tmp_path_factory.mktemp("broker")) as running:
        yield running


class End:
    """A transport that writes down what happens to it."""

    def __init__(self, port: int, client_id: str, topics: list[str], **settings: Any) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.ups: list[bool] = []
        self.mqtt = Mqtt(Link("127.0.0.1", port, client_id, **{"retry_s": 0.1, "max_retry_s": 0.4, **settings}))
        self.mqtt.start(topics, self.receive, self.ups.append)

    def receive(self, topic: str, payload: bytes) -> None:
        self.got.append((topic, payload))


@pytest.fixture
def connect() -> Iterator[Callable[..., End]]:
    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **settings: Any) -> End:
            end = End(*arguments, **settings)
            stack.callback(end.mqtt.close)
            return end

        yield make


def until(true: Callable[[], object], within_s: float = 8.0) -> bool:
    """Wait for something to become true."""
    deadline_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a port, and do `answer` with each connection."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])
                    threads.append(threading.Thread(target=speak, args=(held[-1],), daemon=True))
                    threads[-1].start()

        def speak(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):  # a client that went away
                answer(connection)

        threads = [threading.Thread(target=serve, daemon=True)]
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for connection in held:
                connection.close()


def accepting(connection: socket.socket) -> None:
    """Say CONNACK to CONNECT and SUBACK to SUBSCRIBE with one topic, and never read again."""
    connection.recv(1024)
    connection.sendall(b"\x20\x02\x00\x00")
    subscribe = connection.recv(1024)
    connection.sendall(b"\x90\x03" + subscribe[2:4] + b"\x00")


def test_chunks_of_64_kib_arrive_whole_in_both_directions(broker: brokers.Broker, connect: Callable[..., End]) -> None:
    chunk = bytes(range(256)) * 256
    hub, device = connect(broker.port, "hub", ["t/up/+"]), connect(broker.port, "device", ["t/down/device"])
    assert device.mqtt.send("t/up/device", chunk)
    assert hub.mqtt.send("t/down/device", chunk)
    assert until(lambda: hub.got and device.got)
    assert (hub.got, device.got) == ([("t/up/device", chunk)], [("t/down/device", chunk)])


def test_on_a_quiet_link_every_message_arrives_once_and_in_order(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    hub, device = connect(broker.port, "hub", ["t/up/+"]), connect(broker.port, "device", [])
    for number in range(200):
        assert device.mqtt.send("t/up/device", b"%d" % number)
    assert until(lambda: len(hub.got) >= 200)
    assert [int(payload) for _, payload in hub.got] == list(range(200))


def test_an_exception_of_the_receiver_is_counted_and_the_next_message_arrives(
    broker: brokers.Broker, connect: Callable[..., End], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(end: End, topic: str, payload: bytes) -> None:
        if payload == b"poison":
            raise ZeroDivisionError
        end.got.append((topic, payload))

    monkeypatch.setattr(End, "receive", stumble)
    hub = connect(broker.port, "hub", ["t/a"])
    assert hub.mqtt.send("t/a", b"poison")
    assert hub.mqtt.send("t/a", b"food")
    assert until(lambda: hub.got)
    assert (hub.got, hub.mqtt.callback_failures) == ([("t/a", b"food")], 1)


def test_an_exception_of_the_connection_callback_does_not_end_the_link(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    def fail(up: bool) -> None:
        raise ZeroDivisionError

    got: list[bytes] = []
    mqtt = Mqtt(Link("127.0.0.1", broker.port, "hub"))
    mqtt.start(["t/a"], lambda topic, payload: got.append(payload), fail)
    assert mqtt.send("t/a", b"food")
    assert until(lambda: got)
    mqtt.close()
    assert mqtt.callback_failures == 2


def test_a_message_may_be_sent_from_within_the_receiver(
    broker: brokers.Broker, connect: Callable[..., End], monkeypatch: pytest.MonkeyPatch
) -> None:
    def echo(end: End, topic: str, payload: bytes) -> None:
        end.got.append((topic, payload))
        if topic == "t/ask":
            end.mqtt.send("t/answer", payload)

    monkeypatch.setattr(End, "receive", echo)
    end = connect(broker.port, "echo", ["t/ask", "t/answer"])
    end.mqtt.send("t/ask", b"?")
    assert until(lambda: ("t/answer", b"?") in end.got)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_restart_of_the_broker_the_link_is_back_subscribed_and_its_bytes_are_still_counted(
    kind: str, connect: Callable[..., End], tmp_path: Path
) -> None:
    with brokers.start(kind, folder=tmp_path) as first:
        hub = connect(first.port, "hub", ["t/a"])
        hub.mqtt.send("t/a", bytes(50_000))
        assert until(lambda: hub.got)
        first.process.kill()
    assert until(lambda: hub.ups == [True, False])
    assert not hub.mqtt.send("t/a", b"offline")
    with brokers.start(kind, port=first.port, folder=tmp_path):
        assert until(lambda: hub.ups == [True, False, True])
        assert hub.mqtt.send("t/a", bytes(50_000))
        assert until(lambda: len(hub.got) == 2)
        traffic = hub.mqtt.traffic()
        hub.mqtt.close()
    assert (hub.mqtt.dropped, hub.mqtt.error) == (1, None)
    assert 100_000 <= traffic.up_bytes < 100_500
    assert 100_000 <= traffic.down_bytes < 100_500


def test_topics_that_are_added_later_are_listened_to_and_still_are_after_a_reconnection(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    talker, listener = connect(broker.port, "talker", []), connect(broker.port, "listener", ["t/first"])

    def arrives(topic: str) -> bool:
        count = len(listener.got)
        return until(lambda: talker.mqtt.send(topic, b"x") and time.sleep(0.02) is None and len(listener.got) > count)

    assert not until(lambda: talker.mqtt.send("t/later", b"x") and listener.got, 0.3)
    listener.mqtt.listen(["t/later", "t/first"])
    assert arrives("t/later")
    assert arrives("t/first")
    assert listener.ups == [True]
    listener.mqtt._hang_up()
    assert until(lambda: listener.ups == [True, False, True])
    assert arrives("t/later")
    assert arrives("t/first")


def test_topics_that_are_no_longer_wanted_bring_nothing_even_after_a_reconnection(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    talker, listener = connect(broker.port, "talker", []), connect(broker.port, "listener", ["t/first"])
    listener.mqtt.listen(["t/more"])
    assert until(lambda: talker.mqtt.send("t/more", b"x") and time.sleep(0.02) is None and listener.got)
    listener.mqtt.unlisten(["t/more", "t/never"])
    for ups in ([True], [True, False, True]):
        talker.mqtt.send("t/more", b"x")
        time.sleep(0.1)  # what was on its way has come
        listener.got.clear()
        talker.mqtt.send("t/more", b"x")
        talker.mqtt.send("t/first", b"y")
        assert until(lambda: listener.got)
        assert (listener.got, listener.ups) == ([("t/first", b"y")], ups)
        if ups == [True]:
            listener.mqtt._hang_up()
            assert until(lambda: listener.ups == [True, False, True])


def test_a_topic_that_was_added_and_is_refused_after_a_reconnection_does_not_end_the_link(
    connect: Callable[..., End], caplog: pytest.LogCaptureFixture
) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"\x20\x02\x00\x00")
        while subscribe := connection.recv(1024):
            codes = b"\x00\x80" if b"t/more" in subscribe else b"\x00"
            connection.sendall(b"\x90" + bytes([2 + len(codes)]) + subscribe[2:4] + codes)

    with server(answer) as port:
        device = connect(port, "device", ["t/first"])
        device.mqtt._topics.append("t/more")
        device.mqtt._hang_up()
        assert until(lambda: device.ups == [True, False, True])
        assert until(lambda: "does not let 'device' read t/more" in caplog.text)
        assert device.mqtt.error is None
        device.mqtt.close()


def test_traffic_is_what_was_sent_and_a_few_bytes_of_framing(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    hub, device = connect(broker.port, "hub", ["t/up"]), connect(broker.port, "device", [])
    for _ in range(100):
        device.mqtt.send("t/up", bytes(1000))
    assert until(lambda: len(hub.got) == 100)
    # CONNECT is 20 bytes, CONNACK 4, SUBSCRIBE 11, SUBACK 5; a message of 1000 bytes is one of 1009 here.
    assert device.mqtt.traffic() == Traffic(100 * 1009 + 20, 4)
    assert hub.mqtt.traffic() == Traffic(17 + 11, 4 + 5 + 100 * 1009)


def test_without_a_kernel_that_counts_messages_are_counted_with_their_framing(
    broker: brokers.Broker, connect: Callable[..., End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_bytes, "_kernel_counts", lambda sock: None)
    hub, device = connect(broker.port, "hub", ["t/up"]), connect(broker.port, "device", [])
    sizes = (0, 120, 121, 122, 1000, 16_377, 16_378, 100_000)
    for size in sizes:
        device.mqtt.send("t/up", bytes(size))
    assert until(lambda: len(hub.got) == 8)
    expected = sum(1 + 2 + len("t/up") + size for size in sizes)
    expected += 1 + 1 + 1 + 2 + 2 + 2 + 3 + 3  # length fields: one byte up to 127, two up to 16,383, then three
    assert (device.mqtt.traffic().up_bytes, hub.mqtt.traffic().down_bytes) == (expected, expected)


def test_a_packet_over_the_limit_is_refused_before_it_is_sent(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    device = connect(broker.port, "device", [], max_packet_bytes=1000)
    with pytest.raises(ValueError, match="a packet of 1001 bytes on t/a; the limit is 1000"):
        device.mqtt.send("t/a", bytes(993))
    assert device.mqtt.send("t/a", bytes(992))


def test_what_waits_for_a_broker_that_does_not_read_is_bounded_and_close_does_not_wait_for_it(
    connect: Callable[..., End],
) -> None:
    with server(accepting) as port:
        device = connect(port, "device", ["t"], max_queued_bytes=1_000_000)
        sent = [device.mqtt.send("t/a", bytes(100_000)) for _ in range(200)]
        assert sent[0]
        assert not sent[-1]
        assert device.mqtt.dropped == sent.count(False)
        assert 800_000 < device.mqtt.unsent_bytes() <= 1_000_000
        begin_s = time.monotonic()
        device.mqtt.close()
        assert time.monotonic() - begin_s < 1.2


def test_closing_an_idle_link_is_quick_and_tells_that_it_is_down(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    device = connect(broker.port, "device", ["t/a"])
    begin_s = time.monotonic()
    device.mqtt.close()
    assert time.monotonic() - begin_s < 0.3
    assert (device.ups, device.mqtt.error, device.mqtt.send("t/a", b"")) == ([True, False], None, False)


def test_of_two_clients_with_one_id_exactly_one_gives_up_and_says_why(
    broker: brokers.Broker, connect: Callable[..., End]
) -> None:
    twins = [connect(broker.port, "twin", ["t/twin"]) for _ in range(2)]
    assert until(lambda: any(twin.mqtt.error for twin in twins), 20.0)
    (loser,) = [twin for twin in twins if twin.mqtt.error]
    (winner,) = [twin for twin in twins if not twin.mqtt.error]
    assert "is another client connected as 'twin'?" in str(loser.mqtt.error)
    assert until(lambda: winner.mqtt.send("t/twin", b"mine"))
    assert until(lambda: winner.got)
    time.sleep(0.5)
    assert winner.mqtt.error is None
    assert not loser.mqtt.send("t/twin", b"")


def test_connections_that_held_for_a_while_are_no_series_of_failures(
    connect: Callable[..., End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_GOOD_S", 0.1)
    monkeypatch.setattr(mqtt, "_TAKEOVERS", 1000)  # this server hangs up on one connection at a time
    made = []

    def hang_up(connection: socket.socket) -> None:
        accepting(connection)
        made.append(time.monotonic())
        time.sleep(0.2)
        connection.shutdown(socket.SHUT_RDWR)

    with server(hang_up) as port:
        device = connect(port, "device", ["t"], max_retry_s=60.0)
        assert until(lambda: len(made) > 12, 30.0)
        device.mqtt.close()


def test_a_broker_that_comes_and_goes_is_not_taken_for_a_twin(connect: Callable[..., End], tmp_path: Path) -> None:
    with brokers.start("auto", folder=tmp_path) as running:
        device = connect(running.port, "device", ["t"])
        running.process.kill()
    for _ in range(4):
        assert until(lambda: device.ups[-1:] == [False])
        with brokers.start("auto", port=running.port, folder=tmp_path) as running_again:
            assert until(lambda: device.ups[-1:] == [True])
            running_again.process.kill()
    assert device.mqtt.error is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_password_is_refused_in_one_line_and_the_right_one_is_not(
    kind: str, connect: Callable[..., End], tmp_path: Path
) -> None:
    with brokers.start(kind, folder=tmp_path, users=PASSWORDS) as running:
        connect(running.port, "device", ["t"], username="wrist", password="right")
        for username, password in [("wrist", "wrong"), ("other", "right"), (None, None)]:
            with pytest.raises(LinkError, match=r"refuses 'device'.*check -u and -P$"):
                connect(running.port, "device", ["t"], username=username, password=password)


def test_a_port_where_nothing_listens_is_one_line_that_says_what_to_do(connect: Callable[..., End]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with pytest.raises(LinkError) as caught:
        connect(port, "device", ["t"])
    assert str(caught.value) == (
        f"no broker answers at 127.0.0.1:{port} (connection refused): "
        "start one with `edge-coordinator broker` or give -h and -p"
    )


def test_an_unknown_host_is_said_to_be_unknown() -> None:
    mqtt = Mqtt(Link("no-such-host.invalid", 1883, "device", insecure=True))
    with pytest.raises(LinkError, match=r"no-such-host\.invalid:1883 \(unknown host\)"):
        mqtt.start(["t"], lambda topic, payload: None, lambda up: None)


def test_a_server_that_hangs_up_is_said_to_be_no_broker(connect: Callable[..., End]) -> None:
    with server(lambda connection: connection.close()) as port, pytest.raises(LinkError, match="is it an MQTT broker"):
        connect(port, "device", ["t"])


def test_a_server_that_is_silent_is_given_up_on(connect: Callable[..., End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.mqtt._ANSWER_S", 0.2)
    with server(lambda connection: None) as port, pytest.raises(LinkError, match="does not answer as an MQTT broker"):
        connect(port, "device", ["t"])


def test_a_malformed_packet_of_the_broker_costs_one_connection_and_not_the_link(connect: Callable[..., End]) -> None:
    visits: list[int] = []

    def answer(connection: socket.socket) -> None:
        accepting(connection)
        visits.append(1)
        if len(visits) == 1:
            connection.sendall(b"\x30\x01\x00")  # PUBLISH that is cut off within the length of its topic

    with server(answer) as port:
        device = connect(port, "device", ["t"])
        assert until(lambda: device.ups == [True, False, True])
        device.mqtt.close()
    assert device.mqtt.error is None


def test_a_certificate_that_cannot_be_read_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"TLS cannot be set up from /no/such.pem: No such file"):
        Mqtt(Link("127.0.0.1", 8883, "device", cafile="/no/such.pem"))


def test_the_transport_loads_neither_numpy_nor_asyncio() -> None:
    program = "import sys, edge_runtime.mqtt; print(sorted({'numpy', 'asyncio', 'amqtt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_link_that_was_closed_holds_nothing_in_a_circle(broker: brokers.Broker) -> None:
    end = End(broker.port, "device", ["t"])
    end.mqtt.close()
    client = weakref.ref(end.mqtt._client)
    gc.disable()
    try:
        del end
        assert client() is None
    finally:
        gc.enable()
