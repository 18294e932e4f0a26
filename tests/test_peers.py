"""Runs among equals: the core by its rules, and whole runs on a network that drops, doubles and reorders, with crashes.

In the whole runs a toy stands in for training: a device's Up of a round is the hash of its last one and of all that it
heard, so that anything that is lost, counted twice or out of turn anywhere changes every later hash.
"""

import base64
import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_runtime import peers
from edge_runtime.agent import TopicCircle, hear
from edge_runtime.device import Device
from edge_runtime.errors import DecodeError, DeviceError
from edge_runtime.message import (
    Blob,
    Chunk,
    Fate,
    Hello,
    Need,
    Offer,
    Refuse,
    Status,
    Task,
    ask_topic,
    down_topic,
    encode,
)
from edge_runtime.peers import KEPT, Ask, Learn, PeersCore, Remember, Say, SayChunks, Start
from edge_runtime.seal import FORGED, REPEATED, UNSEALED, Key, PeerSeal, PublicKey
from edge_runtime.store import FileStore, MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import CALM, Faults, Loopback

START = Start(("a", "b", "c"), rounds=5, deadline_s=10.0, topology="full", fanout=2, seed=3, max_bytes=1000)
FOREVER = 1e9


def blob_of(data: bytes, chunk: int = 65_536) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data), chunk)


def offer_of(data: bytes, round_: int, run: str = "run", chunk: int = 65_536) -> Offer:
    return Offer(run, round_, "peers", blob_of(data, chunk))


def a_core(start: Start = START, trained: int = 1) -> PeersCore:
    """Make device a's core after so many rounds of its own, waiting for those of b and c."""
    core = PeersCore("run", "a", start, [])
    core.begin()
    for round_ in range(trained):
        core.trained(blob_of(b"a%d" % round_))
        if round_ < trained - 1:
            tell(core, "b", b"b%d" % round_, round_)
            tell(core, "c", b"c%d" % round_, round_)
    return core


def tell(core: PeersCore, peer: str, data: bytes, round_: int) -> list[Any]:
    """Let a peer say something in one chunk."""
    return [*core.hear(peer, offer_of(data, round_)), *core.hear(peer, Chunk(blob_of(data).digest, 0, data))]


def test_the_first_round_needs_nobody() -> None:
    assert PeersCore("run", "a", START, []).begin() == [Learn(0, {})]


def test_a_round_is_remembered_then_said_and_the_next_begins_when_all_were_heard() -> None:
    core = PeersCore("run", "a", START, [])
    core.begin()
    offer = offer_of(b"a0", 0)
    assert core.trained(offer.blob) == [Remember((offer,), False), Say(offer), SayChunks(offer.blob, (0,))]
    assert tell(core, "b", b"b0", 0) == []
    assert tell(core, "c", b"c0", 0) == [Learn(1, {"b": b"b0", "c": b"c0"})]


def test_after_the_last_round_nothing_is_waited_for() -> None:
    core = a_core(dataclasses.replace(START, rounds=2), trained=2)
    assert core.done
    assert not core.waiting
    assert core.tick(0.0) == core.tick(1e9) == []
    only = a_core(dataclasses.replace(START, rounds=1), trained=0)
    assert only.trained(blob_of(b"a0"))[0] == Remember((offer_of(b"a0", 0),), True)


def test_a_neighbour_may_be_a_round_ahead() -> None:
    core = a_core()
    tell(core, "b", b"b0", 0)
    tell(core, "b", b"b1", 1)
    assert tell(core, "c", b"c0", 0) == [Learn(1, {"b": b"b0", "c": b"c0"})]
    core.trained(blob_of(b"a1"))
    assert tell(core, "c", b"c1", 1) == [Learn(2, {"b": b"b1", "c": b"c1"})]


def test_at_the_deadline_a_device_goes_on_without_those_it_did_not_hear() -> None:
    core = a_core()
    tell(core, "b", b"b0", 0)
    assert core.tick(100.0) == [Ask("c", Status("run", 0, "listening"))]
    assert core.tick(109.9) == [Ask("c", Status("run", 0, "listening"))]
    assert core.tick(110.0) == [Learn(1, {"b": b"b0"})]
    assert core.counts["missing"] == 1


