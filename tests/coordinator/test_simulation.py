"""The protocol on a simulated network that drops, doubles and reorders, with crashes at every durable boundary.

Real cores, real drivers, real messages, the real journal (in memory) and a toy algorithm whose result depends on every
update being counted exactly once and on every device keeping exactly the state of its last applied update.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edge_runtime import algorithm, wire
from edge_runtime.agent import TopicTuner, hear
from edge_runtime.compression import codec
from edge_runtime.coordinator.database import Database
from edge_runtime.coordinator.gate import Sealed
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig
from edge_runtime.coordinator.serve import TopicPost
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.device import Device
from edge_runtime.message import Chunk, Hello, decode, down_topic, encode, up_topic
from edge_runtime.protocol import DeviceCore, Remember
from edge_runtime.seal import DeviceSeal, Key, Plain, PublicKey
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import Faults, Loopback
from edge_runtime.tree import Layout

DEVICES = ("a", "b", "c")
ROUNDS = 3
FAULTS = Faults(drop=0.15, duplicate=0.1, delay_s=1.5)
LAYOUT = Layout(("w",), ((2,),))
LONG = Layout(("w",), ((6000,),))
"""Its payloads are shared, and go in 20 chunks of 1,024 bytes: more than one window."""

PAIRS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("", *DEVICES)}
KEYS = {name: Key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())) for name, key in PAIRS.items()}
PUBLIC = {name: PublicKey(key.public_key()) for name, key in PAIRS.items()}


class Members:
    """The devices, all enrolled."""

    def key_of(self, device: str) -> bytes | None:
        return PAIRS[device].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Down:
    round: int
    values: np.ndarray[Any, np.dtype[np.float32]]
    seen: int
    """How often this device was absorbed, as the coordinator remembers it."""


@dataclass(frozen=True)
class Up:
    round: int
    value: int
    seen: int
    rest: np.ndarray[Any, np.dtype[np.float32]]


class Client:
    """Counts its applied rounds, and sends a number that depends on them."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self.times = 0 if state is None else state["times"]

    def round(self, down: Down, device: str) -> Up:
        assert down.seen == self.times, "device and coordinator disagree about the device's state"
        self.times += 1
        value = (self.times * 31 + ord(device) * 7 + int(down.values[0])) % 9973
        return Up(down.round, value, self.times, noise(value, len(down.values) - 2))


def noise(seed: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).random(size, np.float32) if size else np.empty(0, np.float32)


class Server:
    """Adds numbers up, and remembers of each device how often it was absorbed (with the round it takes effect from)."""

    def __init__(self, config: Any, layout: Layout, initial: Any, devices: Any, seed: int) -> None:
        self.round, self.model, self.sum, self.devices = 0, initial.copy(), 0, devices

    def down(self, device: str, first: bool) -> Down:
        return Down(self.round, self.model.copy(), int.from_bytes(self.devices.get(device, b""), "big"))

    def absorb(self, device: str, up: Up) -> None:
        self.devices[device] = up.seen.to_bytes(2, "big")
        self.sum += up.value

    def close(self) -> None:
        self.round += 1
        self.model[:2] = (3 * self.model[0] + self.sum) % 9973, self.round
        self.model[2:] = noise(self.round, len(self.model) - 2)
        self.sum = 0

    def shared(self) -> Any:
        return self.model[:2]

    def state(self) -> dict[str, Any]:
        return {"round": self.round, "model": self.model}

    def restore(self, state: Any) -> None:
        self.round, self.model = state["round"], state["model"].copy()


TOY = algorithm.Algorithm("toy", dict, Down, Up, Client, Server)  # type: ignore[arg-type]


