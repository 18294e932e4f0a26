"""A whole run on real disks, in one process: real cores, drivers, journal and stores, and a toy algorithm.

The bus and the clock are simulated, the files are real. What is to happen at a write or at a message is the business of
whoever makes a `Fleet`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge_runtime import algorithm, wire
from edge_runtime.agent import TopicTuner, hear
from edge_runtime.compression import codec
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig
from edge_runtime.coordinator.serve import TopicPost
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.device import Device
from edge_runtime.errors import DeviceError
from edge_runtime.message import Hello, Task, down_topic, encode, up_topic
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.store import FileStore, MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import Loopback
from edge_runtime.tree import Layout

SIZE = 700
"""Values of the model: an update goes in six chunks."""
LAYOUT = Layout(("w",), ((SIZE,),))
CHUNK_BYTES = 512
LIMIT_S = 3000.0


@dataclass(frozen=True)
class Config:
    """Nothing can be set."""


@dataclass(frozen=True)
class Down:
    """What a device is told."""

    round: int
    values: np.ndarray[Any, np.dtype[np.float32]]
    seen: int
    """How often this device was absorbed, as the coordinator remembers it."""


@dataclass(frozen=True)
class Up:
    """What a device answers."""

    round: int
    value: int
    seen: int
    rest: np.ndarray[Any, np.dtype[np.float32]]


def noise(seed: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw what makes a payload long."""
    return np.random.default_rng(seed).random(size, np.float32)


class Server:
    """Adds up what devices send, which depends on every update before."""

    habits = ("synchronous", "asynchronous")

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
        self.model[2:] = noise(self.round, SIZE - 2)
        self.sum = 0

    def shared(self) -> Any:
        return self.model

    def state(self) -> dict[str, Any]:
        return {"round": self.round, "model": self.model}

    def restore(self, state: Any) -> None:
        self.round, self.model = state["round"], state["model"].copy()


class Client:
    """What is asked of a client half without a round: `train` does that."""

    own_model = False


TOY = algorithm.Algorithm("toy", Config, Down, Up, Client, Server)  # type: ignore[arg-type]


def train(device: str, down: Down, times: int) -> tuple[Up, int]:
    """Do a device's round: what it sends depends on how often it was counted."""
    value = ((times + 1) * 31 + ord(device[-1]) * 7 + int(down.values[0])) % 9973
    return Up(down.round, value, times + 1, noise(value, SIZE - 2)), times + 1


@dataclass(frozen=True)
class Plan:
    """What a fleet runs."""

    devices: tuple[str, ...] = ("a", "b", "c")
    rounds: int = 1
    buffer: int = 0
    """Of an asynchronous run; 0: a synchronous one."""
    quorum: float = 1.0
    keep_updates: bool = False


class Crash(BaseException):
    """A process died here. No handler of the product may take it for an error."""


@dataclass
class Seen:
    """What a fleet did."""

    births: dict[str, int] = field(default_factory=dict)
    trained: int = 0
    complaints: int = 0
    """Times that a device said that its disk takes nothing."""
    disagreed: int = 0
    """Times that a device and the coordinator counted that device differently."""


