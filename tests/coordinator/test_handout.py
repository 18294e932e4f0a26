"""What follows a task unasked."""

import hashlib

from edge_runtime.coordinator.handout import Handout, Makers
from edge_runtime.message import SHARED_BYTES, Chunk, Message, Need, Task

SMALL, LARGE = bytes(range(256)) * 24, bytes(SHARED_BYTES)


class Network:
    """Takes `most` messages, and writes them down."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.carried: list[tuple[str, str, int]] = []

    def send(self, device: str, message: Message) -> bool:
        assert isinstance(message, Chunk)
        self.carried.append((device, message.digest, message.index))
        return True

    def greet(self, device: str, stranger: bytes, message: Message) -> bool:
        raise AssertionError("nobody speaks out of turn")

    def share(self, chunk: Chunk) -> bool:
        return self.send("", chunk)

    def room(self) -> bool:
        return len(self.carried) < self.most


def handout(down: bytes = SMALL) -> Handout:
    return Handout(Makers(lambda device: b"set-up", lambda device, first: down, lambda digest: None), 4_096)


def chunks(devices: str, data: bytes = SMALL) -> list[tuple[str, str, int]]:
    digest = hashlib.sha256(data).hexdigest()
    return [(device, digest, index) for index in range(2) for device in devices]


def test_a_small_down_follows_its_task_once() -> None:
    out, network = handout(), Network()
    for device in "ab":
        out.name(device, False, False)
        assert out.follow(device) == 2
    out.pump(network, 0.0)
    assert network.carried == chunks("ab")
    out.name("a", False, False)
    assert out.follow("a") == 0, "a task that is repeated"
    out.close()
    out.name("a", False, False)
    assert out.follow("a") == 2, "the next round"


def test_what_follows_goes_no_faster_than_the_network_takes_it() -> None:
    out, network = handout(), Network(most=3)
    for device in "abcd":
        out.name(device, False, False)
        out.follow(device)
    out.pump(network, 0.0)
    assert network.carried == chunks("abcd")[:3]
    network.most = 100
    out.pump(network, 0.0)
    assert network.carried == chunks("abcd")


def test_a_large_down_is_asked_for_and_so_is_that_of_a_device_that_must_have_the_set_up_first() -> None:
    out, network = handout(LARGE), Network()
    out.name("a", False, False)
    assert out.follow("a") == 0
    new = handout()
    new.name("a", True, False)
    assert new.follow("a") == 0
    out.pump(network, 0.0)
    new.pump(network, 0.0)
    assert network.carried == []


def test_who_lost_what_followed_asks_for_it() -> None:
    out, network = handout(), Network()
    named = out.name("a", False, False)
    out.follow("a")
    out.pump(network, 0.0)
    task = Task("run", 2, 0, "train", "ab" * 32, named.set_up, named.down)
    out.repeat("a", task)
    out.want("a", Need(named.down.digest, (1,)))
    out.pump(network, 0.0)
    assert network.carried == [*chunks("a"), chunks("a")[1]]