class FilesInMemory:
    """What lies beside the database, on a disk that outlives the coordinator's crashes."""

    def __init__(self, disk: SimpleNamespace) -> None:
        self._disk = disk

    def reserve(self, size_bytes: int) -> None:
        """Memory is never full."""

    def check_room(self) -> None:
        """Memory is never full."""

    def down(self, digest: str) -> bytes | None:
        data: bytes | None = self._disk.downs.get(digest)
        return data

    def write_down(self, digest: str, data: bytes) -> None:
        self._disk.downs[digest] = data

    def drop_down(self, digest: str) -> None:
        self._disk.downs.pop(digest, None)

    def partial(self, device: str, blob: Any) -> Any:
        return set(self._disk.spool.get(device, {}).get(blob, {}))

    def keep(self, device: str, blob: Any, chunk: Any) -> None:
        chunks = self._disk.spool.get(device, {}).get(blob, {})
        self._disk.spool[device] = {blob: {**chunks, chunk.index: chunk.data}}

    def take(self, device: str, blob: Any) -> bytes | None:
        chunks = self._disk.spool.get(device, {}).get(blob, {})
        data = b"".join(chunks[index] for index in sorted(chunks))
        return data if hashlib.sha256(data).hexdigest() == blob.digest else None

    def drop(self, device: str) -> None:
        self._disk.spool.pop(device, None)

    def clear(self) -> None:
        self._disk.spool.clear()
        self._disk.downs.clear()

    def write_checkpoint(self, round_: int, data: bytes) -> None:
        self._disk.checkpoints[round_] = data
        self._disk.boundary()

    def checkpoint(self, round_: int, digest: str) -> bytes:
        data: bytes = self._disk.checkpoints[round_]
        assert hashlib.sha256(data).hexdigest() == digest
        return data

    def drop_checkpoints(self, but: int) -> None:
        self._disk.checkpoints = {but: self._disk.checkpoints[but]}


class DiskOfMemory(Journal):
    """The real journal on an in-memory database that outlives the coordinator's crashes."""

    def __init__(self, disk: SimpleNamespace) -> None:
        disk.database.rollback()
        self._disk = disk
        files: Any = FilesInMemory(disk)
        self._take(Path("memory"), files, disk.database)

    def accept(self, device: str, offer: Any, payload: bytes, number: int, held: str = "") -> None:
        super().accept(device, offer, payload, number, held)
        self._disk.accepted.append(wire.decode(payload, Up, LONG).value)


class Crash(Exception):
    """The process died here."""


class Fragile:
    """Lets each call of an object crash before or after it has taken effect."""

    def __init__(self, thing: Any, names: set[str], boundary: Callable[[], None]) -> None:
        self._thing, self._names, self._boundary = thing, names, boundary

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if name not in self._names:
            return value

        def call(*arguments: Any) -> Any:
            self._boundary()
            result = value(*arguments)
            self._boundary()
            return result

        return call


class Watched:
    """The coordinator's way out: each message may be the last before a crash."""

    def __init__(self, post: TopicPost, boundary: Callable[[], None], carried: "Counter[str]") -> None:
        self._post, self._boundary, self._carried = post, boundary, carried
        self.room, self.greet = post.room, post.greet

    def send(self, device: str, message: Any) -> bool:
        self._boundary()
        self._carried["down"] += len(message.data) if isinstance(message, Chunk) else 0
        return self._post.send(device, message)

    def share(self, chunk: Chunk) -> bool:
        self._boundary()
        self._carried["all"] += len(chunk.data)
        return self._post.share(chunk)


