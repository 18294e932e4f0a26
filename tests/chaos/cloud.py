"""Does a run keep to what a cloud's broker allows (R12)? A proxy that reads MQTT 3.1.1 counts where it does not.

The limits are AWS IoT Core's, of each connection. Those on rates are on what a client publishes; what a broker passes
on to a client beyond its own limits is that broker's affair, and is shown beside them.
"""

import asyncio
import dataclasses
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet
from edge_runtime.data import DataConfig, device_names
from tests.chaos.links import Proxy
from tests.chaos.scorecard import Figure, Row, Scale

MAX_PAYLOAD_BYTES = 131_072
MAX_PUBLISHES_PER_S = 100
MAX_BYTES_PER_S = 524_288
MAX_SLASHES, MAX_TOPIC_BYTES, MAX_FILTERS, MAX_CLIENT_ID_BYTES = 7, 256, 8, 128
KEEPALIVE_S = range(30, 1201)
_CONNECT, _PUBLISH, _SUBSCRIBE = 1, 3, 8


def packets(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole packets off the front of a buffer: the first byte, and what follows the length (MQTT 3.1.1, 2.2)."""
    while True:
        size, at = 0, 1
        while True:
            if at >= len(buffer):
                return
            size |= (buffer[at] & 127) << 7 * (at - 1)
            at += 1
            if not buffer[at - 1] & 128:
                break
        if len(buffer) < at + size:
            return
        first, body = buffer[0], bytes(buffer[at : at + size])
        del buffer[: at + size]
        yield first, body


def text(body: bytes, at: int) -> tuple[bytes, int]:
    """Read a string with its length before it, and where it ends."""
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : end], end


@dataclass
class Client:
    """One connection: what it published, and how it went against the limits."""

    name: str = ""
    violations: Counter[str] = field(default_factory=Counter)
    published: int = 0
    most_publishes: int = 0
    most_bytes: int = 0
    largest_bytes: int = 0
    _second: deque[tuple[float, int]] = field(default_factory=deque)
    _sum: int = 0

    def take(self, first: int, body: bytes, now_s: float) -> None:
        """Look at a packet."""
        kind = first >> 4
        if kind == _CONNECT:
            self._connect(body)
        elif kind == _PUBLISH:
            self._publish(first, body, now_s)
        elif kind == _SUBSCRIBE:
            self._subscribe(body)

    def _connect(self, body: bytes) -> None:
        protocol, at = text(body, 0)
        keepalive_s = int.from_bytes(body[at + 2 : at + 4], "big")
        name, _ = text(body, at + 4)
        self.name = name.decode()
        self._count("protocol", (protocol, body[at]) != (b"MQTT", 4))
        self._count("keep-alive", keepalive_s not in KEEPALIVE_S)
        self._count("client id", not 0 < len(name) <= MAX_CLIENT_ID_BYTES)

    def _publish(self, first: int, body: bytes, now_s: float) -> None:
        topic, at = text(body, 0)
        qos = first >> 1 & 3
        payload_bytes = len(body) - at - (2 if qos else 0)
        self.published += 1
        self.largest_bytes = max(self.largest_bytes, payload_bytes)
        self._count("QoS 2", qos == 2)
        self._count("retained", bool(first & 1))
        self._count("payload", payload_bytes > MAX_PAYLOAD_BYTES)
        self._topic(topic)
        self._rate(len(body), now_s)

    def _subscribe(self, body: bytes) -> None:
        at, filters = 2, 0
        while at < len(body):
            topic, at = text(body, at)
            at += 1
            filters += 1
            self._topic(topic)
        self._count("filters", filters > MAX_FILTERS)

    def _topic(self, topic: bytes) -> None:
        self._count("slashes", topic.count(b"/") > MAX_SLASHES)
        self._count("topic", len(topic) > MAX_TOPIC_BYTES)

    def _rate(self, size_bytes: int, now_s: float) -> None:
        self._second.append((now_s, size_bytes))
        self._sum += size_bytes
        while self._second[0][0] <= now_s - 1.0:
            self._sum -= self._second.popleft()[1]
        self.most_publishes = max(self.most_publishes, len(self._second))
        self.most_bytes = max(self.most_bytes, self._sum)
        self._count("publishes a second", len(self._second) > MAX_PUBLISHES_PER_S)
        self._count("bytes a second", self._sum > MAX_BYTES_PER_S)

    def _count(self, what: str, wrong: bool) -> None:
        if wrong:
            self.violations[what] += 1


class Shim(Proxy):
    """A proxy that looks at every packet of every connection on its way to the broker."""

    def __init__(self, port: int) -> None:
        """Begin to listen."""
        self.clients: list[Client] = []
        super().__init__(port)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str) -> None:
        client, buffer = Client(), bytearray()
        if count == "up_bytes":
            self.clients.append(client)
        while data := await reader.read(65_536):
            if count == "up_bytes":
                buffer += data
                for first, body in packets(buffer):
                    client.take(first, body, self._loop.time())
            writer.write(data)
            await writer.drain()
            setattr(self, count, getattr(self, count) + len(data))
        raise ConnectionResetError


def run(kind: str, folder: Path, model: str, rounds: int, paced: bool) -> dict[str, object]:
    """Let two agents train a model whose values all travel, both ways, through the shim."""
    shutil.rmtree(folder, ignore_errors=True)
    data = ["--data", "fashion-mnist", "--parts", "2", "--samples", "64"] if model == "cnn" else ["--data", "watch"]
    names = device_names(DataConfig())[:2]
    profile = ["--profile", "aws"] if paced else []
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "--rounds", str(rounds), "--model", model]
    command += ["--algorithm", "fedavg", "--runs", str(folder), "--folder", str(folder / "run"), "--json", *profile]
    for setting in ("run.devices=2", "run.evaluate=false", "run.up=lossless", "run.down=lossless"):
        command += ["--set", setting]
    command += ["--set", "algorithm.local-steps=1", "--set", "algorithm.lr=0.05"]
    started = time.monotonic()
    with brokers.start(kind, folder=folder / "broker") as broker:
        shim = Shim(broker.port)
        try:
            through = dataclasses.replace(broker, port=shim.port)
            with fleet.agents(names, through, [*data, *profile], folder, warm=True):
                subprocess.run([*command, "-p", str(shim.port)], check=True, stdout=subprocess.DEVNULL, timeout=900)
        finally:
            shim.close()
    shutil.rmtree(folder)
    clients = [client for client in shim.clients if client.name]
    return {
        "model": model,
        "paced": paced,
        "seconds": round(time.monotonic() - started, 1),
        "violations": dict(sum((client.violations for client in clients), Counter())),
        "published": sum(client.published for client in clients),
        "most_publishes_per_s": max(client.most_publishes for client in clients),
        "most_bytes_per_s": max(client.most_bytes for client in clients),
        "largest_payload_bytes": max(client.largest_bytes for client in clients),
        "bytes": shim.up_bytes + shim.down_bytes,
        "clients": sorted(client.name for client in clients),
    }


def aws(scale: Scale) -> Figure:
    """Run the CNN of 1.66 M parameters with the profile, or at a small scale a model of 34 k."""
    model = "cnn" if scale.part >= 1 and Path("/usr/share/datasets/fashion-mnist").is_dir() else "watch-cnn"
    found = run("auto", scale.folder / "cloud", model, scale.of(2), paced=True)
    count = sum(found["violations"].values())  # type: ignore[attr-defined]
    said = f"{count} violations in {found['published']} publishes of {model}; at most {found['most_publishes_per_s']} "
    said += f"and {int(str(found['most_bytes_per_s'])) / 1000:.0f} kB a second, {found['seconds']} s"
    return Figure(said, count == 0, found)


ROWS = [
    Row(
        "R12",
        "violations of AWS IoT's limits at a proxy, of agents and coordinator with --profile aws",
        "0",
        aws,
        must=False,
    ),
]