class Fleet:
    """A coordinator (its name is empty) and its devices, each with a folder."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        sends: Callable[[str], None] = lambda name: None,
        acts: Callable[[str], None] = lambda name: None,
        in_memory: bool = False,
    ) -> None:
        """Boot everything.

        Args:
            folder: for the run, and the devices' stores.
            plan: what is run.
            sends: called before and after every message with the sender's name; may raise `Crash`.
            acts: called with a name before that process does something, and with "-" after.
            in_memory: devices keep their state in memory.
        """
        self.folder, self.plan, self.sends, self.acts = folder, plan, sends, acts
        self.bus, self.seen = Loopback(), Seen(dict.fromkeys(("", *plan.devices), 0))
        self.names = ("", *plan.devices)
        self.ends = {name: self.bus.end() for name in self.names}
        self.stores: dict[str, Any] = {name: MemoryStore() for name in plan.devices} if in_memory else {}
        self.in_memory = in_memory
        self.coordinator: Coordinator | None = None
        self.journal: Journal | None = None
        self.devices: dict[str, Device] = {}
        for name in self.names:
            self.boot(name)

    def guard(self, name: str, event: Callable[[], None]) -> None:
        """Run what happens in a process; if it dies there, start it again a little later."""
        self.acts(name)
        try:
            event()
        except Crash:
            self.kill(name)
            self.bus.later(1.0, lambda: self.boot(name))
        except DeviceError:
            self.seen.complaints += 1
            if name not in self.devices and (name or self.coordinator is None):
                self.kill(name)  # it could not start: exit code 4, and somebody starts it again
                self.bus.later(5.0, lambda: self.boot(name))
        finally:
            self.acts("-")

    def kill(self, name: str) -> None:
        """End a process without a word."""
        self.seen.births[name] += 1
        self.ends[name].close()
        self.devices.pop(name, None)
        if name:
            if not self.in_memory and name in self.stores:
                self.stores.pop(name).close()
        elif self.journal is not None:
            self.journal.close()
            self.journal = self.coordinator = None

    def close(self) -> None:
        """End all."""
        for name in self.names:
            self.kill(name)

    def boot(self, name: str) -> None:
        """Start a process."""
        self.guard(name, lambda: self._boot_device(name) if name else self._boot_coordinator())

    def run_of(self) -> Run:
        """Give the run."""
        plan = self.plan
        description = Setup("toy", {}, ModelCard("own:toy", LAYOUT), 1)
        config = RunConfig(
            algorithm="fedavg",
            rounds=plan.rounds,
            devices=len(plan.devices),
            evaluate=False,
            chunk_bytes=CHUNK_BYTES,
            quorum=plan.quorum,
            keep_updates=plan.keep_updates,
            habit="asynchronous" if plan.buffer else "synchronous",
            buffer=max(1, plan.buffer),
        )
        return Run(config, TOY, Config(), description, np.zeros(SIZE, np.float32))

    def _boot_coordinator(self) -> None:
        self.journal = journal = Journal(self.folder / "run")
        end, run = self.ends[""], self.run_of()
        post: Any = SimpleNamespace(room=lambda: True)
        out = TopicPost("f", end)

        def send(device: str, message: Any) -> bool:
            self.sends("")
            sent = out.send(device, message)
            self.sends("")
            return sent

        post.send, post.share = send, lambda chunk: self._share(out, chunk)
        self.coordinator = coordinator = Coordinator(
            run.plan("run", journal.next_epoch(int(self.bus.now_s))), run, journal, post
        )
        birth = self.seen.births[""]

        def pump() -> None:
            due_s = coordinator.pump(self.bus.now_s) if birth == self.seen.births[""] else None
            if due_s is not None:
                self.bus.later(due_s - self.bus.now_s, lambda: self.guard("", pump))

        def receive(topic: str, payload: bytes) -> None:
            coordinator.receive(topic, payload)
            pump()

        end.start([up_topic("f", "+")], lambda t, p: self.guard("", lambda: receive(t, p)), lambda up: None)
        coordinator.start()
        self._tick("", coordinator.tick, birth)

    def _share(self, out: TopicPost, chunk: Any) -> bool:
        self.sends("")
        sent = out.share(chunk)
        self.sends("")
        return sent

    def _boot_device(self, name: str) -> None:
        end, birth = self.ends[name], self.seen.births[name]
        if not self.in_memory:
            self.stores[name] = FileStore(self.folder / name)

        def send(message: Any) -> bool:
            self.sends(name)
            sent = end.send(up_topic("f", name), encode(message))
            self.sends(name)
            return sent

        def begin(task: Task) -> None:
            self.bus.later(0.5, lambda: self._finish(name, birth, task))

        trainer: Any = SimpleNamespace(start=begin)
        hello = Hello(f"{name}{birth}")
        device = Device(self.stores[name], trainer, send, hello, lambda run: {}, tuner=TopicTuner("f", end))
        self.devices[name] = device
        own = down_topic("f", name)

        def receive(topic: str, payload: bytes) -> None:
            self.guard(name, lambda: device.receive(payload) if topic == own else hear(device, topic, payload))

        end.start([own], receive, lambda up: None)
        device.start()
        self._tick(name, device.tick, birth)

    def _finish(self, name: str, birth: int, task: Task) -> None:
        if birth == self.seen.births[name]:
            self.guard(name, lambda: self._train(name, task))

    def _train(self, name: str, task: Task) -> None:
        device, store = self.devices[name], self.stores[name]
        if task.down.digest not in store.held():
            return  # overtaken by another task
        state = store.state(task.base)
        times = 0 if state is None else codec.decode_state(state, 4)["times"]
        down = wire.decode(store.read(task.down.digest), Down, LAYOUT)
        self.seen.disagreed += down.seen != times and bool(task.base)
        up, times = train(name, down, times)
        self.seen.trained += 1
        device.finished(task, Outcome(wire.encode(up), codec.encode_state({"times": times})))

    def _tick(self, name: str, event: Callable[[], None], birth: int) -> None:
        def again() -> None:
            if birth == self.seen.births[name]:
                self.guard(name, event)
                self._tick(name, event, birth)

        self.bus.later(2.0, again)

    @property
    def finished(self) -> bool:
        """Say whether the run is over and every device knows what came of its last update."""
        done = self.coordinator is not None and self.coordinator.core.progress.finished
        return done and all(
            name in self.devices and self.devices[name].core.memory.pending is None for name in self.plan.devices
        )

    def play(self, until_s: float = LIMIT_S) -> bool:
        """Go on until the run is over; False: it is not."""
        until_s += self.bus.now_s
        while not self.finished and self.bus.now_s < until_s:
            self.bus.step()
        return self.finished

    def outcome(self) -> str:
        """Name the end: the model, what is counted of each device in the journal, and what each device remembers."""
        assert self.coordinator is not None
        assert self.journal is not None
        counted = sorted((one.round, one.phase, one.device) for one in self.journal.accepted())
        bases = [self.devices[name].core.memory.base for name in self.plan.devices]
        journal_bases = [self.journal.devices.base(name) for name in self.plan.devices]
        found = hashlib.sha256(self.coordinator.server.shared().tobytes())
        found.update(repr((counted, bases, bases == journal_bases)).encode())
        return found.hexdigest()


def undisturbed(folder: Path, plan: Plan) -> str:
    """Play a run in peace; give its outcome."""
    fleet = Fleet(folder, plan)
    assert fleet.play(), "the undisturbed run does not end"
    found = fleet.outcome()
    fleet.close()
    return found
