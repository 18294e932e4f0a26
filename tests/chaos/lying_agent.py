"""An agent whose owner lies, or lets the liars look: `python -m tests.chaos.lying_agent '{...}'`.

The real agent, on a real broker, with a real trainer process; only what becomes of a trained update is another's. An
honest device of the trial leaves a copy of it in a folder, since an attacker is taken to know all; a liar waits for
those of its round, and sends what `coordinator/adversary.py` makes of them, as the simulation's liars do.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_runtime import algorithm, models, wire
from edge_runtime.agent import Agent
from edge_runtime.command_line import until_signal
from edge_runtime.coordinator.adversary import LABEL_FLIP, Adversary, crafted
from edge_runtime.files import write_atomic
from edge_runtime.link import Link
from edge_runtime.message import Hello, Task
from edge_runtime.mqtt import Mqtt
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Job, Outcome, ProcessTrainer

_PATIENCE_S = 120.0
_LOOK_S = 0.02


@dataclass(frozen=True)
class Part:
    """What one agent of the trial is told, as JSON."""

    device: str
    port: int
    store: str
    job: Job
    """Of its trainer."""
    seen: str
    """The folder that the liars look into."""
    kind: str
    """How they lie; empty: nobody does."""
    liars: list[str]
    devices: list[str]
    """All of the cohort."""
    algorithm: str
    model: str
    seed: int


class OpenTrainer(ProcessTrainer):
    """A trainer whose updates the liars see, or make."""

    def __init__(self, part: Part) -> None:
        """Train as `part` says."""
        super().__init__(part.job, Path(part.store), warm=True)
        self._part, self._folder_seen = part, Path(part.seen)

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell what came of a task: of a liar's what it wants told."""
        super().attach(lambda task, outcome: done(task, self._told(task, outcome)))

    def _told(self, task: Task, outcome: Outcome) -> Outcome:
        part = self._part
        if task.phase != "train" or outcome.reason or part.kind in ("", LABEL_FLIP):
            return outcome
        if part.device not in part.liars:
            self._folder_seen.mkdir(parents=True, exist_ok=True)
            write_atomic(self._seen(task.round, part.device), outcome.payload)
            return outcome
        return replace(outcome, payload=self._lie(task.round, outcome.payload))

    def _lie(self, round_: int, payload: bytes) -> bytes:
        part = self._part
        layout, kind = models.find(part.model).layout, algorithm.load(part.algorithm).Up
        liars = frozenset(part.liars)
        adversary = Adversary(crafted(part.kind), liars, lambda data: wire.decode_up(data, kind, layout, ()), part.seed)
        for device in sorted(set(part.devices) - liars):
            adversary.see(device, round_, self._look(round_, device))
        return adversary.forge(part.device, round_, payload, part.devices)

    def _look(self, round_: int, device: str) -> bytes:
        path, until_s = self._seen(round_, device), time.monotonic() + _PATIENCE_S
        while not path.exists() and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
        return path.read_bytes()

    def _seen(self, round_: int, device: str) -> Path:
        return self._folder_seen / f"{round_:04d}-{device}"


def main(part: Part) -> None:
    """Be an agent until a signal ends it."""
    store = FileStore(Path(part.store))
    trainer = OpenTrainer(part)
    transport = Mqtt(Link("127.0.0.1", part.port, part.device))
    hello = Hello("lying-agent", room=1_000_000_000)
    try:
        Agent("default", part.device, store, trainer, transport, hello).run(until_signal())
    finally:
        store.close()


if __name__ == "__main__":
    told: dict[str, Any] = json.loads(sys.argv[1])
    main(Part(**told))
