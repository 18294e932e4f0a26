"""A fleet with identities on a broker that lets anybody do anything: a coordinator, light agents, and who means harm.

Everything is real but the training, which is that of `toy.py`. All of it runs in threads of this process, each
participant on a connection of its own.
"""

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edge_runtime import algorithm
from edge_runtime.agent import Agent
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator.gate import Sealed
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig
from edge_runtime.coordinator.serve import Inbox, TopicPost, serve
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.errors import DecodeError
from edge_runtime.link import Link
from edge_runtime.message import Blob, Chunk, Hello, Message, Need, Offer, Task, down_topic, up_topic
from edge_runtime.mqtt import Mqtt
from edge_runtime.seal import DeviceSeal, Key, PeerSeal, PublicKey, SealError, Seals
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.tree import Layout
from tests.chaos import light, toy

FLEET = "f"
HONEST = ("a", "b", "c")
VALUES = 25_000
"""Of a Down and of an Up: 100 KB."""
LAYOUT = Layout(("w",), ((VALUES,),))
CHUNK_BYTES = 16_384
_LIMIT_S = 300.0


class Trainer:
    """Answers a Down after a moment, from the state that it finds."""

    def __init__(self, store: FileStore, device: str, pause_s: float) -> None:
        self._store, self._device, self._pause_s = store, device, pause_s

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell."""
        self._done = done

    def start(self, task: Task) -> None:
        """Do a task in a thread of its own."""
        threading.Thread(target=self._work, args=(task,), daemon=True).start()

    def _work(self, task: Task) -> None:
        time.sleep(self._pause_s)
        try:
            outcome = light.work(self._device, task, self._store)
        except OSError:
            return  # the task was overtaken by another
        self._done(task, outcome)

    def stop(self) -> None:
        """Do nothing: what is under way is forgotten."""


class Members:
    """Who is enrolled; implements `gate.Keys`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        made = {name: ec.generate_private_key(ec.SECP256R1()) for name in names}
        pem = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        self.keys = {name: Key(key.private_bytes(*pem)) for name, key in made.items()}
        self.public = {name: key.public_key() for name, key in made.items()}
        self.gone: set[str] = set()

    def key_of(self, device: str) -> bytes | None:
        """Give the key of a device that is here."""
        if device in self.gone or device not in self.public:
            return None
        return self.public[device].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def seal(self, device: str) -> DeviceSeal:
        """Give a device's seal, as after a start of it."""
        return DeviceSeal(FLEET, device, self.keys[device], PublicKey(self.public["coordinator"]))


@dataclass(frozen=True)
class Terms:
    """How a run is to be."""

    rounds: int = 4
    devices: int = len(HONEST)
    quorum: float = 1.0
    deadline_s: float = 120.0
    pause_s: float = 0.3