def test_the_deadline_counts_from_the_beginning_of_the_waiting() -> None:
    core = a_core()
    core.tick(100.0)
    tell(core, "b", b"b0", 0)
    tell(core, "c", b"c0", 0)
    assert core.tick(200.0) == []  # it trains
    core.trained(blob_of(b"a1"))
    assert all(isinstance(action, Ask) for action in core.tick(300.0))
    assert all(isinstance(action, Ask) for action in core.tick(309.0))
    assert core.tick(310.0) == [Learn(2, {})]


def test_who_says_that_a_round_is_gone_is_not_waited_for() -> None:
    core = a_core()
    tell(core, "b", b"b0", 0)
    assert core.hear("c", Refuse("other", 0, True, "")) == core.hear("c", Refuse("run", 1, True, "")) == []
    assert core.hear("c", Refuse("run", 0, True, "said too long ago")) == [Learn(1, {"b": b"b0"})]


def test_what_was_said_is_repeated_for_a_while_and_then_gone() -> None:
    core = a_core(dataclasses.replace(START, rounds=50), trained=7)
    for round_ in range(7 - KEPT, 7):
        data = b"a%d" % round_
        assert core.asked("b", Status("run", round_, "listening")) == [
            Say(offer_of(data, round_)),
            SayChunks(blob_of(data), (0,)),
        ]
    assert core.asked("b", Status("run", 7 - KEPT - 1, "listening")) == [
        Say(Refuse("run", 7 - KEPT - 1, True, "said too long ago"))
    ]
    assert core.asked("b", Status("run", 7, "listening")) == []
    assert core.asked("b", Status("other", 6, "listening")) == []


def test_chunks_are_repeated_as_far_as_there_are_any() -> None:
    core = a_core()
    digest = blob_of(b"a0").digest
    assert core.asked("b", Need(digest, (0,))) == [SayChunks(blob_of(b"a0"), (0,))]
    assert core.asked("b", Need(digest, (1, 7))) == core.asked("b", Need(blob_of(b"").digest, (0,))) == []
    assert core.asked("stranger", Need(digest, (0,))) == []


def test_a_long_message_is_asked_for_window_by_window_and_repaired() -> None:
    data = bytes(range(200)) * 2
    core = a_core()
    tell(core, "c", b"c0", 0)
    offer = offer_of(data, 0, chunk=20)  # 20 chunks; the first 16 come unasked
    core.hear("b", offer)
    chunks = [Chunk(offer.blob.digest, i, data[slice(*offer.blob.span(i))]) for i in range(20)]
    for chunk in chunks[:3] + chunks[4:15]:
        assert core.hear("b", chunk) == []
    assert core.hear("b", chunks[15]) == [Ask("b", Need(offer.blob.digest, (3, *range(16, 20))))]
    for chunk in [chunks[3], *chunks[16:18]]:
        core.hear("b", chunk)
    assert core.tick(0.0) == []
    assert core.tick(1.0) == [Ask("b", Need(offer.blob.digest, (19,)))]  # did 18 and 19 get lost?
    assert core.hear("b", chunks[19]) == [Ask("b", Need(offer.blob.digest, (18,)))]
    assert core.hear("b", chunks[18]) == [Learn(1, {"b": data, "c": b"c0"})]


def test_the_window_after_the_first_is_asked_for_at_once() -> None:
    data = bytes(range(200)) * 2
    core = a_core()
    offer = offer_of(data, 0, chunk=20)
    core.hear("b", offer)
    answers = [core.hear("b", Chunk(offer.blob.digest, i, data[20 * i : 20 * i + 20])) for i in range(16)]
    assert answers == [[]] * 15 + [[Ask("b", Need(offer.blob.digest, (16, 17, 18, 19)))]]


