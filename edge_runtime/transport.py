"""The waist for bytes: what agent and coordinator ask of a network.

A transport is a lossy, duplicating, reordering datagram bus with topics. Nothing above it relies on delivery; the
protocol (`protocol.py`, `coordinator/rounds.py`) repeats what matters. `Loopback` is here, `Mqtt` in `mqtt.py`.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Receive = Callable[[str, bytes], None]
Connected = Callable[[bool], None]


@dataclass(frozen=True)
class Traffic:
    """Bytes that crossed the socket since the transport was started, all framing included."""

    up_bytes: int
    down_bytes: int


class Transport(Protocol):
    """A connection to a bus of topics."""

    def start(self, topics: Sequence[str], receive: Receive, connected: Connected) -> None:
        """Connect, subscribe to `topics` (also after every reconnection), and return once both are done.

        `receive(topic, payload)` and `connected(up)` are called from the transport's own thread: they must not block
        and what they raise is logged, never fatal.

        Raises:
            LinkError: no connection, or it was refused, with the address and what to do.
        """
        ...

    def listen(self, topics: Sequence[str]) -> None:
        """Subscribe to more topics, after `start` and after every reconnection. What was said before is missed."""
        ...

    def unlisten(self, topics: Sequence[str]) -> None:
        """Subscribe to these no longer; what is on its way may still come."""
        ...

    def send(self, topic: str, payload: bytes) -> bool:
        """Hand one message over; False if it was dropped because the link is down or its queue is full."""
        ...

    def unsent_bytes(self) -> int:
        """Count the bytes that were handed over and wait for the socket, for those who pace themselves by it."""
        ...

    def traffic(self) -> Traffic:
        """Count what crossed the socket so far."""
        ...

    def close(self) -> None:
        """Disconnect within a second or so; never blocks on undelivered messages."""
        ...


@dataclass(frozen=True)
class Faults:
    """What a simulated network does to messages: probabilities, and the longest delay (longer: more reordering)."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.0


CALM = Faults()
"""Messages arrive at once, once, and in order."""


class Loopback:
    """A bus in memory with a clock of its own: deterministic, given its seed.

    Everything that happens is an event at a virtual time; `step` runs the next one. With no faults, messages arrive in
    the order in which they were sent.
    """

    def __init__(self, seed: int = 0, faults: Faults = CALM) -> None:
        self.now_s = 0.0
        self._faults = faults
        self._random = random.Random(seed)  # noqa: S311  # repeatable on purpose
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._ends: list[LoopbackEnd] = []
        self._listening: dict[str, list[LoopbackEnd]] = {}

    def end(self) -> "LoopbackEnd":
        """Make one more participant."""
        end = LoopbackEnd(self)
        self._ends.append(end)
        return end

    def later(self, delay_s: float, event: Callable[[], None]) -> None:
        """Run `event` after `delay_s` of virtual time."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._count), event))

    def step(self) -> bool:
        """Run the next event; False if there is none."""
        if not self._events:
            return False
        self.now_s, _, event = heapq.heappop(self._events)
        event()
        return True

    def post(self, topic: str, payload: bytes) -> None:
        """Bring a message to all who listen to its topic, as the faults will have it."""
        for end in self._listeners(topic):
            if self._random.random() < self._faults.drop:
                continue
            for _ in range(2 if self._random.random() < self._faults.duplicate else 1):
                delay_s = self._random.uniform(0.0, self._faults.delay_s) if self._faults.delay_s else 0.0
                self.later(delay_s, lambda end=end: end.deliver(topic, payload))  # type: ignore[misc]

    def subscriptions_changed(self) -> None:
        """Look anew who listens to what."""
        self._listening.clear()

    def _listeners(self, topic: str) -> "list[LoopbackEnd]":
        if topic not in self._listening:  # found once: with hundreds of devices, looking takes longer than telling
            self._listening[topic] = [
                end for end in self._ends if any(_matches(pattern, topic) for pattern in end.topics)
            ]
        return self._listening[topic]


class LoopbackEnd:
    """One participant's transport on a `Loopback`. It counts payload bytes: there is no socket."""

    def __init__(self, bus: Loopback) -> None:
        self.topics: Sequence[str] = ()
        self._bus = bus
        self._receive: Receive = lambda topic, payload: None
        self._up_bytes = self._down_bytes = 0

    def start(self, topics: Sequence[str], receive: Receive, connected: Connected) -> None:
        """Listen to `topics`."""
        self.topics, self._receive = [*topics, *self.topics], receive
        self._bus.subscriptions_changed()
        connected(True)

    def listen(self, topics: Sequence[str]) -> None:
        """Listen to more topics."""
        self.topics = [*self.topics, *(topic for topic in topics if topic not in self.topics)]
        self._bus.subscriptions_changed()

    def unlisten(self, topics: Sequence[str]) -> None:
        """Listen to fewer topics."""
        self.topics = [topic for topic in self.topics if topic not in topics]
        self._bus.subscriptions_changed()

    def unsent_bytes(self) -> int:
        """Count nothing: a message is on its way at once."""
        return 0

    def send(self, topic: str, payload: bytes) -> bool:
        """Post a message."""
        self._up_bytes += len(payload)
        self._bus.post(topic, payload)
        return True

    def deliver(self, topic: str, payload: bytes) -> None:
        """Take a message from the bus."""
        self._down_bytes += len(payload)
        self._receive(topic, payload)

    def traffic(self) -> Traffic:
        """Count payload bytes."""
        return Traffic(self._up_bytes, self._down_bytes)

    def close(self) -> None:
        """Listen no more."""
        self.topics, self._receive = (), lambda topic, payload: None
        self._bus.subscriptions_changed()


def _matches(pattern: str, topic: str) -> bool:
    """Match a topic against a pattern in which a level may be `+`."""
    if "+" not in pattern:
        return pattern == topic
    wanted, levels = pattern.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))
