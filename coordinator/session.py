"""One run from its first to its last message, over a broker or in memory, and the report that it leaves."""

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime import algorithm
from edge_runtime.coordinator import figures, privacy, report
from edge_runtime.coordinator.gate import Gate
from edge_runtime.coordinator.journal import Journal, Rejected
from edge_runtime.coordinator.presence import Presence
from edge_runtime.coordinator.profiles import read as profiles_of
from edge_runtime.coordinator.run import Run, describe, prepare
from edge_runtime.coordinator.serve import Inbox, TopicPost, serve
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.coordinator.tally import Tally
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt

Watch = Callable[[Coordinator], None]
Beat = Callable[[bool], None]
"""Told on every turn of the loop whether the network thread turns too."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: what to report of it."""

    run: Run
    run_id: str
    rows: list[report.Row]
    rejected: list[Rejected]
    started: str
    wall_s: float
    broker: str
    choices: dict[str, str]
    """What was chosen for devices by their budgets, and why; or why they got no task."""
    privacy: str
    """What the run has promised to its devices (`privacy.statement`); empty: nothing was asked."""
    dropped: Mapping[str, Mapping[str, int]]
    """How many messages of every device were not taken since the coordinator was last started, by reason."""
    profiles: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """What devices said of themselves."""


def over_mqtt(
    run: Run,
    link: Link,
    folder: Path,
    broker: str,
    watch: Watch,
    gate: Gate | None = None,
    beat: Beat = lambda alive: None,
) -> Outcome:
    """Coordinate a run over a broker; one that `folder` holds unfinished goes on where it stopped.

    With a `gate` messages are sealed.

    Raises:
        LinkError: the broker cannot be reached or refuses us.
        RunError: the run cannot go on.
        ConfigError: `folder` holds another run.
    """
    started, since_s = _now(), time.monotonic()
    journal = Journal(folder)
    transport = Mqtt(link)
    try:
        run_id = _identify(journal, run, secrets.token_hex(16))
        journal.set("link", json.dumps(dataclasses.asdict(dataclasses.replace(link, password=None))))
        inbox = Inbox(transport, run.config.fleet)
        plan = run.plan(run_id, journal.next_epoch(int(time.time())))
        tally = Tally(traffic=transport.traffic)
        post = TopicPost(run.config.fleet, transport, gate, tally)
        coordinator = Coordinator(plan, run, journal, post, gate, tally)
        inbox.start()
        presence = Presence(folder)

        def turn(coordinator: Coordinator) -> None:
            beat(transport.alive())
            tally.lost = inbox.lost
            presence.note(coordinator)
            watch(coordinator)

        serve(coordinator, inbox, transport, run.deadline_s, turn)
        presence.write(coordinator)
        rows, rejected = figures.rows(journal.accepted(), run.config), journal.rejected()
        choices, promised = _given(journal), _promised(journal, run)
        told = profiles_of(folder)
        _keep_model(folder, coordinator)
    finally:
        transport.close()
        journal.close()
    dropped, spent_s = coordinator.dropped.counts, time.monotonic() - since_s
    return Outcome(run, run_id, rows, rejected, started, spent_s, broker, choices, promised, dropped, told)


def in_memory(run: Run, scene: Scene, folder: Path, watch: Watch) -> Outcome:
    """Play a run in this process."""
    started, since_s = _now(), time.monotonic()
    journal = Journal(folder, durable=False)  # a simulation that is cut short begins anew
    try:
        name = hashlib.sha256(json.dumps(describe(run), sort_keys=True).encode()).hexdigest()[:32]
        run_id = _identify(journal, run, name)
        presence = Presence(folder)

        def turn(coordinator: Coordinator) -> None:
            presence.note(coordinator)
            watch(coordinator)

        coordinator = simulate(run, run_id, scene, journal, turn)
        presence.write(coordinator)
        rows, rejected = figures.rows(journal.accepted(), run.config), journal.rejected()
        choices, promised = _given(journal), _promised(journal, run)
        _keep_model(folder, coordinator)
    finally:
        journal.close()
    dropped, spent_s = coordinator.dropped.counts, time.monotonic() - since_s
    return Outcome(run, run_id, rows, rejected, started, spent_s, "loopback", choices, promised, dropped)


def _given(journal: Journal) -> dict[str, str]:
    lacking = {device: f"no task: {why}" for device, why in journal.devices.unfit().items()}
    return {**lacking, **journal.devices.choices()}


def _promised(journal: Journal, run: Run) -> str:
    trained = [(item.round, item.device) for item in journal.accepted() if item.phase == "train"]
    return privacy.statement(run.config, journal, trained)


def _keep_model(folder: Path, coordinator: Coordinator) -> None:
    """Leave the shared model, if there is one, as little-endian float32 values in the order of its layout."""
    shared = coordinator.server.shared()
    if shared is not None:
        data = shared.astype("<f4").tobytes()
        write_atomic(folder / "model.bin", data)
        coordinator.journal.set("model", hashlib.sha256(data).hexdigest())


def baseline_of(run: Run, table: dict[str, Any]) -> Run:
    """Prepare dense FedAvg on the same work, float32 both ways: same model, rounds, seed and local training."""
    fields = dataclasses.fields(algorithm.load("fedavg").Config)
    shared = {field.name.replace("_", "-") for field in fields}
    same = {key: value for key, value in table.items() if key in shared}
    return prepare(
        dataclasses.replace(
            run.config,
            algorithm="fedavg",
            habit="",
            buffer=1,
            up="lossless",
            down="lossless",
            widths="",
            codings="",
            importance="first",
            collect=False,
        ),
        same,
    )


def _identify(journal: Journal, run: Run, fresh: str) -> str:
    """Name the run: as the journal does, which must then hold this very run; else `fresh`."""
    description = json.dumps(describe(run), sort_keys=True)
    held = journal.get("description")
    if held is None:
        journal.files.keep_seeds(run.description.seed_set)
        journal.set("asked", json.dumps(run.asked))
        journal.set("parameters", str(len(run.initial)))
        journal.set("started", _now())
        journal.set("run", fresh)
        journal.set("description", description)
    elif held != description:
        raise ConfigError(f"{journal.folder} holds another run; give its settings again, or another folder")
    return journal.get("run") or fresh


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
