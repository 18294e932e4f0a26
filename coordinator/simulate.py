"""`edge-coordinator simulate`: the same server, devices and protocol in one process, on a bus in memory.

Deterministic: the same seed and configuration give the same report, apart from times. Devices train one after the
other, so that what it costs in memory is one trainer.
"""

import fnmatch
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_runtime import algorithm, trainer, wire
from edge_runtime.agent import TopicCircle, TopicTuner, hear
from edge_runtime.compute import DEFAULT, Compute
from edge_runtime.coordinator.adversary import ALTERED, LABEL_FLIP, Adversary, Attack, crafted
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.run import Run
from edge_runtime.coordinator.serve import TopicPost
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.data import DataConfig
from edge_runtime.device import Device
from edge_runtime.errors import RunError
from edge_runtime.message import Hello, Message, Task, ask_topic, down_topic, encode, up_topic
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import CALM, Faults, Loopback, LoopbackEnd
from edge_runtime.workshop import Workshop

log = logging.getLogger(__name__)

_TICK_S = 2.0
_LIMIT_S = 1e6
_KEPT_MODELS = 4
_KEPT_SPLITS = 128
"""Devices whose data is kept at hand: a quarter of a gigabyte of fashion-mnist, dealt to 100 devices."""
_WAIT_S = 0.5
_STEADY = Pace()
_HONEST = Attack()


Report = Callable[[Task, Outcome], Outcome | None]
"""What a device tells of a task that it has done; None: it waits a little longer."""


