"""`edge-coordinator simulate`: the same server, devices and protocol in one process, on a bus in memory.

Deterministic: the same seed and configuration give the same report, apart from times. Devices train one after the
other, so that what it costs in memory is one trainer.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime import trainer
from edge_runtime.agent import Device
from edge_runtime.compute import DEFAULT, Compute
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.run import Run
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.data import DataConfig
from edge_runtime.errors import RunError
from edge_runtime.message import Message, Task, down_topic, encode, up_topic
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import CALM, Faults, Loopback, LoopbackEnd

log = logging.getLogger(__name__)

_TICK_S = 2.0
_LIMIT_S = 1e6
_STEADY = Pace()


class InlineTrainer:
    """Runs tasks in this process, as events on the bus."""

    def __init__(self, bus: Loopback, job: trainer.Job, store: MemoryStore, task_s: Callable[[int], float]) -> None:
        """Take tasks for one device, of which the n-th takes `task_s(n)` seconds of virtual time."""
        self._bus, self._job, self._store, self._task_s = bus, job, store, task_s
        self._tasks = 0
        self._done: Callable[[Task, Outcome], None] = lambda task, result: None

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell what came of a task."""
        self._done = done

    def start(self, task: Task) -> None:
        """Do the task, and tell when its time has passed."""
        outcome = trainer.work(self._job, task, self._store)
        self._bus.later(self._task_s(self._tasks), lambda: self._done(task, outcome))
        self._tasks += 1


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


def simulate(
    run: Run, run_id: str, scene: Scene, journal: Journal, watch: Callable[[Coordinator], None]
) -> Coordinator:
    """Play a whole run; `watch` is called after every event that the coordinator saw.

    Raises:
        RunError: the run cannot go on.
    """
    bus = Loopback(run.config.seed, scene.faults)
    end = bus.end()

    def send(device: str, message: Message) -> bool:
        return end.send(down_topic(run.config.fleet, device), encode(message))

    plan = run.plan(run_id, journal.next_epoch())
    coordinator = Coordinator(plan, run, journal, send)

    def receive(topic: str, payload: bytes) -> None:
        coordinator.receive(topic, payload)
        coordinator.check()
        watch(coordinator)

    end.start([up_topic(run.config.fleet, "+")], receive, lambda up: None)
    coordinator.start()
    ticking = [coordinator.tick]
    slow = scene.pace.slow(run.config.seed, scene.devices)
    for part, name in enumerate(scene.devices):
        part_data = replace(scene.data, part=part)
        job = trainer.Job(name, part_data, str(scene.cache), scene.compute, scene.factories)
        task_s = functools.partial(scene.pace.task_s, run.config.seed, name, slow=name in slow)
        ticking.append(_device(bus, run.config.fleet, job, task_s).tick)
    for event in ticking:
        _every(bus, event)
    while not coordinator.core.progress.finished:
        bus.step()
        if bus.now_s > _LIMIT_S:
            raise RunError("the simulated run did not finish: the faults leave too little through")
    return coordinator


def _device(bus: Loopback, fleet: str, job: trainer.Job, task_s: Callable[[int], float]) -> Device:
    end, store, name = bus.end(), MemoryStore(), job.device
    inline = InlineTrainer(bus, job, store, task_s)

    def send(message: Message) -> bool:
        return end.send(up_topic(fleet, name), encode(message))

    device = Device(store, inline, send, "simulated", lambda run: _figures(end))
    inline.attach(device.finished)
    end.start([down_topic(fleet, name)], lambda topic, payload: device.receive(payload), lambda up: None)
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