class World:
    """A coordinator and its devices on a bus, with crashes."""

    def __init__(
        self,
        seed: int,
        faults: Faults,
        crash: float,
        core: type[DeviceCore],
        journal: type[DiskOfMemory],
        buffer: int,
        layout: Layout = LAYOUT,
        sealed: bool = False,
    ) -> None:
        self.buffer, self.layout, self.sealed = buffer, layout, sealed
        self.carried: Counter[str] = Counter()
        """Bytes of messages by the kind of their topic, as sent."""
        self.random = random.Random(seed)
        self.bus = Loopback(seed, faults)
        self.crash, self.core_kind, self.journal_kind = crash, core, journal
        database = Database(":memory:", durable=False)
        self.disk = SimpleNamespace(
            database=database, spool={}, checkpoints={}, downs={}, accepted=[], boundary=self.boundary
        )
        self.stores = {device: MemoryStore() for device in DEVICES}
        self.coordinator: Coordinator | None = None
        self.devices: dict[str, Device] = {}
        self.births = dict.fromkeys((*DEVICES, ""), 0)
        self.ends = {name: self.bus.end() for name in ("", *DEVICES)}
        for name in ("", *DEVICES):
            self.boot(name)

    def boundary(self) -> None:
        if self.random.random() < self.crash:
            raise Crash

    def guard(self, name: str, event: Callable[[], None]) -> None:
        """Run what happens in a process; if it crashes there, start it again a little later."""
        try:
            event()
        except Crash:
            self.births[name] += 1
            self.ends[name].close()
            self.devices.pop(name, None)
            if not name:
                self.coordinator = None
            self.bus.later(self.random.uniform(0.1, 3.0), lambda: self.boot(name))

    def boot(self, name: str) -> None:
        self.guard(name, lambda: self.boot_device(name) if name else self.boot_coordinator())

    def boot_coordinator(self) -> None:
        journal = self.journal_kind(self.disk)
        end = self.ends[""]
        gate = Sealed("f", KEYS[""], Members()) if self.sealed else None
        post = Watched(TopicPost("f", end, gate), self.boundary, self.carried)
        names = {"accept", "open_round", "close_round", "close_versions", "assign", "set", "reject"}
        description = Setup("toy", {}, ModelCard("own:toy", self.layout), 1)
        config = RunConfig(rounds=ROUNDS, devices=3, evaluate=False, chunk_bytes=1024)
        run = Run(config, TOY, None, description, np.zeros(self.layout.size, np.float32))
        plan = replace(
            run.plan("run", journal.next_epoch()), asynchronous=bool(self.buffer), buffer=max(1, self.buffer)
        )
        fragile: Any = Fragile(journal, names, self.boundary)
        coordinator = Coordinator(plan, run, fragile, post, gate)
        self.coordinator = coordinator
        birth = self.births[""]

        def pump() -> None:
            if birth == self.births[""]:
                due_s = coordinator.pump(self.bus.now_s)
                if due_s is not None:
                    self.bus.later(due_s - self.bus.now_s, lambda: self.guard("", pump))

        def receive(topic: str, payload: bytes) -> None:
            coordinator.receive(topic, payload)
            pump()

        end.start([up_topic("f", "+")], lambda t, p: self.guard("", lambda: receive(t, p)), lambda up: None)
        coordinator.start()
        self.tick("", coordinator.tick, birth)

    def boot_device(self, name: str) -> None:
        end = self.ends[name]
        birth = self.births[name]

        seal = DeviceSeal("f", name, KEYS[name], PUBLIC[""]) if self.sealed else Plain()

        def send(message: Any) -> bool:
            self.boundary()
            return end.send(up_topic("f", name), seal.seal(message))

        def train(task: Any) -> None:
            self.bus.later(self.random.uniform(0.1, 2.0), lambda: self.finish(name, birth, task))

        fragile: Any = Fragile(self.stores[name], {"remember", "check", "put"}, self.boundary)
        trainer: Any = SimpleNamespace(start=train)
        hello, tuner = Hello(f"{name}{birth}"), TopicTuner("f", end)
        device = Device(fragile, trainer, send, hello, lambda run: {}, tuner=tuner, envelope=seal)
        device.core = self.core_kind(fragile.load(), fragile.held(), Hello(f"{name}{birth}"))
        self.devices[name] = device
        own = down_topic("f", name)

        def receive(topic: str, payload: bytes) -> None:
            self.guard(name, lambda: device.receive(payload) if topic == own else hear(device, topic, payload))

        end.start([own], receive, lambda up: None)
        device.start()
        self.tick(name, device.tick, birth)

    def finish(self, name: str, birth: int, task: Any) -> None:
        if birth != self.births[name]:
            return
        device, store = self.devices[name], self.stores[name]
        if task.down.digest not in store.blobs:
            return  # the task was overtaken by another
        state = store.state(task.base)
        client = Client(None if state is None else codec.decode_state(state, 4))
        up = client.round(wire.decode(store.read(task.down.digest), Down, LONG), name)
        outcome = Outcome(wire.encode(up), codec.encode_state({"times": client.times}))
        self.guard(name, lambda: device.finished(task, outcome))

    def tick(self, name: str, event: Callable[[], None], birth: int) -> None:
        def again() -> None:
            if birth == self.births[name]:
                self.guard(name, event)
                self.tick(name, event, birth)

        self.bus.later(2.0, again)

    def run(self) -> tuple[float, ...]:
        """Go on until the run is finished and every device knows the fate of its last update."""
        while self.bus.now_s < 2000.0:
            self.bus.step()
            done = self.coordinator and self.coordinator.core.progress.finished
            if done and all(store.memory.pending is None for store in self.stores.values()):
                model = self.coordinator.server.shared()  # type: ignore[union-attr]
                return (*model.tolist(), *(self.state_of(device) for device in DEVICES))
        return ("stuck",)  # type: ignore[return-value]

    def state_of(self, device: str) -> float:
        store = self.stores[device]
        if not store.memory.base:
            return 0.0
        return float(codec.decode_state(store.states[store.memory.base], 4)["times"])  # type: ignore[arg-type]