@pytest.mark.parametrize(
    ("peer", "message", "why"),
    [
        ("b", offer_of(b"x", 0, run="other"), "other run"),
        ("b", Offer("run", 0, "train", blob_of(b"x")), "other run"),
        ("b", offer_of(b"x", 2), "early"),
        ("b", offer_of(bytes(1001), 0), "too large"),
        ("b", offer_of(b"", 0), "too large"),
        ("stranger", offer_of(b"x", 0), "stranger"),
        ("a", offer_of(b"x", 0), "stranger"),
    ],
)
def test_what_must_not_count_is_dropped_and_counted(peer: str, message: Offer, why: str) -> None:
    core = a_core()
    assert core.hear(peer, message) == []
    assert core.counts == {why: 1}
    core.hear(peer, Chunk(message.blob.digest, 0, b"x"))
    assert core.tick(0.0) == [Ask(name, Status("run", 0, "listening")) for name in "bc"]


def test_what_is_late_is_dropped_and_counted() -> None:
    core = a_core(trained=2)
    tell(core, "b", b"b0", 0)
    assert core.counts == {"late": 1}


def test_of_two_things_said_for_one_round_the_first_counts() -> None:
    core = a_core()
    tell(core, "b", b"b0", 0)
    tell(core, "b", b"other", 0)
    assert tell(core, "c", b"c0", 0) == [Learn(1, {"b": b"b0", "c": b"c0"})]
    assert core.counts == {"repeated": 1}


def test_bytes_that_are_not_what_was_announced_are_asked_for_again() -> None:
    core = a_core()
    core.hear("b", offer_of(b"b0", 0))
    core.hear("b", Chunk(blob_of(b"b0").digest, 0, b"??"))
    assert core.counts == {"damaged": 1}
    assert Ask("b", Status("run", 0, "listening")) in core.tick(0.0)
    tell(core, "b", b"b0", 0)
    assert tell(core, "c", b"c0", 0) == [Learn(1, {"b": b"b0", "c": b"c0"})]


def test_in_a_ring_only_neighbours_count() -> None:
    start = dataclasses.replace(START, peers=tuple("abcde"), topology="ring")
    core = a_core(start)
    tell(core, "c", b"c0", 0)
    assert core.tick(0.0) == [Ask("b", Status("run", 0, "listening")), Ask("e", Status("run", 0, "listening"))]
    tell(core, "b", b"b0", 0)
    assert tell(core, "e", b"e0", 0) == [Learn(1, {"b": b"b0", "e": b"e0"})]
    assert start.speakers("a") == ("b", "e")


def test_a_core_that_starts_again_goes_on_where_it_was() -> None:
    core = a_core(trained=3)
    again = PeersCore("run", "a", START, core.said)
    assert (again.round, again.begin()) == (3, [])
    assert again.tick(0.0) == [Ask(name, Status("run", 2, "listening")) for name in "bc"]


def test_a_start_survives_the_wire() -> None:
    assert peers.decode_start(peers.encode_start(START), "a") == START


@pytest.mark.parametrize(
    "change",
    [
        {"peers": []},
        {"peers": ["a", "a"]},
        {"peers": ["a", "x/y"]},
        {"peers": ["a", "+"]},
        {"peers": ["a", 3]},
        {"peers": "a"},
        {"peers": ["b"]},
        {"peers": ["a", *(f"p{i}" for i in range(4096))]},
        {"rounds": 0},
        {"rounds": True},
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
        {"deadline_s": float("nan")},
        {"deadline_s": "1"},
        {"topology": "star"},
        {"topology": []},
        {"fanout": 0},
        {"seed": -1},
        {"max_bytes": 2**40},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_start_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        peers.decode_start(json.dumps({**json.loads(peers.encode_start(START)), **change}).encode(), "a")


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"[" * 100_000, b"\xff"])
def test_nonsense_is_no_start(data: bytes) -> None:
    with pytest.raises(DecodeError):
        peers.decode_start(data, "a")
    with pytest.raises(DecodeError):
        peers.unpack(data)


def test_what_was_heard_comes_to_the_trainer_as_it_was() -> None:
    heard = {"b": bytes(range(256)), "a": b""}
    assert peers.unpack(peers.pack(heard)) == heard
    assert peers.pack(heard) == peers.pack(dict(reversed(heard.items())))
    with pytest.raises(DecodeError):
        peers.unpack(b'{"a": "?"}')
    with pytest.raises(DecodeError):
        peers.unpack(b'{"a": 1}')


