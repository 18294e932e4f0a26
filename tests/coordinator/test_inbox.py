"""The coordinator's queue: bounded, and with a share for every device."""

import time

from edge_runtime.coordinator.serve import Inbox
from edge_runtime.message import up_topic
from edge_runtime.transport import Loopback, LoopbackEnd


def an_inbox() -> tuple[Inbox, Loopback, LoopbackEnd]:
    bus = Loopback()
    inbox = Inbox(bus.end(), "f")
    inbox.start()
    assert inbox.take(0.0) is True  # the link is up
    return inbox, bus, bus.end()


def say(bus: Loopback, end: LoopbackEnd, device: str, *payloads: bytes) -> None:
    for payload in payloads:
        end.send(up_topic("f", device), payload)
    while bus.step():
        pass


def taken(inbox: Inbox) -> list[tuple[str, bytes]]:
    found = []
    while isinstance(event := inbox.take(0.0), tuple):
        found.append((event[0].rsplit("/", 1)[-1], event[1]))
    return found


def test_devices_take_turns_and_each_is_heard_in_order() -> None:
    inbox, bus, end = an_inbox()
    say(bus, end, "loud", b"1", b"2", b"3")
    say(bus, end, "quiet", b"4")
    assert taken(inbox) == [("loud", b"1"), ("quiet", b"4"), ("loud", b"2"), ("loud", b"3")]


def test_a_device_that_floods_the_queue_loses_its_own_messages_alone() -> None:
    inbox, bus, end = an_inbox()
    say(bus, end, "loud", *(bytes(60_000) for _ in range(2000)))
    say(bus, end, "loud", *(b"" for _ in range(2000)))
    say(bus, end, "quiet", *(b"%d" % number for number in range(50)))
    found = taken(inbox)
    assert [data for device, data in found if device == "quiet"] == [b"%d" % number for number in range(50)]
    assert sum(len(data) for _, data in found) < 2_200_000
    assert len(found) <= 128 + 50
    assert inbox.lost == 4000 + 50 - len(found)
    say(bus, end, "loud", b"again")
    assert taken(inbox) == [("loud", b"again")]


def test_many_names_do_not_make_the_queue_grow() -> None:
    inbox, bus, end = an_inbox()
    for number in range(100):
        say(bus, end, f"device-{number}", *(bytes(60_000) for _ in range(20)))
    found = taken(inbox)
    assert sum(len(data) for _, data in found) <= 33_554_432
    assert inbox._bytes.total() == 0


def test_whether_the_link_is_up_comes_first_and_waiting_ends_in_time() -> None:
    inbox, bus, end = an_inbox()
    say(bus, end, "a", b"1")
    inbox._connected(False)
    assert inbox.take(0.0) is False
    assert taken(inbox) == [("a", b"1")]
    started = time.monotonic()
    assert inbox.take(0.1) is None
    assert 0.09 < time.monotonic() - started < 5.0