class Fleet:
    """A run of the coordinator with its agents."""

    def __init__(
        self,
        broker: brokers.Broker,
        folder: Path,
        terms: Terms,
        crooks: tuple[str, ...] = (),
        after: "Fleet | None" = None,
    ) -> None:
        """Prepare a run; `after` another one, with the same devices and what they keep."""
        self.broker, self.folder, self.terms = broker, folder, terms
        self.run = "run" if after is None else f"{after.run}-next"
        self.members = after.members if after else Members(("coordinator", "mallory", *HONEST, *crooks))
        self.members.gone.add("mallory")  # was enrolled once: a good key, and nobody any more
        self.gate = Sealed(FLEET, self.members.keys["coordinator"], self.members)
        self.failures: list[BaseException] = []
        self.agents: dict[str, Agent] = {}
        self.stores: dict[str, FileStore] = {}
        self.finished = threading.Event()
        self._stop, self._listening = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self.coordinator: Coordinator

    def link(self, client_id: str) -> Link:
        """Say how a participant connects."""
        return Link(self.broker.host, self.broker.port, client_id, retry_s=0.2, max_retry_s=0.5)

    def __enter__(self) -> "Fleet":
        """Start coordinator and agents."""
        self._spawn(self._coordinate)
        self._listening.wait(30.0)
        for name in HONEST:
            self._spawn(lambda name=name: self._serve_device(name))  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        """End them all."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)

    def _spawn(self, body: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001  # shown with the verdict
                self.failures.append(error)
                self.finished.set()

        self._threads.append(threading.Thread(target=guarded, daemon=True))
        self._threads[-1].start()

    def _coordinate(self) -> None:
        config = RunConfig(
            rounds=self.terms.rounds,
            devices=self.terms.devices,
            quorum=self.terms.quorum,
            evaluate=False,
            chunk_bytes=CHUNK_BYTES,
            deadline_s=self.terms.deadline_s,
        )
        description = Setup("toy", {}, ModelCard("own:toy", LAYOUT), 1)
        parts = dataclasses.replace(algorithm.load(toy.__name__), name="toy")  # which no device need allow
        run = Run(config, parts, toy.Config(VALUES, VALUES), description, np.zeros(LAYOUT.size, np.float32))
        journal, transport = Journal(self.folder / self.run), Mqtt(self.link("_coordinator"))
        plan, post = run.plan(self.run, journal.next_epoch()), TopicPost(FLEET, transport, self.gate)
        self.coordinator = Coordinator(plan, run, journal, post, self.gate)
        inbox = Inbox(transport, FLEET)
        inbox.start()
        self._listening.set()
        with contextlib.closing(journal), contextlib.closing(transport):
            serve(self.coordinator, inbox, transport, self.terms.deadline_s, self._watch)
            self.accepted = journal.accepted()
            self._answer_on(inbox)

    def _answer_on(self, inbox: Inbox) -> None:
        """Go on answering for a moment, so that all devices hear of the fate of their last update."""
        last = time.monotonic() + 20.0
        while any(self._pending()) and time.monotonic() < last and not self._stop.is_set():
            event = inbox.take(0.05)
            if isinstance(event, tuple):
                self.coordinator.receive(*event)
        self.finished.set()

    def _pending(self) -> Iterator[bool]:
        for agent in self.agents.values():
            yield agent.device.core.memory.pending is not None

    def _watch(self, coordinator: Coordinator) -> None:
        if self._stop.is_set():
            raise RuntimeError("the run was stopped before its end")

    def _serve_device(self, name: str) -> None:
        key, public = self.members.keys[name], PublicKey(self.members.public["coordinator"])
        self.stores[name] = store = FileStore(self.folder / "devices" / name)
        trainer: Any = Trainer(store, name, self.terms.pause_s)
        seals = Seals(DeviceSeal(FLEET, name, key, public), PeerSeal(FLEET, name, key))
        self.agents[name] = Agent(FLEET, name, store, trainer, Mqtt(self.link(name)), Hello(name), seals)
        try:
            self.agents[name].run(self._stop.is_set)
        finally:
            store.close()

    def wait(self, busy: Callable[[], None] = lambda: time.sleep(0.05)) -> None:
        """Wait for the end of the run, doing something in the meantime.

        Raises:
            RuntimeError: it did not end.
        """
        limit_s = time.monotonic() + _LIMIT_S
        while not self.finished.is_set():
            busy()
            if time.monotonic() > limit_s:
                raise RuntimeError(f"no end after {_LIMIT_S:.0f} s")
        if self.failures:
            raise RuntimeError(f"{type(self.failures[0]).__name__}: {self.failures[0]}")

    def differs(self) -> str:
        """Say what of the run's end is not as it should be after all rounds of the honest devices alone."""
        model, pasts = toy.expected(HONEST, self.terms.rounds, 0)
        left = self.coordinator.server.shared()
        if left is None or not np.array_equal(left, toy.noise(model, LAYOUT.size)):
            return "the model is another"
        bases = {name: self.agents[name].device.core.memory.base for name in HONEST}
        found = {name: light.past_of(self.stores[name].state(base)) for name, base in bases.items()}
        wrong = [name for name in HONEST if found[name] != pasts[name]]
        return f"the state of {', '.join(wrong)} is another" if wrong else ""


class Hostile:
    """A client that hears everything, and says what it likes on any topic."""

    def __init__(self, link: Link) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.said = 0
        self._known: set[bytes] = set()
        self._mqtt = Mqtt(link)
        self._mqtt.start([f"edge/{FLEET}/#"], self._hear, lambda up: None)

    def _hear(self, topic: str, payload: bytes) -> None:
        if payload not in self._known:
            self._known.add(payload)
            self.heard.append((topic, payload))

    def say(self, topic: str, payload: bytes) -> None:
        """Say something, no faster than it goes away."""
        self._known.add(payload)
        while self._mqtt.unsent_bytes() > 1_000_000:
            time.sleep(0.005)
        self.said += self._mqtt.send(topic, payload)

    def close(self) -> None:
        """Go away."""
        self._mqtt.close()


class Crook:
    """An enrolled device without an agent: it seals well, and lies."""

    def __init__(self, fleet: Fleet, name: str, on_task: Callable[["Crook", Task], None]) -> None:
        self.name, self.fleet = name, fleet
        self.fates: list[Message] = []
        self.needs: list[Need] = []
        self._seal = fleet.members.seal(name)
        self._on_task = on_task
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        self._mqtt = Mqtt(fleet.link(name))
        self._mqtt.start([down_topic(FLEET, name)], self._hear, lambda up: None)
        self.say(Hello(name))

    def say(self, message: Message) -> None:
        """Say something."""
        with self._lock:
            self._mqtt.send(up_topic(FLEET, self.name), self._seal.seal(message))

    def send(self, blob: Blob, data: bytes) -> None:
        """Send all chunks of a blob."""
        for index in range(blob.chunks):
            start, end = blob.span(index)
            self.say(Chunk(blob.digest, index, data[start:end]))

    def _hear(self, topic: str, payload: bytes) -> None:
        try:
            message, anew = self._seal.open(payload)
        except (SealError, DecodeError):
            return
        if anew:
            self.say(Hello(self.name))
        match message:
            case Task() if message.round not in self._seen:
                self._seen.add(message.round)
                self._on_task(self, message)
            case Need():
                self.needs.append(message)
            case Offer() | Chunk() | Task():
                pass
            case _:
                self.fates.append(message)

    def close(self) -> None:
        """Go away."""
        self._mqtt.close()


def blob_of(data: bytes, chunk: int = CHUNK_BYTES) -> Blob:
    """Name bytes."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data), chunk)