def test_a_run_among_equals_survives_in_the_store(tmp_path: Any) -> None:
    store = FileStore(tmp_path)
    setup, down = store.write(b"setup"), store.write(peers.encode_start(START))
    task = Task("run", 1, 0, "peers", "", setup, down)
    device = a_device(store, lambda task: None)
    device.handle(task)
    device.finished(dataclasses.replace(task, down=store.write(b"{}")), Outcome(b"up", b"state"))
    store.close()
    store = FileStore(tmp_path)
    again = a_device(store, lambda task: None)
    assert again.among is not None
    assert again.among.core.said == (Offer("run", 0, "peers", blob_of(b"up")),)
    assert store.state(blob_of(b"up").digest) == b"state"
    assert store.held() == {setup.digest, down.digest, blob_of(b"up").digest}
    store.close()


def test_faults_of_peers_are_counted_by_name_and_reported_in_sum() -> None:
    store, tasks, sent = MemoryStore(), list[Task](), list[Any]()
    setup, down = store.write(b"setup"), store.write(peers.encode_start(dataclasses.replace(START, rounds=2)))
    circle = TopicCircle("f", "a", Loopback().end(), lambda: 0.0)
    trainer: Any = SimpleNamespace(start=tasks.append)
    device = Device(store, trainer, sent.append, Hello("boot"), lambda run: {}, circle)  # type: ignore[arg-type]
    device.handle(Task("run", 1, 0, "peers", "", setup, down))
    device.finished(tasks[-1], Outcome(b"a0", b"state"))
    for peer, data in (("b", b"b0"), ("c", b"c0")):
        for message in (offer_of(data, 0), Chunk(blob_of(data).digest, 0, data)):
            device.receive_from(peer, encode(message), to_all=True)
    device.finished(tasks[-1], Outcome(b"a1", b"state", {"loss": 1.0}, faults={"c": "not posteriors"}))
    assert device.among is not None
    assert device.among.core.faults == {"c": 1}
    assert (sent[-1].round, sent[-1].phase, sent[-1].blob.size) == (0, "peers", 0)
    assert sent[-1].metrics["peers-unfit"] == sent[-1].metrics["loss"] == 1.0
    assert sent[-1].metrics["payload-bytes-down"] == len(b"b0" + b"c0")
    device.handle(Fate("run", 0, "peers", sent[-1].blob.digest, "applied"))
    assert store.memory.pending is None
    assert store.memory.talk is not None  # peers that are behind may still ask


def test_a_round_that_fails_is_told_to_the_coordinator() -> None:
    store, tasks, sent = MemoryStore(), list[Task](), list[Any]()
    setup, down = store.write(b"setup"), store.write(peers.encode_start(START))
    circle = TopicCircle("f", "a", Loopback().end(), lambda: 0.0)
    trainer: Any = SimpleNamespace(start=tasks.append)
    device = Device(store, trainer, sent.append, Hello("boot"), lambda run: {}, circle)  # type: ignore[arg-type]
    device.handle(Task("run", 1, 0, "peers", "", setup, down))
    device.finished(tasks[-1], Outcome(reason="training diverged"))
    assert sent[-1] == Refuse("run", 0, False, "training diverged", "peers")


def a_device(store: Any, train: Callable[[Task], None]) -> Device:
    circle = TopicCircle("f", "a", Loopback().end(), lambda: 0.0)
    return Device(store, SimpleNamespace(start=train), lambda message: True, Hello("boot"), lambda run: {}, circle)


def test_a_device_that_cannot_reach_peers_or_has_no_part_refuses() -> None:
    for circle, names in ((None, ("a", "b")), (TopicCircle("f", "z", Loopback().end(), lambda: 0.0), ("a", "b"))):
        store, sent = MemoryStore(), list[Any]()
        setup, down = store.write(b"setup"), store.write(peers.encode_start(dataclasses.replace(START, peers=names)))
        trainer: Any = SimpleNamespace(start=lambda task: pytest.fail("trains"))
        device = Device(store, trainer, sent.append, Hello("boot"), lambda run: {}, circle)  # type: ignore[arg-type]
        device.handle(Task("run", 1, 0, "peers", "", setup, down))
        assert isinstance(sent[-1], Refuse)
        assert sent[-1].reason
        assert store.memory.talk is None


