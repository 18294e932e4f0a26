"""The waist for bytes: what agent and coordinator ask of a network.

A transport is a lossy, duplicating, reordering datagram bus with topics. Nothing above it relies on delivery; the
protocol (`protocol.py`, `coordinator/rounds.py`) repeats what matters. `Loopback` is here, `Mqtt` in `mqtt.py`.
"""

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

    def send(self, topic: str, payload: bytes) -> bool:
        """Hand one message over; False if it was dropped because the link is down or its queue is full."""
        ...

    def traffic(self) -> Traffic:
        """Count what crossed the socket so far."""
        ...

    def close(self) -> None:
        """Disconnect within a second or so; never blocks on undelivered messages."""
        ...
