"""A run computed again from its journal alone: every checkpoint must come out as it did, and so must the model.

What that shows: the shared model is those updates and nothing else, each counted once, whoever was late or killed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from edge_runtime.algorithm import CutServer, Server
from edge_runtime.compression import codec
from edge_runtime.coordinator import privacy
from edge_runtime.coordinator.choices import Choices
from edge_runtime.coordinator.downlink import Downlink
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run
from edge_runtime.errors import ConfigError


@dataclass(frozen=True)
class Verdict:
    """What came of a replay."""

    rounds: int
    """Checkpoints that were compared."""
    updates: int
    """Updates that were absorbed."""
    differs: int | None
    """The first round after which the state differs; of an asynchronous run, the number of the last update before."""
    model: bool | None
    """Whether the final shared model is the same; None: the run is not finished, or has none."""

    @property
    def equal(self) -> bool:
        """Say whether nothing differs."""
        return self.differs is None and self.model is not False


def replay(run: Run, journal: Journal) -> Verdict:
    """Compute a run again.

    Raises:
        ConfigError: its updates were not kept, or it has no shared model that a coordinator computes.
        RunError: an update in the journal is damaged.
    """
    if run.config.habit == "decentralised":
        raise ConfigError(f"{journal.folder}: a decentralised run has no rounds at the coordinator to compute again")
    if not run.config.keep_updates:
        raise ConfigError(f"{journal.folder}: this run did not keep its updates; start one with run.keep-updates=true")
    if run.config.privacy_noise:
        raise ConfigError(
            f"{journal.folder}: noise was added from a secret that is not kept: nobody can compute it again"
        )
    states = _versions if run.config.habit == "asynchronous" else _rounds
    again = _Again(run, journal)
    compared, differs, known = 0, None, journal.checkpoints()
    for number in states(again, known):
        compared += 1
        if again.digest() != known[number]:
            differs = number
            break
    return Verdict(compared, again.updates, differs, None if differs is not None else again.same_model())


class _Again:
    """The server half, from the run's start."""

    def __init__(self, run: Run, journal: Journal) -> None:
        layout = run.description.model.layout
        self.run, self.journal, self.updates = run, journal, 0
        self.server: Server = run.parts.Server(run.settings, layout, run.initial, {}, run.config.seed)
        privacy.guard(run.config, journal, self.server)
        choices = Choices(run, journal)
        if isinstance(self.server, CutServer):
            self.server.cut_of = choices.cut_of
        self.downlink = Downlink(run, self.server, journal, choices)

    def absorb(self, device: str, payload: bytes) -> None:
        """Count an update in."""
        self.downlink.take(device, payload)
        self.updates += 1

    def digest(self) -> str:
        """Name the state as a checkpoint's digest does."""
        return hashlib.sha256(codec.encode_state(self.downlink.state())).hexdigest()

    def same_model(self) -> bool | None:
        """Compare the shared model with the one that the run left."""
        shared, known = self.server.shared(), self.journal.get("model")
        if shared is None or known is None:
            return None
        return hashlib.sha256(shared.astype("<f4").tobytes()).hexdigest() == known


def _rounds(again: _Again, known: dict[int, str]) -> Iterator[int]:
    for number in sorted(known):
        for device, payload in again.journal.payloads(number):
            again.absorb(device, payload)
        again.downlink.close()
        yield number


def _versions(again: _Again, known: dict[int, str]) -> Iterator[int]:
    updates = again.run.plan("", 0).updates
    for number, device, payload in again.journal.payloads_in_order():
        again.absorb(device, payload)
        if again.updates % again.run.config.buffer == 0 or again.updates == updates:
            again.downlink.close()
        if number in known:
            yield number
