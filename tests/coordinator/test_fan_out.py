"""Fifty devices fetch the same five megabytes, on a bus in memory: what it costs the coordinator, and each device."""

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, wire
from edge_runtime.agent import TopicTuner, hear
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig
from edge_runtime.coordinator.serve import TopicPost
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Pump
from edge_runtime.device import Device
from edge_runtime.message import Blob, Chunk, Hello, all_topic, decode, down_topic, encode, up_topic
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.store import MemoryStore
from edge_runtime.transport import CALM, Faults, Loopback
from edge_runtime.tree import Layout

SIZE = 5_000_000
MODEL = np.random.default_rng(1).integers(0, 0x7F000000, SIZE // 4, np.uint32).view(np.float32)


@dataclass(frozen=True)
class Down:
    round: int
    values: np.ndarray[Any, np.dtype[np.float32]]
    odd: int


class Server:
    """Gives everybody the same, but for one device."""

    def __init__(self, config: Any, layout: Layout, initial: Any, devices: Any, seed: int) -> None:
        pass

    round = 0

    def down(self, device: str, first: bool) -> Down:
        return Down(0, MODEL.copy(), int(device == "odd"))

    def state(self) -> dict[str, Any]:
        return {}


class Sink(MemoryStore):
    """Counts chunks and throws them away."""

    def keep(self, blob: Blob, chunk: Chunk) -> None:
        super().keep(blob, Chunk(chunk.digest, chunk.index, b""))

    def check(self, blob: Blob) -> bool:
        complete = len(self.partials.pop(blob)) == blob.chunks
        self.blobs[blob.digest] = b""
        return complete


class Scene:
    """One task for every device, of which each only fetches what it takes."""

    def __init__(self, names: list[str], folder: Path, faults: Faults = CALM) -> None:
        self.bus, self.training = Loopback(1, faults), set[str]()
        self.heard = dict.fromkeys(names, 0)
        """Bytes of chunks that came to each device."""
        self.carried = {"all": 0, "down": 0}
        """Bytes of chunks that the coordinator sent."""
        toy = algorithm.Algorithm("toy", dict, Down, Down, object, Server)  # type: ignore[arg-type]
        layout = Layout(("w",), ((len(MODEL),),))
        config = RunConfig(rounds=1, devices=len(names), evaluate=False)
        run = Run(config, toy, None, Setup("toy", {}, ModelCard("own:toy", layout), 1), MODEL)
        end = self.bus.end()
        self.journal = Journal(folder, durable=False)
        post = Counted(TopicPost("f", end), self.carried)
        coordinator = Coordinator(run.plan("run", 1), run, self.journal, post)
        pump = Pump(self.bus, coordinator)

        def receive(topic: str, payload: bytes) -> None:
            coordinator.receive(topic, payload)
            pump()

        end.start([up_topic("f", "+")], receive, lambda up: None)
        coordinator.start()
        self.every(coordinator.tick)
        for name in names:
            self.device(name)

    def device(self, name: str) -> None:
        end = self.bus.end()
        trainer: Any = SimpleNamespace(start=lambda task: self.training.add(name))
        send = lambda message: end.send(up_topic("f", name), encode(message))  # noqa: E731
        device = Device(Sink(), trainer, send, Hello("boot"), lambda run: {}, tuner=TopicTuner("f", end))

        def receive(topic: str, payload: bytes) -> None:
            message = decode(payload)
            self.heard[name] += len(message.data) if isinstance(message, Chunk) else 0
            if topic == down_topic("f", name):
                device.receive(payload)
            else:
                hear(device, topic, payload)

        end.start([down_topic("f", name)], receive, lambda up: None)
        self.bus.later(0.001 * len(self.heard), device.start)
        self.every(device.tick)

    def every(self, event: Any) -> None:
        def again() -> None:
            event()
            self.bus.later(2.0, again)

        self.bus.later(2.0, again)

    def play(self) -> None:
        while len(self.training) < len(self.heard):
            assert self.bus.step()
            assert self.bus.now_s < 600.0, "stuck"
        self.journal.close()


class Counted:
    """A way out that counts the bytes of chunks."""

    def __init__(self, post: TopicPost, carried: dict[str, int]) -> None:
        self._post, self._carried = post, carried
        self.room = post.room

    def send(self, device: str, message: Any) -> bool:
        self._carried["down"] += len(message.data) if isinstance(message, Chunk) else 0
        return self._post.send(device, message)

    def share(self, chunk: Chunk) -> bool:
        self._carried["all"] += len(chunk.data)
        return self._post.share(chunk)


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the sizes of all Downs that are encoded."""
    sizes, encode_once = list[int](), wire.encode_down

    def counted(*arguments: Any) -> bytes:
        data = encode_once(*arguments)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(wire, "encode_down", counted)
    return sizes


def names(count: int) -> list[str]:
    return [f"d{number:02}" for number in range(count)]


def test_fifty_devices_cost_the_coordinator_one_encoding_and_one_copy(tmp_path: Path, encodes: list[int]) -> None:
    scene = Scene(names(50), tmp_path)
    scene.play()
    (size,) = encodes
    assert size > 0.9 * SIZE
    assert scene.carried["all"] == size
    assert scene.carried["down"] < 50 * 8192  # the run's description, to each by itself
    assert all(size < heard < size + 8192 for heard in scene.heard.values())


def test_memory_does_not_grow_with_the_devices_that_fetch(tmp_path: Path) -> None:
    peaks = []
    for count in (5, 50):
        scene = Scene(names(count), tmp_path / str(count))
        tracemalloc.start()
        scene.play()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.3 * SIZE, f"{peaks[0]} bytes for 5 devices, {peaks[1]} for 50"


def test_a_device_whose_payload_is_its_own_is_sent_it_by_itself(tmp_path: Path, encodes: list[int]) -> None:
    scene = Scene([*names(4), "odd"], tmp_path)
    scene.play()
    assert len(encodes) == 2
    assert scene.carried["all"] == encodes[0]
    assert encodes[0] < scene.carried["down"] < encodes[0] + 5 * 8192
    assert max(scene.heard.values()) < encodes[0] + 8192


def test_where_one_message_in_twenty_is_lost_the_repairs_are_a_fraction(tmp_path: Path, encodes: list[int]) -> None:
    scene = Scene(names(50), tmp_path, Faults(drop=0.05))
    scene.play()
    (size,) = encodes
    assert scene.carried["all"] < 1.5 * size
    # A twentieth of all is lost; and a tenth of the devices comes late, because its first word or its task was.
    assert sum(scene.carried.values()) < 0.3 * 50 * size
    assert max(scene.heard.values()) < 1.5 * size


def test_topics_of_blobs_have_few_levels() -> None:
    assert all_topic("f", "0123456789abcdef" * 4) == "edge/f/all/0123456789abcdef"
