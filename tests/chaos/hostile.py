"""What strangers cost an honest run (R10), what a cloud's limits make of it (R12), and what a first try takes (R24).

Run as a program, this file is the strangers: `python -m tests.chaos.hostile PORT TOPIC SECONDS SOCKETS`.
"""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet
from edge_runtime.data import DataConfig, device_names
from edge_runtime.devices import meter
from edge_runtime.message import Chunk, encode, up_topic
from tests.chaos.scorecard import Figure, Row, Scale

CLAIMED_BYTES = 256 << 20
CLAIMS, SILENT = 200, 300
FLOOD_BYTES_PER_S = 50_000_000
FLOOD_S = 30.0
CALM_S = 12.0
MAX_DELTA_BYTES = 64 << 20
MAX_SLOWER = 2.0
LIGHT = ("run.evaluate=false", "run.devices=3", "algorithm.local-steps=1", "algorithm.lr=0.05")


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + _length(len(body)) + body


def _length(size: int) -> bytes:
    """Write a remaining length (MQTT 3.1.1, section 2.2.3)."""
    out = bytearray()
    while True:
        size, digit = divmod(size, 128)
        out.append(digit | (128 if size else 0))
        if not size:
            return bytes(out)


def connect_packet(name: str, keepalive_s: int = 60) -> bytes:
    """Write a CONNECT without user and password, of a clean session."""
    return _packet(0x10, _field(b"MQTT") + b"\x04\x02" + keepalive_s.to_bytes(2, "big") + _field(name.encode()))


def publish_packet(topic: str, payload: bytes) -> bytes:
    """Write a PUBLISH of QoS 0."""
    return _packet(0x30, _field(topic.encode()) + payload)


CLAIM = b"\xff\xff\xff\x7f"  # 268,435,455 bytes follow


class Stranger:
    """A connection that is opened again whenever the broker closes it."""

    def __init__(self, port: int, greeting: bytes, more: bytes = b"") -> None:
        """`greeting` is said once on each connection, `more` over and over as long as the broker reads."""
        self._port, self._greeting, self._more = port, greeting, memoryview(more)
        self.connections = self.sent = 0
        self._socket: socket.socket | None = None
        self._at = 0
        self._again_s = 0.0

    def open(self) -> None:
        """Connect, a while after the last try."""
        if self._socket is not None or time.monotonic() < self._again_s:
            return
        self._again_s = time.monotonic() + 1.0
        try:
            self._socket = socket.create_connection(("127.0.0.1", self._port), 1.0)
            self._socket.sendall(self._greeting)
            self._socket.setblocking(False)
            self.connections += 1
        except OSError:
            self._close()

    def turn(self) -> None:
        """Send what the broker takes; see whether it has closed."""
        self.open()
        if self._socket is None:
            return
        try:
            if self._more:
                self._at = (self._at + (sent := self._socket.send(self._more[self._at :]))) % len(self._more)
                self.sent += sent
            readable, _, _ = select.select([self._socket], [], [], 0)
            if readable and not self._socket.recv(4096):
                self._close()
        except BlockingIOError:
            pass  # the broker does not read on
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._at = None, 0


def attack(port: int, topic: str, seconds: float, part: float) -> None:
    """Be all strangers at once, for so long."""
    claims, silent = max(4, int(CLAIMS * part)), max(4, int(SILENT * part))
    noise = os.urandom(1 << 16)
    strangers = []
    for index in range(claims):  # in CONNECT, or in PUBLISH, where they are let in
        greeting = b"\x10" + CLAIM if index % 2 else connect_packet(f"claims-{index}") + b"\x30" + CLAIM
        strangers.append(Stranger(port, greeting + _field(topic.encode()), noise))
    strangers += [Stranger(port, connect_packet(f"silent-{i}") if i % 2 else b"") for i in range(silent)]
    stop = threading.Event()
    flooding = threading.Thread(target=flood, args=(port, topic, stop))
    flooding.start()
    for stranger in strangers:
        stranger.open()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for stranger in strangers:
            stranger.turn()
        time.sleep(0.2)
    stop.set()
    flooding.join()
    taken = sum(stranger.sent for stranger in strangers)
    sys.stdout.write(f"{sum(s.connections for s in strangers)} connections, {taken / 1e6:.0f} MB of claims\n")


def flood(port: int, topic: str, stop: threading.Event, bytes_per_s: float = FLOOD_BYTES_PER_S) -> None:
    """Publish so much a second, or as much as is taken: chunks of nothing and noise, on a device's topic and others."""
    noise = os.urandom(60_000)
    chunk = encode(Chunk("00" * 32, 0, noise))
    packets = [publish_packet(topic, chunk), publish_packet(topic, noise), publish_packet("garbage/a", noise)]
    packets += [publish_packet("garbage/" + "x" * 900, noise[:1000]), publish_packet(topic, noise[:100])]
    burst = b"".join(packets)
    since_s, sent = time.monotonic(), 0
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), 5.0) as sock:
                sock.sendall(connect_packet("flood"))
                sock.settimeout(1.0)
                while not stop.is_set():
                    ahead_s = sent / bytes_per_s - (time.monotonic() - since_s)
                    if ahead_s > 0:
                        time.sleep(ahead_s)
                    view = memoryview(burst)
                    while view and not stop.is_set():
                        with contextlib.suppress(TimeoutError):
                            view = view[sock.send(view) :]
                    sent += len(burst)
        except OSError:
            time.sleep(0.2)
    took_s = time.monotonic() - since_s
    sys.stdout.write(f"flood: {sent / took_s / 1e6:.1f} MB/s for {took_s:.0f} s\n")