class InlineTrainer:
    """Runs tasks in this process, as events on the bus."""

    def __init__(
        self, bus: Loopback, task_s: Callable[[int], float], work: Callable[[Task], Outcome], report: Report
    ) -> None:
        """Do tasks with `work`, of which the n-th takes `task_s(n)` seconds of virtual time."""
        self._bus, self._task_s, self._work, self._report = bus, task_s, work, report
        self._tasks = 0
        self._done: Callable[[Task, Outcome], None] = lambda task, result: None

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell what came of a task."""
        self._done = done

    def start(self, task: Task) -> None:
        """Do the task, and tell when its time has passed."""
        outcome = self._work(task)
        self._bus.later(self._task_s(self._tasks), lambda: self._tell(task, outcome))
        self._tasks += 1

    def _tell(self, task: Task, outcome: Outcome) -> None:
        told = self._report(task, outcome)
        if told is None:
            self._bus.later(_WAIT_S, lambda: self._tell(task, outcome))
        else:
            self._done(task, told)


@dataclass(frozen=True)
class Scene:
    """Who takes part in a simulated run, and over what network."""

    data: DataConfig
    """The data set; each device has one part of it."""
    devices: list[str]
    """Ids of the devices, in the order of the parts."""
    cache: Path
    """Where prepared data sets are kept."""
    compute: Compute = DEFAULT
    factories: tuple[str, ...] = ()
    faults: Faults = CALM
    pace: Pace = _STEADY
    attack: Attack = _HONEST
    only: str = "*"
    """A pattern of those devices that take part."""
    hellos: Mapping[str, Hello] = field(default_factory=dict)
    """What devices say of themselves, by id; those that are not there say what `compute` has."""

    def hello(self, device: str, algorithm: str) -> Hello:
        """Say what a device says of itself: it allows the algorithm of the run, which this very process has loaded."""
        room_bytes = self.compute.memory_mb * 1_000_000
        return self.hellos.get(device, Hello("simulated", room=room_bytes, algorithms=(algorithm,)))


def simulate(
    run: Run, run_id: str, scene: Scene, journal: Journal, watch: Callable[[Coordinator], None]
) -> Coordinator:
    """Play a whole run; `watch` is called after every event that the coordinator saw.

    Raises:
        RunError: the run cannot go on.
    """
    bus = Loopback(run.config.seed, scene.faults)
    end = bus.end()
    plan = run.plan(run_id, journal.next_epoch())
    coordinator = Coordinator(plan, run, journal, TopicPost(run.config.fleet, end))
    pump = Pump(bus, coordinator)

    def receive(topic: str, payload: bytes) -> None:
        coordinator.receive(topic, payload)
        pump()
        coordinator.check()
        if coordinator.broken:
            raise coordinator.broken
        heard = len(coordinator.core.online | coordinator.unfit.keys())
        if coordinator.unfit and not coordinator.core.open and heard == run.config.devices:
            coordinator.deadline()  # nobody else will come
        watch(coordinator)

    end.start([up_topic(run.config.fleet, "+")], receive, lambda up: None)
    coordinator.start()
    ticking = [coordinator.tick, *(device.tick for device in _devices(bus, run, scene, coordinator))]
    for event in ticking:
        _every(bus, event)
    while not coordinator.core.progress.finished:
        bus.step()
        if bus.now_s > _LIMIT_S:
            raise RunError("the simulated run did not finish: the faults leave too little through")
    return coordinator


class Pump:
    """Calls `Coordinator.pump` when something is due; to be called after every event."""

    def __init__(self, bus: Loopback, coordinator: Coordinator) -> None:
        self._bus, self._coordinator = bus, coordinator
        self._due_s = math.inf

    def __call__(self) -> None:
        """Send what may be sent now, and come again for the rest."""
        due_s = self._coordinator.pump(self._bus.now_s)
        if due_s is not None and due_s < self._due_s:
            self._due_s = due_s
            self._bus.later(due_s - self._bus.now_s, self._again)

    def _again(self) -> None:
        self._due_s = math.inf
        self()


def _devices(bus: Loopback, run: Run, scene: Scene, coordinator: Coordinator) -> Iterator[Device]:
    """Start the devices, in the order of their parts."""
    seed, layout = run.config.seed, run.description.model.layout
    slow, liars = scene.pace.slow(seed, scene.devices), scene.attack.members(seed, scene.devices)
    honest = Workshop(_KEPT_MODELS, splits=_KEPT_SPLITS)
    alter = ALTERED.get(scene.attack.kind)
    crooked = Workshop(_KEPT_MODELS, splits=_KEPT_SPLITS, alter=alter) if liars and alter else honest
    adversary = None
    if liars and scene.attack.kind != LABEL_FLIP:
        most = algorithm.wire_values(run.settings)
        decode = functools.partial(wire.decode_up, kind=run.parts.Up, layout=layout, private=(), most=most)
        adversary = Adversary(crafted(scene.attack.kind), liars, decode, seed, run.config.habit != "asynchronous")
    for part, name in enumerate(scene.devices):
        if not fnmatch.fnmatchcase(name, scene.only):
            continue
        hello = scene.hello(name, run.parts.name)
        compute = replace(scene.compute, memory_mb=-(-hello.room // 1_000_000))
        allowed = scene.factories, hello.algorithms
        job = trainer.Job(name, replace(scene.data, part=part), str(scene.cache), compute, *allowed)
        store = MemoryStore()
        workshop = crooked if name in liars else honest
        work = functools.partial(trainer.work, job, store=store, workshop=workshop)
        task_s = functools.partial(scene.pace.task_s, seed, name, slow=name in slow)
        report = functools.partial(_report, adversary, name in liars, name, coordinator)
        yield _device(bus, run.config.fleet, name, store, InlineTrainer(bus, task_s, work, report), hello)


def _report(
    adversary: Adversary | None, lies: bool, name: str, coordinator: Coordinator, task: Task, outcome: Outcome
) -> Outcome | None:
    """Give what a device tells: what it found unless it `lies`. Liars wait for the honest devices of their round."""
    if adversary is None or task.phase != "train":
        return outcome
    if not lies:
        adversary.see(name, task.round, outcome.payload)
    if not lies or outcome.reason:
        return outcome
    cohort = coordinator.core.progress.cohort
    if not adversary.ready(task.round, cohort):
        return None
    return replace(outcome, payload=adversary.forge(name, task.round, outcome.payload, cohort))


def _device(bus: Loopback, fleet: str, name: str, store: MemoryStore, inline: InlineTrainer, hello: Hello) -> Device:
    end = bus.end()

    def send(message: Message) -> bool:
        return end.send(up_topic(fleet, name), encode(message))

    circle = TopicCircle(fleet, name, end, lambda: bus.now_s)

    def figures(run: str) -> dict[str, float]:  # noqa: ARG001
        return {**_figures(end), "virtual-s": bus.now_s}

    device = Device(store, inline, send, hello, figures, circle, TopicTuner(fleet, end))
    inline.attach(device.finished)

    def receive(topic: str, payload: bytes) -> None:
        if topic == down_topic(fleet, name):
            device.receive(payload)
        else:
            hear(device, topic, payload)

    end.start([down_topic(fleet, name), ask_topic(fleet, name, "+")], receive, lambda up: None)
    device.start()
    return device


def _figures(end: LoopbackEnd) -> dict[str, float]:
    traffic = end.traffic()
    return {"message-bytes-up": float(traffic.up_bytes), "message-bytes-down": float(traffic.down_bytes)}


def _every(bus: Loopback, event: Callable[[], None]) -> None:
    def again() -> None:
        event()
        bus.later(_TICK_S, again)

    bus.later(_TICK_S, again)
