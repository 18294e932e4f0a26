"""A hostile client of a fleet's broker: says garbage on its topics, and again what others said before."""

import random
import threading

from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt

_REMEMBERED = 500


class Heckler:
    """Speaks in a thread of its own until it is closed."""

    def __init__(self, port: int, rate: float, seed: int) -> None:
        """Begin; `rate`: messages a second."""
        self._rate, self._random = rate, random.Random(seed)
        self._heard: list[tuple[str, bytes]] = []
        self._said = 0
        self._stop = threading.Event()
        self._transport = Mqtt(Link("127.0.0.1", port, "heckler", retry_s=0.2, max_retry_s=0.5))
        self._transport.start(["edge/default/#"], self._hear, lambda up: None)
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Fall silent, and count what was said."""
        self._stop.set()
        self._thread.join()
        self._transport.close()
        return self._said

    def _hear(self, topic: str, payload: bytes) -> None:
        if len(self._heard) < _REMEMBERED:
            self._heard.append((topic, payload))
        elif self._random.random() < 0.1:
            self._heard[self._random.randrange(_REMEMBERED)] = topic, payload

    def _speak(self) -> None:
        while not self._stop.wait(1 / self._rate) and self._transport.error is None:
            if self._heard:
                topic, payload = self._random.choice(self._heard)
                if self._random.random() < 0.5:
                    payload = self._garble(payload)
                self._said += self._transport.send(topic, payload)

    def _garble(self, payload: bytes) -> bytes:
        """Make garbage: what is well-formed and says something else would be a forgery, seen by its signature alone."""
        if self._random.random() < 0.5:
            return self._random.randbytes(self._random.randrange(200))
        if payload[:1] == b"{" or not payload:
            return payload[: self._random.randrange(1 + len(payload) // 2)]
        data = bytearray(payload)
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(data)