def test_a_full_disk_pauses_the_run_and_loses_nothing() -> None:
    class Full(MemoryStore):
        full = False

        def put(self, payload: bytes, state: bytes) -> Blob:
            if self.full:
                raise DeviceError("full")
            return super().put(payload, state)

        def probe(self) -> None:
            if self.full:
                raise DeviceError("full")

    store, tasks = Full(), list[Task]()
    setup, down = store.write(b"setup"), store.write(peers.encode_start(START))
    device = a_device(store, tasks.append)
    device.handle(Task("run", 1, 0, "peers", "", setup, down))
    store.full = True
    with pytest.raises(DeviceError):
        device.finished(tasks[-1], Outcome(b"up", b"state"))
    with pytest.raises(DeviceError):
        device.tick()
    store.full = False
    device.tick()
    assert [task.round for task in tasks] == [0, 0]  # the round is done again: nobody has heard of it
    device.finished(tasks[-1], Outcome(b"up", b"state"))
    assert store.memory.talk is not None
    assert [offer.round for offer in store.memory.talk.said] == [0]


class Crash(Exception):
    """The process died here."""


class Fragile:
    """Lets each writing call of a store crash before or after it has taken effect."""

    def __init__(self, thing: Any, boundary: Callable[[], None]) -> None:
        self._thing, self._boundary = thing, boundary

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if name not in ("remember", "put", "write"):
            return value

        def call(*arguments: Any) -> Any:
            self._boundary()
            result = value(*arguments)
            self._boundary()
            return result

        return call


def grown(state: bytes, round_: int, heard: dict[str, bytes]) -> bytes:
    """Do the toy's training: the hash of all that a device knows."""
    return hashlib.sha256(repr((state, round_, sorted(heard.items()))).encode()).digest()


class World:
    """Devices on a bus that were told of a run once, by a coordinator that is never heard of again."""

    def __init__(
        self,
        seed: int,
        start: Start,
        faults: Faults,
        crash: float,
        dead: dict[str, int] | None = None,
        keys: dict[str, Key] | None = None,
    ) -> None:
        self.keys = keys or {}
        self.random, self.bus, self.start, self.crash = random.Random(seed), Loopback(seed, faults), start, crash
        self.dead = dead or {}
        """The round in which a device vanishes for good."""
        self.stores = {name: MemoryStore() for name in start.peers}
        self.births = dict.fromkeys(start.peers, 0)
        self.ends = {name: self.bus.end() for name in start.peers}
        self.devices: dict[str, Device] = {}
        self.offered: dict[str, Offer] = {}
        for name in start.peers:
            self.boot(name)

    def boundary(self) -> None:
        if self.random.random() < self.crash:
            raise Crash

    def guard(self, name: str, event: Callable[[], None]) -> None:
        try:
            event()
        except Crash:
            self.vanish(name)
            self.bus.later(self.random.uniform(0.1, 5.0), lambda: self.boot(name))

    def vanish(self, name: str) -> None:
        self.births[name] += 1
        self.ends[name].close()
        self.devices.pop(name, None)

    def boot(self, name: str) -> None:
        self.guard(name, lambda: self._boot(name, self.births[name]))

    def _boot(self, name: str, birth: int) -> None:
        store, end = self.stores[name], self.ends[name]
        setup, down = store.write(b"setup"), store.write(peers.encode_start(self.start))
        seal = PeerSeal("f", name, self.keys[name]) if self.keys else None
        circle = TopicCircle("f", name, end, lambda: self.bus.now_s, seal)
        trainer: Any = SimpleNamespace(start=lambda task: self.train(name, birth, task))
        fragile: Any = Fragile(store, self.boundary)

        def send(message: Any) -> bool:
            self.boundary()
            if isinstance(message, Offer):
                self.offered[name] = message
            return True

        device = self.devices[name] = Device(fragile, trainer, send, Hello(str(birth)), lambda run: {}, circle)

        def receive(topic: str, payload: bytes) -> None:
            self.guard(name, lambda: hear(device, topic, payload))

        end.start([down_topic("f", name), ask_topic("f", name, "+")], receive, lambda up: None)
        device.start()
        if store.memory.talk is None:
            device.handle(Task("run", 1, 0, "peers", "", setup, down))
        self.tick(name, birth)

    def tick(self, name: str, birth: int) -> None:
        def again() -> None:
            if birth == self.births[name]:
                self.guard(name, self.devices[name].tick)
                self.tick(name, birth)

        self.bus.later(2.0, again)

    def train(self, name: str, birth: int, task: Task) -> None:
        if self.dead.get(name) == task.round:
            self.vanish(name)
            return
        store = self.stores[name]
        heard, state = peers.unpack(store.blobs[task.down.digest]), store.states[task.base] if task.base else b""
        outcome = Outcome(grown(name.encode() + state, task.round, heard), grown(state, task.round, heard))

        def finish() -> None:
            if birth == self.births[name]:
                self.guard(name, lambda: self.devices[name].finished(task, outcome))

        self.bus.later(self.random.uniform(0.1, 2.0), finish)

    def run(self) -> dict[str, bytes]:
        """Go on until every device that lives has offered its figures; give each one's state."""
        living = [name for name in self.start.peers if name not in self.dead]
        while not all(name in self.offered for name in living):
            assert self.bus.step()
            assert self.bus.now_s < 5000.0, "stuck"
        talks = {name: self.stores[name].memory.talk for name in living}
        return {name: self.stores[name].states[talk.said[-1].blob.digest] for name, talk in talks.items() if talk}