def play(
    seed: int,
    faults: Faults = FAULTS,
    crash: float = 0.02,
    core: type[DeviceCore] = DeviceCore,
    journal: type[DiskOfMemory] = DiskOfMemory,
) -> tuple[float, ...]:
    return World(seed, faults, crash, core, journal, 0).run()


@pytest.fixture(scope="module")
def undisturbed() -> tuple[float, ...]:
    return play(0, Faults(), crash=0.0)


def test_an_undisturbed_run_counts_every_device_in_every_round(undisturbed: tuple[float, ...]) -> None:
    assert undisturbed[1] == ROUNDS
    assert undisturbed[2:] == (ROUNDS,) * len(DEVICES)


SEEDS = int(os.environ.get("SIM_SEEDS", "10000"))
PART = 1000


@pytest.mark.sim
@pytest.mark.parametrize("start", range(int(os.environ.get("SIM_SEED", "0")), SEEDS, PART))
def test_every_seed_ends_in_the_state_of_the_undisturbed_run(start: int, undisturbed: tuple[float, ...]) -> None:
    wrong = [seed for seed in range(start, min(start + PART, SEEDS)) if play(seed) != undisturbed]
    assert not wrong, f"{len(wrong)} seeds ended in another state; repeat one with SIM_SEED={wrong[0]}"


