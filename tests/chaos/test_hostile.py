"""The rows of strangers, of a cloud and of a first try, small."""

import math
import shutil
import threading
import time
from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt
from tests.chaos import cloud, first_try, hostile
from tests.chaos.cloud import Client, packets, text
from tests.chaos.scorecard import Scale


def test_strangers_take_little_and_the_run_goes_on(tmp_path: Path) -> None:
    found = hostile.besieged("amqtt", Scale(0.05, 0, tmp_path))
    assert found["rss_delta_bytes"] <= hostile.MAX_DELTA_BYTES  # type: ignore[operator]
    assert found["rounds_after"] >= 1  # type: ignore[operator]


@pytest.mark.parametrize("kind", hostile.kinds())
def test_a_client_that_never_pauses_keeps_no_other_out(kind: str, tmp_path: Path) -> None:
    heard = threading.Semaphore(0)
    with brokers.start(kind, folder=tmp_path) as broker:
        honest, stop = Mqtt(Link(broker.host, broker.port, "honest")), threading.Event()
        honest.start(["said/+"], lambda topic, payload: heard.release(), lambda up: None)
        flood = threading.Thread(target=hostile.flood, args=(broker.port, "garbage/a", stop, math.inf))
        flood.start()
        try:
            for _ in range(25):  # the flood has to last: clients are shut out once they fall in step with it
                time.sleep(0.2)
                honest.send("said/a", b"something")
                assert heard.acquire(timeout=20.0), "shut out for 20 s"
        finally:
            stop.set()
            flood.join()
            honest.close()


def test_a_run_keeps_to_the_limits_of_a_cloud(tmp_path: Path) -> None:
    figure = cloud.aws(Scale(0.05, 0, tmp_path))
    assert figure.met, figure.text
    assert figure.details["largest_payload_bytes"] > 60_000  # type: ignore[operator]
    assert len(figure.details["clients"]) == 3  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: apt install systemd")
def test_units_are_shut_well(tmp_path: Path) -> None:
    assert first_try.units(Scale(0.05, 0, tmp_path)).met


@pytest.mark.slow
def test_after_pip_install_one_command_runs_a_demo_that_listens_on_loopback_alone(tmp_path: Path) -> None:
    figure = first_try.quickstart(Scale(0.2, 0, tmp_path))
    assert "off loopback: nothing" in figure.text  # how long it takes is no matter of a busy machine's tests
    assert figure.details["listens"] == ["127.0.0.1"]


def said(*data: bytes) -> Client:
    client = Client()
    for number, one in enumerate(data):
        buffer = bytearray(one)
        for first, body in packets(buffer):
            client.take(first, body, number * 0.001)
        assert not buffer
    return client


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (hostile.connect_packet("a" * 129), "client id"),
        (hostile.connect_packet("a", keepalive_s=10), "keep-alive"),
        (hostile.publish_packet("a", bytes(131_073)), "payload"),
        (hostile.publish_packet("/".join("abcdefghi"), b""), "slashes"),
        (hostile.publish_packet("a" * 257, b""), "topic"),
        (b"\x31\x03\x00\x01a", "retained"),
        (b"\x34\x05\x00\x01a\x00\x01", "QoS 2"),
        (b"\x82\x26\x00\x01" + 9 * b"\x00\x01a\x00", "filters"),
        (101 * hostile.publish_packet("a", b""), "publishes a second"),
        (5 * hostile.publish_packet("a", bytes(110_000)), "bytes a second"),
    ],
)
def test_what_a_cloud_would_not_take_is_counted_once(data: bytes, what: str) -> None:
    assert said(hostile.connect_packet("a"), data).violations == {what: 1}


def test_what_it_takes_is_not_counted() -> None:
    client = said(hostile.connect_packet("a"), *100 * [hostile.publish_packet("a/b", bytes(5000))])
    assert client.violations == {}
    assert (client.name, client.published, client.most_publishes) == ("a", 100, 100)


def test_packets_are_found_however_they_come() -> None:
    stream = hostile.connect_packet("a") + hostile.publish_packet("b", bytes(300)) + b"\xc0\x00"
    buffer, found = bytearray(), []
    for byte in stream:
        buffer.append(byte)
        found += list(packets(buffer))
    assert [first for first, _ in found] == [0x10, 0x30, 0xC0]
    assert text(found[1][1], 0) == (b"b", 3)


def test_kinds_are_those_that_are_here() -> None:
    assert hostile.kinds()[0] == "amqtt"
    assert ("mosquitto" in hostile.kinds()) == (brokers.find_mosquitto() is not None)