@dataclass
class Watched:
    """A run that is watched: when each round began, and what broker and coordinator took, over time."""

    rounds_s: list[float] = field(default_factory=list)
    rss: list[tuple[float, int]] = field(default_factory=list)

    def longest_s(self, since_s: float, until_s: float) -> float:
        """Give the length of the longest round that falls in a span, at least in part; the last may not have ended."""
        marks = [*self.rounds_s, time.monotonic()]
        return max(end - begin for begin, end in pairwise(marks) if end > since_s and begin < until_s)

    def mean_s(self, since_s: float, until_s: float) -> float:
        """Say what a round took in a span, on average: a median would hide that for most of it there was none."""
        return (until_s - since_s) / max(1, sum(since_s < mark <= until_s for mark in self.rounds_s))

    def rss_bytes(self, since_s: float, until_s: float) -> list[int]:
        """Give what both took together in a span."""
        return [rss for at_s, rss in self.rss if since_s <= at_s <= until_s]


@contextlib.contextmanager
def honest_run(kind: str, folder: Path) -> Iterator[tuple[brokers.Broker, list[str], Watched, list[int]]]:
    """Let three agents train, round after round, with a coordinator of its own; all of them processes."""
    names = device_names(DataConfig())[:3]
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "--rounds", "100000", "--model"]
    command += ["watch-mlp", "--algorithm", "fedavg", "--runs", str(folder), "--folder", str(folder / "run")]
    for setting in LIGHT:
        command += ["--set", setting]
    watched = Watched()
    with (
        brokers.start(kind, folder=folder / "broker") as broker,
        fleet.agents(names, broker, ["--data", "watch", "--labels-per-class", "3"], folder, warm=True),
        subprocess.Popen([*command, "-p", str(broker.port)], stderr=subprocess.PIPE, text=True) as coordinator,
    ):
        stop = threading.Event()
        pids = [broker.process.pid, coordinator.pid]
        threads = [
            threading.Thread(target=_read_rounds, args=(coordinator, watched)),
            threading.Thread(target=_read_rss, args=(pids, watched, stop)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield broker, names, watched, pids
            broker.check()
            if coordinator.poll() is not None:
                raise AssertionError(f"the coordinator ended with {coordinator.returncode}")
        finally:
            stop.set()
            coordinator.kill()
            for thread in threads:
                thread.join()


def _read_rounds(coordinator: "subprocess.Popen[str]", watched: Watched) -> None:
    assert coordinator.stderr is not None
    for line in coordinator.stderr:
        if "round " in line:
            watched.rounds_s.append(time.monotonic())


def _read_rss(pids: list[int], watched: Watched, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        with contextlib.suppress(OSError, ValueError):
            watched.rss.append((time.monotonic(), sum(meter.memory(pid).rss_bytes for pid in pids)))


def besieged(kind: str, scale: Scale) -> dict[str, object]:
    """Let strangers in on an honest run, and compare with the time before and after."""
    folder = scale.folder / f"hostile-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    calm_s, flood_s = max(4.0, CALM_S * scale.part), max(4.0, FLOOD_S * scale.part)
    with honest_run(kind, folder) as (broker, names, watched, _):
        deadline = time.monotonic() + 60
        while len(watched.rounds_s) < 5:
            if time.monotonic() > deadline:
                raise AssertionError("no round was finished in a minute")
            time.sleep(0.1)
        start = time.monotonic()
        time.sleep(calm_s)
        attacked = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "tests.chaos.hostile",
            str(broker.port),
            up_topic("default", names[0]),
        ]
        command += [str(flood_s), str(scale.part)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ended = time.monotonic()
        time.sleep(calm_s / 2)
        over = time.monotonic()
    calm_round_s, disturbed_round_s = watched.mean_s(start, attacked), watched.mean_s(attacked, ended)
    rounds_after = sum(ended < mark for mark in watched.rounds_s)
    before, during = watched.rss_bytes(start, attacked), watched.rss_bytes(attacked, over)
    shutil.rmtree(folder)
    return {
        "broker": kind,
        "rss_delta_bytes": max(during) - max(before),
        "calm_round_s": calm_round_s,
        "disturbed_round_s": disturbed_round_s,
        "longest_disturbed_round_s": watched.longest_s(attacked, ended),
        "rounds_after": rounds_after,
        "slower": disturbed_round_s / calm_round_s,
        "strangers": done.stdout.split("\n")[:-1],
    }


def kinds() -> list[str]:
    """Name the brokers that there are here."""
    return ["amqtt", *(["mosquitto"] if brokers.find_mosquitto() else [])]


def hostile(scale: Scale) -> Figure:
    """Besiege each broker."""
    found = [besieged(kind, scale) for kind in kinds()]
    text = "; ".join(
        f"{one['broker']}: {one['rss_delta_bytes'] / 1048576:+.0f} MB, {one['slower']:.2f}x (mean; longest "
        f"{one['longest_disturbed_round_s']:.1f} s)"
        for one in found
    )
    met = all(one["rss_delta_bytes"] <= MAX_DELTA_BYTES and one["slower"] <= MAX_SLOWER for one in found)
    return Figure(text, met, {"brokers": found})


ROWS = [
    Row(
        "R10",
        "200 sockets claiming 256 MB, 300 silent, a flood of 50 MB/s: memory of coordinator + broker, time of rounds",
        "<= 64 MB; <= 2x",
        hostile,
    ),
]

if __name__ == "__main__":
    attack(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