def in_step(start: Start) -> dict[str, bytes]:
    """Play the toy's rounds as they should be: everybody hears all neighbours."""
    states, ups = dict.fromkeys(start.peers, b""), dict[str, bytes]()
    for round_ in range(start.rounds):
        heard = {
            name: {peer: ups[peer] for peer in start.neighbours(name, round_)} if round_ else {} for name in start.peers
        }
        ups = {name: grown(name.encode() + states[name], round_, heard[name]) for name in start.peers}
        states = {name: grown(states[name], round_, heard[name]) for name in start.peers}
    return states


BAD = Faults(drop=0.15, duplicate=0.1, delay_s=1.5)
SIX = Start(tuple("abcdef"), rounds=6, deadline_s=FOREVER, topology="full", fanout=2, seed=3, max_bytes=1000)


@pytest.mark.sim
@pytest.mark.parametrize("topology", ["full", "ring", "random"])
def test_a_calm_run_is_what_it_should_be(topology: str) -> None:
    start = dataclasses.replace(SIX, topology=topology)
    assert World(0, start, CALM, 0.0).run() == in_step(start)


@pytest.mark.sim
@pytest.mark.parametrize("topology", ["full", "ring"])
@pytest.mark.parametrize("seed", range(30))
def test_losses_doubles_delays_and_crashes_change_nothing(seed: int, topology: str) -> None:
    start = dataclasses.replace(SIX, topology=topology)
    world = World(seed, start, BAD, crash=0.02)
    assert world.run() == in_step(start)
    assert sum(world.births.values()) > 0


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(15))
def test_one_seed_is_one_run_even_where_deadlines_pass(seed: int) -> None:
    start = dataclasses.replace(SIX, topology="random", deadline_s=6.0)
    ends = [World(seed, start, BAD, crash=0.02).run() for _ in range(2)]
    assert ends[0] == ends[1]


@pytest.mark.sim
@pytest.mark.parametrize("topology", ["full", "ring", "random"])
@pytest.mark.parametrize("seed", range(10))
def test_a_run_goes_on_without_a_device_that_vanished(seed: int, topology: str) -> None:
    start = dataclasses.replace(SIX, topology=topology, deadline_s=15.0)
    world = World(seed, start, BAD, crash=0.0, dead={"c": 2})
    assert set(world.run()) == set("abdef")
    assert any(world.devices[name].among.core.counts["missing"] for name in "abdef")  # type: ignore[union-attr]


