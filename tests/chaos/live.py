"""Hostile bytes and faults of our own, against what is alive: handlers of agents and coordinator, and every decoder."""

import hashlib
import logging
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edge_runtime import agent as agents
from edge_runtime import wire
from edge_runtime.agent import Agent
from edge_runtime.compression import codec
from edge_runtime.coordinator import serve as serving
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.replay import replay
from edge_runtime.coordinator.serve import Inbox, TopicPost, serve
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.device import Device
from edge_runtime.devices import meter
from edge_runtime.errors import DecodeError
from edge_runtime.message import Hello, Task, decode, down_topic, up_topic
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import Traffic
from tests import fuzz
from tests.chaos.on_disk import LAYOUT, Down, Fleet, Plan, train, undisturbed
from tests.chaos.scorecard import Figure, Row, Scale

_KEPT = 64
_MESSAGES = 1_000_000
_DECODES = 1_000_000
_GROWN_BYTES = 32_000_000


def decoders(scale: Scale) -> Figure:
    """Measure the decoders' half of R9."""
    targets = fuzz.targets()
    verdicts = [fuzz.attack(target, scale.of(_DECODES // len(targets) + 1, 20), scale.seed) for target in targets]
    number, faults = sum(one.payloads for one in verdicts), [fault for one in verdicts for fault in one.faults]
    slow, grown = sum(one.over_5_ms for one in verdicts), sum(one.grown_bytes for one in verdicts)
    text = (
        f"{number} decodes: {len(faults)} uncaught, {100 * slow / number:.3f} % take longer than 5 ms, "
        f"the slowest {max(one.slowest_ms for one in verdicts):.1f} ms, {grown / 1e6:.1f} MB more RSS"
    )
    met = not faults and slow < number / 1000 and grown < _GROWN_BYTES
    details = {
        one.name: {"p999_ms": round(one.p999_ms, 3), "over_5_ms": one.over_5_ms, "grown_bytes": one.grown_bytes}
        for one in verdicts
    }
    return Figure(text, met, {**details, "faults": faults[:10]})


class _Storm:
    """Throws damaged copies of what was said at those who hear it, between any two events of a run."""

    def __init__(self, fleet: Fleet, forged: bool, seed: int) -> None:
        self.fleet, self.forged = fleet, forged
        self.thrown = self.understood = 0
        self._rng = np.random.default_rng(seed)
        self._said: deque[tuple[str, bytes]] = deque(maxlen=_KEPT)
        post = fleet.bus.post

        def heard(topic: str, payload: bytes) -> None:
            self._said.append((topic, payload))
            post(topic, payload)

        fleet.bus.post = heard  # type: ignore[method-assign]

    def throw(self, number: int) -> None:
        """Throw so many."""
        if not self._said:
            return
        samples = tuple(payload for _, payload in self._said)
        topics = {payload: topic for topic, payload in self._said}
        for _ in range(number):
            data = fuzz.mutate(self._rng, samples)
            self.thrown += 1
            if not self.forged and data in topics:
                self._repeat(topics[data], data)  # which must do nothing
            elif not self.forged and _makes_sense(data):
                self.understood += 1  # what only a signature tells from the real thing, as one that is led astray
            else:
                self._hand_over(data)

    def _repeat(self, topic: str, data: bytes) -> None:
        for name, device in self.fleet.devices.items():
            if topic == down_topic("f", name):
                device.receive(data)
        if self.fleet.coordinator is not None and topic.startswith(up_topic("f", "")):
            self.fleet.coordinator.receive(topic, data)

    def _hand_over(self, data: bytes) -> None:
        fleet, whom = self.fleet, int(self._rng.integers(len(self.fleet.names)))
        name = fleet.names[whom]
        if not name:
            sender = fleet.plan.devices[int(self._rng.integers(len(fleet.plan.devices)))]
            if fleet.coordinator is not None:
                fleet.coordinator.receive(up_topic("f", sender), data)
        elif name in fleet.devices:
            fleet.devices[name].receive(data, to_all=bool(self._rng.integers(2)))


def _makes_sense(data: bytes) -> bool:
    try:
        decode(data)
    except DecodeError:
        return False
    return True


def handlers(scale: Scale) -> Figure:
    """Measure the handlers' half of R9."""
    logging.getLogger("edge_runtime").setLevel(logging.CRITICAL)
    try:
        calm = _storm(scale, forged=False)
        forged = _storm(scale, forged=True)
    finally:
        logging.getLogger("edge_runtime").setLevel(logging.NOTSET)
    number, grown = calm["thrown"] + forged["thrown"], max(calm["grown_bytes"], forged["grown_bytes"])
    text = (
        f"{number} messages at live handlers: 0 crashes, {grown / 1e6:.1f} MB more memory after the first tenth; "
        f"the run then ends in the {'same' if calm['right'] else 'WRONG'} state, and under forged messages in "
        f"{'one' if forged['right'] else 'NONE'} that its journal gives again"
    )
    met = calm["right"] and forged["right"] and grown < _GROWN_BYTES
    return Figure(text, met, {"damaged": calm, "forged": forged})


def _storm(scale: Scale, forged: bool) -> dict[str, Any]:
    wanted = scale.of(_MESSAGES // 2, 1000)
    plan = Plan(rounds=30 if scale.part >= 1 else 3, keep_updates=True)
    with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
        expected = undisturbed(Path(folder) / "calm", plan)
        fleet = Fleet(Path(folder) / "storm", plan, in_memory=True)
        storm, each = _Storm(fleet, forged, scale.seed), 200
        warm_bytes = 0
        while storm.thrown < wanted:
            if fleet.coordinator is not None and fleet.coordinator.core.progress.round < plan.rounds - 1:
                fleet.bus.step()
            storm.throw(each)
            if not warm_bytes and storm.thrown > wanted // 10:
                warm_bytes = meter.rss_bytes()
        grown = meter.rss_bytes() - warm_bytes
        done = _end(fleet)
        if forged:
            assert fleet.journal is not None
            right = done and replay(fleet.run_of(), fleet.journal).equal
        else:
            right = done and fleet.outcome() == expected
        fleet.close()
    return {"thrown": storm.thrown, "left_out": storm.understood, "grown_bytes": grown, "right": right}


def _end(fleet: Fleet) -> bool:
    """Let honest traffic end the run; one that too many were made to refuse says so, ends, and is resumed."""
    until_s = fleet.bus.now_s + 10_000
    while not fleet.finished and fleet.bus.now_s < until_s:
        fleet.play(100.0)
        if not fleet.finished and fleet.coordinator is not None:
            fleet.guard("", fleet.coordinator.deadline)
            if fleet.coordinator.core.stuck:
                fleet.kill("")
                fleet.boot("")
    return fleet.finished


class _Wire:
    """A bus in memory between threads."""

    def __init__(self) -> None:
        self._ends: list[_End] = []
        self._lock = threading.Lock()

    def end(self) -> "_End":
        """Make one more participant."""
        with self._lock:
            self._ends.append(_End(self))
            return self._ends[-1]

    def post(self, topic: str, payload: bytes) -> None:
        """Bring a message to all who listen."""
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            if end.hears(topic):
                end.receive(topic, payload)


class _End:
    """A participant; implements `Transport`."""

    def __init__(self, bus: _Wire) -> None:
        self._bus, self._topics = bus, list[str]()
        self.receive: Callable[[str, bytes], None] = lambda topic, payload: None

    def hears(self, topic: str) -> bool:
        """Say whether this one listens to a topic."""
        return any(
            len(a := one.split("/")) == len(b := topic.split("/"))
            and all(x in ("+", y) for x, y in zip(a, b, strict=True))
            for one in list(self._topics)
        )

    def start(self, topics: Any, receive: Any, connected: Any) -> None:
        """Listen."""
        self._topics, self.receive = list(topics), receive
        connected(True)

    def listen(self, topics: Any) -> None:
        """Listen to more."""
        self._topics = [*self._topics, *topics]

    def unlisten(self, topics: Any) -> None:
        """Listen to fewer."""
        self._topics = [one for one in self._topics if one not in topics]

    def send(self, topic: str, payload: bytes) -> bool:
        """Post."""
        self._bus.post(topic, payload)
        return True

    def unsent_bytes(self) -> int:
        """Count nothing."""
        return 0

    def traffic(self) -> Traffic:
        """Count nothing."""
        return Traffic(0, 0)

    def close(self) -> None:
        """Hear no more."""
        self._topics = []


class _Trainer:
    """Trains at once, in a thread, as the real one tells from one."""

    def __init__(self, name: str, store: MemoryStore) -> None:
        self._name, self._store = name, store
        self._done: Callable[[Task, Outcome], None] = lambda task, outcome: None

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell."""
        self._done = done

    def start(self, task: Task) -> None:
        """Train."""
        threading.Thread(target=self._train, args=(task,), daemon=True).start()

    def _train(self, task: Task) -> None:
        state = self._store.state(task.base)
        times = 0 if state is None else codec.decode_state(state, 4)["times"]
        up, times = train(self._name, wire.decode(self._store.read(task.down.digest), Down, LAYOUT), times)
        self._done(task, Outcome(wire.encode(up), codec.encode_state({"times": times})))

    def stop(self) -> None:
        """Nothing is to be stopped."""


HANDLERS: tuple[tuple[type, str], ...] = (
    (Device, "receive"),
    (Device, "handle"),
    (Device, "start"),
    (Device, "tick"),
    (Device, "pump"),
    (Device, "finished"),
    (Coordinator, "receive"),
    (Coordinator, "handle"),
    (Coordinator, "start"),
    (Coordinator, "tick"),
    (Coordinator, "pump"),
    (MemoryStore, "remember"),
    (MemoryStore, "check"),
    (MemoryStore, "put"),
    (Journal, "accept"),
    (Journal, "keep"),
    (Journal, "open_round"),
    (Journal, "close_round"),
)
_FAULTS: tuple[Callable[[], Exception], ...] = (
    lambda: ValueError("planted"),
    lambda: AssertionError("planted"),
    lambda: KeyError("planted"),
    lambda: MemoryError("planted"),
    lambda: RecursionError("planted"),
)


class _Heard(logging.Handler):
    """Counts what was logged as a fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.faults += record.exc_info is not None


def _planted(owner: type, name: str, at: int, times: int, fault: Callable[[], Exception]) -> tuple[Any, list[int]]:
    """Let calls `at` to `at + times` of a method raise; gives the patch, and the list that counts what was raised."""
    real, calls, raised, lock = getattr(owner, name), [0], list[int](), threading.Lock()

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        with lock:
            calls[0] += 1
            now = at <= calls[0] < at + times
        if now:
            raised.append(calls[0])
            raise fault()
        return real(self, *arguments, **options)

    return mock.patch.object(owner, name, call), raised


def live(folder: Path, plan: Plan, limit_s: float) -> str:
    """Play a run with the real loops of agents and coordinator, in threads; give the model's digest, or what ended."""
    bus, stop, ended = _Wire(), threading.Event(), list[str]()
    fleet: Any = mock.Mock(plan=plan)
    run = Fleet.run_of(fleet)
    threads = []
    for name in plan.devices:
        store = MemoryStore()
        trainer: Any = _Trainer(name, store)

        def serve_device(name: str = name, store: MemoryStore = store, trainer: Any = trainer) -> None:
            try:
                Agent("f", name, store, trainer, bus.end(), Hello(name)).run(stop.is_set)
            except BaseException as error:  # noqa: BLE001  # its end must be known
                ended.append(f"agent {name} ended: {error!r}")

        threads.append(threading.Thread(target=serve_device, daemon=True))
    journal = Journal(folder, durable=False)
    end = bus.end()
    inbox = Inbox(end, "f")
    coordinator = Coordinator(run.plan("run", journal.next_epoch()), run, journal, TopicPost("f", end))
    until_s = time.monotonic() + limit_s

    def watch(_: Coordinator) -> None:
        if time.monotonic() > until_s:
            raise TimeoutError("the run does not end")

    try:
        inbox.start()
        for thread in threads:
            thread.start()
        serve(coordinator, inbox, end, 60.0, watch)
        shared = coordinator.server.shared()
        assert shared is not None
        return ended[0] if ended else hashlib.sha256(shared.tobytes()).hexdigest()
    except Exception as error:  # noqa: BLE001  # that is what is asked
        return f"coordinator ended: {error!r}"
    finally:
        stop.set()
        for thread in threads:
            thread.join(5.0)
        journal.close()


def faults_of_ours(scale: Scale) -> Figure:
    """Measure R22."""
    rng, wrong, tried, raised_at_all = random.Random(scale.seed), dict[str, str](), 0, 0
    heard, plan = _Heard(), Plan(rounds=2)
    logger = logging.getLogger("edge_runtime")
    logger.addHandler(heard)
    logger.propagate = False
    chosen = HANDLERS if scale.part >= 1 else tuple(rng.sample(HANDLERS, scale.of(len(HANDLERS), 3)))
    try:
        with (
            tempfile.TemporaryDirectory(dir=scale.folder) as folder,
            mock.patch.object(agents, "_TICK_S", 0.2),
            mock.patch.object(serving, "_TICK_S", 0.2),
        ):
            expected = live(Path(folder) / "calm", plan, 60.0)
            for owner, name in chosen:
                for number, fault in enumerate(_FAULTS if scale.part >= 1 else _FAULTS[:1]):
                    heard.faults, at = 0, rng.randint(1, 4)
                    patch, raised = _planted(owner, name, at, rng.randint(1, 3), fault)
                    place = f"{owner.__name__}.{name}, call {at}, {type(fault()).__name__}"
                    with patch:
                        end = live(Path(folder) / f"{owner.__name__}{name}{number}", plan, 60.0)
                    tried, raised_at_all = tried + 1, raised_at_all + len(raised)
                    if end != expected:
                        wrong[place] = end
                    elif heard.faults < len(raised):
                        wrong[place] = f"{len(raised)} raised, {heard.faults} logged"
    finally:
        logger.removeHandler(heard)
        logger.propagate = True
    text = (
        f"{raised_at_all} faults planted in {len(chosen)} handlers of agent and coordinator, in {tried} runs: "
        f"{len(wrong)} silent deaths or other ends"
    )
    return Figure(text, not wrong and raised_at_all >= tried // 2, {"wrong": wrong})


ROWS = [
    Row("R9", "mutated bytes at every decoder", "1,000,000: 0 uncaught, +< 32 MB, p99.9 < 5 ms", decoders),
    Row("R9-live", "mutated messages at live handlers", "1,000,000: no crash, no growth, the right end", handlers),
    Row("R22", "faults planted in every handler", "0 silent deaths", faults_of_ours),
]