@pytest.mark.sim
def test_sealed_messages_end_in_the_same_state_though_what_overtakes_another_is_not_taken(
    undisturbed: tuple[float, ...],
) -> None:
    seeds = range(min(SEEDS, PART) // 5)
    worlds = [World(seed, FAULTS, 0.02, DeviceCore, DiskOfMemory, 0, sealed=True) for seed in seeds]
    assert not [seed for seed, world in enumerate(worlds) if world.run() != undisturbed]
    assert sum(sum(world.births.values()) for world in worlds) > len(worlds)


def play_again(world: World) -> None:
    """Let whatever is said from now on be said once more, up to a minute later."""
    end, seen, draw = world.bus.end(), set[bytes](), random.Random(0)

    def hear_all(topic: str, payload: bytes) -> None:
        if payload not in seen:
            seen.add(payload)
            world.bus.later(draw.uniform(0.0, 60.0), lambda: end.send(topic, payload))

    end.start([up_topic("f", "+"), down_topic("f", "+")], hear_all, lambda up: None)


@pytest.mark.sim
def test_what_is_played_again_much_later_changes_nothing_though_both_sides_crash(
    undisturbed: tuple[float, ...],
) -> None:
    seeds = range(min(SEEDS, PART) // 20)
    worlds = [World(seed, FAULTS, 0.02, DeviceCore, DiskOfMemory, 0, sealed=True) for seed in seeds]
    for world in worlds:
        play_again(world)
    assert not [seed for seed, world in enumerate(worlds) if world.run() != undisturbed]


@pytest.fixture(scope="module")
def undisturbed_long() -> tuple[float, ...]:
    return World(0, Faults(), 0.0, DeviceCore, DiskOfMemory, 0, LONG).run()


@pytest.mark.sim
def test_payloads_of_many_chunks_that_devices_share_end_in_the_same_state(undisturbed_long: tuple[float, ...]) -> None:
    assert undisturbed_long[1:] == (ROUNDS,) * (1 + len(DEVICES))
    worlds = [World(seed, FAULTS, 0.005, DeviceCore, DiskOfMemory, 0, LONG) for seed in range(min(SEEDS, PART) // 4)]
    assert not [seed for seed, world in enumerate(worlds) if world.run() != undisturbed_long]
    carried = sum((world.carried for world in worlds), Counter[str]())
    assert carried["all"] > 0
    assert carried["down"] > 0
    assert sum(sum(world.births.values()) for world in worlds) > len(worlds)


@pytest.mark.sim
def test_what_all_devices_fetch_is_sent_once_to_all_of_them() -> None:
    world = World(0, Faults(), 0.0, DeviceCore, DiskOfMemory, 0, LONG)
    world.run()
    # The first is all zeros, and so small that each device is sent it by itself.
    downs = sum(len(wire.encode(Down(r, noise(r, LONG.size), r))) for r in range(1, ROUNDS))
    assert world.carried["all"] == pytest.approx(downs, rel=0.01)


def wrong_without_rounds(
    seed: int, buffer: int, journal: type[DiskOfMemory] = DiskOfMemory, layout: Layout = LAYOUT
) -> str:
    """Play an asynchronous run; say what is wrong with its end."""
    world = World(seed, FAULTS, 0.02 if layout is LAYOUT else 0.005, DeviceCore, journal, buffer, layout)
    model, version, *times = (*world.run(), None, None)[: 2 + len(DEVICES)]
    expected, done = np.zeros(2, np.float32), world.disk.accepted
    for start in range(0, len(done), buffer):
        part = done[start : start + buffer]
        expected = np.array([(3 * expected[0] + sum(part)) % 9973, expected[1] + 1], np.float32)
    if len(done) != ROUNDS * len(DEVICES) or sum(times) != len(done):
        return f"{len(done)} updates were accepted, and the devices count {times}"
    if (model, version) != tuple(expected):
        return f"the model is {model} in version {version}; the updates in their order make {expected}"
    return ""


@pytest.mark.sim
@pytest.mark.parametrize("buffer", [1, 2])
def test_an_asynchronous_run_is_its_updates_in_order_each_counted_once(buffer: int) -> None:
    wrong = {seed: text for seed in range(min(SEEDS, PART)) if (text := wrong_without_rounds(seed, buffer))}
    assert not wrong


@pytest.mark.sim
def test_an_asynchronous_run_with_payloads_of_many_chunks_counts_each_update_once() -> None:
    seeds = range(min(SEEDS, PART) // 20)
    assert not {seed: text for seed in seeds if (text := wrong_without_rounds(seed, 2, layout=LONG))}


class ForgetsOrder(DiskOfMemory):
    """The planted bug: after a crash the updates are absorbed again in the order of the devices' names."""

    def payloads_since(self) -> Any:
        return iter(sorted(super().payloads_since()))


@pytest.mark.sim
def test_absorbing_again_in_another_order_is_found() -> None:
    assert any(wrong_without_rounds(seed, 2, ForgetsOrder) for seed in range(500))


class ForgetsPending(DeviceCore):
    """The planted bug: a new task overwrites an update whose fate is not known yet."""

    def _on_task(self, task: Any) -> Any:
        if self.memory.pending is not None and task.round > self.memory.round:
            self.memory = replace(self.memory, pending=None)
            return [Remember(self.memory), *super()._on_task(task)]
        return super()._on_task(task)


class CountsTwice(DiskOfMemory):
    """The planted bug: the journal does not know that a device was accepted already."""

    def progress(self, asynchronous: bool = False) -> Any:
        progress = super().progress(asynchronous)
        progress.accepted = {}
        return progress

    def accept(self, device: str, offer: Any, payload: bytes, number: int, held: str = "") -> None:
        self._database.write("DELETE FROM upload WHERE device = ? AND round = ?", (device, offer.round))
        super().accept(device, offer, payload, number, held)


@pytest.mark.sim
@pytest.mark.parametrize("bug", [{"core": ForgetsPending}, {"journal": CountsTwice}], ids=["pending lost", "no dedup"])
def test_a_planted_bug_is_found_within_a_few_hundred_seeds(bug: Any, undisturbed: tuple[float, ...]) -> None:
    def outcome(seed: int) -> Any:
        try:
            return play(seed, **bug)
        except AssertionError as error:
            return error

    assert any(outcome(seed) != undisturbed for seed in range(500))


def test_the_messages_of_the_simulation_are_real_bytes() -> None:
    hello = Hello("x", room=1_000_000)
    assert decode(encode(hello)) == hello