@pytest.mark.sim
def test_a_device_that_comes_back_late_goes_through_all_its_rounds() -> None:
    world = World(1, dataclasses.replace(SIX, rounds=12, deadline_s=8.0), CALM, 0.0)
    world.vanish("c")
    world.bus.later(100.0, lambda: world.boot("c"))
    assert set(world.run()) == set("abcdef")
    assert world.stores["c"].memory.talk.said[-1].round == 11  # type: ignore[union-attr]


def with_keys(start: Start) -> tuple[Start, dict[str, Key]]:
    """Give every peer a key, and the start what it must say of them."""
    private = {name: ec.generate_private_key(ec.SECP256R1()) for name in start.peers}
    points = [PublicKey(private[name].public_key()).point() for name in start.peers]
    pem = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    keys = {name: Key(key.private_bytes(*pem)) for name, key in private.items()}
    return dataclasses.replace(start, keys=tuple(base64.b64encode(point).decode() for point in points)), keys


def harass(world: World, forger: Key) -> None:
    """Play again whatever is said, from now on, and say other things in the names of those who said it."""
    end, seen = world.bus.end(), set[bytes]()
    other = b"what nobody learnt"

    def hear_all(topic: str, payload: bytes) -> None:
        if payload in seen:
            return
        seen.add(payload)
        name, round_ = topic.split("/")[3], len(seen) % SIX.rounds
        offer = offer_of(other, round_)
        liar = PeerSeal("f", name, forger)
        for data in (encode(offer), liar.seal_for_all(offer), encode(Chunk(offer.blob.digest, 0, other))):
            seen.add(data)
            end.send(f"edge/f/peer/{name}", data)
        for _ in range(3):
            world.bus.later(world.random.uniform(0.0, 30.0), lambda: end.send(topic, payload))

    end.start(["edge/f/peer/+", "edge/f/ask/+/+"], hear_all, lambda up: None)


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(5))
def test_what_is_forged_or_played_again_among_equals_that_seal_changes_nothing(seed: int) -> None:
    start, keys = with_keys(dataclasses.replace(SIX, topology="ring"))
    world = World(seed, start, BAD, crash=0.02, keys=keys)
    harass(world, with_keys(start)[1]["a"])
    assert world.run() == in_step(start)
    counts = sum((device.among.core.counts for device in world.devices.values() if device.among), Counter[str]())
    assert all(counts[reason] for reason in (FORGED, UNSEALED, REPEATED))


@pytest.mark.sim
def test_among_equals_that_do_not_seal_a_forger_is_believed() -> None:
    start = dataclasses.replace(SIX, topology="ring")
    world = World(0, start, CALM, 0.0)
    harass(world, with_keys(start)[1]["a"])
    assert world.run() != in_step(start)


def test_a_start_tells_the_keys_of_the_peers() -> None:
    start, _ = with_keys(START)
    gone = dataclasses.replace(start, keys=(start.keys[0], "", start.keys[2]))
    for one in (start, gone):
        assert peers.decode_start(peers.encode_start(one), "a") == one
    assert set(gone.key_of()) == {"a", "c"}
    assert b"keys" not in peers.encode_start(START)


@pytest.mark.parametrize("keys", [["", ""], ["", "", 1], ["", "", "AAAA"], ["", "", "!"], "keys", [None] * 3])
def test_a_start_with_other_than_a_key_for_each_is_refused(keys: Any) -> None:
    data = json.dumps({**json.loads(peers.encode_start(START)), "keys": keys}).encode()
    with pytest.raises(DecodeError, match="start: "):
        peers.decode_start(data, "a")


def test_a_device_that_seals_refuses_a_run_among_equals_that_do_not() -> None:
    _, keys = with_keys(START)
    store = MemoryStore()
    setup, down = store.write(b"setup"), store.write(peers.encode_start(START))
    circle = TopicCircle("f", "a", Loopback().end(), lambda: 0.0, PeerSeal("f", "a", keys["a"]))
    sent: list[Any] = []
    trainer: Any = SimpleNamespace(start=lambda task: None)
    device = Device(store, trainer, lambda message: not sent.append(message), Hello("a"), lambda run: {}, circle)
    device.handle(Task("run", 1, 0, "peers", "", setup, down))
    assert "no keys" in sent[-1].reason
