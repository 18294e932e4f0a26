"""A device's part in a run among equals: carries out what its `PeersCore` decides."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from edge_runtime import peers
from edge_runtime.errors import DecodeError
from edge_runtime.message import Chunk, Message, Offer, Task
from edge_runtime.peers import Action, Ask, Learn, PeersCore, Remember, Say, SayChunks
from edge_runtime.protocol import Talk
from edge_runtime.seal import SealError, rare
from edge_runtime.store import Store
from edge_runtime.trainer_process import Outcome

log = logging.getLogger(__name__)


class Circle(Protocol):
    """How a device reaches its peers."""

    name: str
    """This device's own."""

    def join(self, names: Sequence[str], keys: Mapping[str, bytes]) -> None:
        """Listen to what these say to all; `keys`: of all peers that are heard, where they seal.

        Raises:
            DecodeError: one is no key, or there are none, and this device seals.
        """
        ...

    def open(self, peer: str, data: bytes, to_all: bool) -> Message:
        """Decode hostile bytes of a peer, said to all or to this device only.

        Raises:
            DecodeError: not a message, or not one by that peer.
        """
        ...

    def say(self, message: Message) -> None:
        """Tell all who listen."""
        ...

    def ask(self, peer: str, message: Message) -> None:
        """Tell one of them."""
        ...

    def now_s(self) -> float:
        """Read a clock that never goes back."""
        ...


class Among:
    """One run among equals. Every method is called from one thread, and may raise DeviceError: the disk is at fault."""

    def __init__(
        self,
        talk: Talk,
        store: Store,
        circle: Circle,
        train: Callable[[Task], None],
        remember: Callable[[tuple[Offer, ...], bool], None],
    ) -> None:
        """Take up where `talk` says this device was.

        Args:
            talk: the run, and what this device said in it.
            store: where blobs and states lie.
            circle: the network.
            train: starts the trainer on one round, a task of the phase `peers`.
            remember: makes durable what this device said; True: the run is over.

        Raises:
            DecodeError: the coordinator sent no start of such a run, or none for this device.
        """
        self.task = talk.task
        self.metrics: dict[str, float] = {}
        self._heard_bytes = 0
        self._store, self._circle, self._train, self._remember = store, circle, train, remember
        start = peers.decode_start(store.read(talk.task.down.digest), circle.name)
        self.core = PeersCore(talk.task.run, circle.name, start, talk.said)
        circle.join(start.speakers(circle.name), start.key_of())

    def begin(self) -> None:
        """Go on with the run."""
        self._carry_out(self.core.begin())

    def tick(self) -> None:
        """Ask for what is missing, or stop waiting for it."""
        self._carry_out(self.core.tick(self._circle.now_s()))

    def receive(self, peer: str, data: bytes, to_all: bool) -> None:
        """Take hostile bytes from a peer, said to all or to this device only."""
        try:
            message = self._circle.open(peer, data, to_all)
        except DecodeError as error:
            reason = error.reason if isinstance(error, SealError) else "garbage"
            self.core.counts[reason] += 1
            if rare(self.core.counts[reason]):
                log.warning("dropped from peer %r: %s (%d so far)", peer[:64], error, self.core.counts[reason])
            return
        self._carry_out(self.core.hear(peer, message) if to_all else self.core.asked(peer, message))

    def finished(self, task: Task, outcome: Outcome) -> None:
        """Take the outcome of a round that did not fail."""
        if (task.run, task.round) != (self.task.run, self.core.round):
            return
        for peer, fault in outcome.faults.items():
            self.core.faults[peer] += 1
            log.warning("round %d: what peer %s said is left out: %s", task.round, peer, fault)
        blob = replace(self._store.put(outcome.payload, outcome.state), chunk=self.task.down.chunk)
        sizes = {"payload-bytes-up": float(blob.size), "payload-bytes-down": float(self._heard_bytes)}
        dropped = {"peers-missing": float(self.core.counts["missing"]), "peers-unfit": float(self.core.faults.total())}
        self.metrics = {**outcome.metrics, **sizes, **dropped}
        self._carry_out(self.core.trained(blob))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Say():
                    self._circle.say(action.message)
                case SayChunks():
                    for index in action.indices:
                        data = self._store.read(action.blob.digest, *action.blob.span(index))
                        self._circle.say(Chunk(action.blob.digest, index, data))
                case Ask():
                    self._circle.ask(action.peer, action.message)
                case Learn():
                    self._learn(action)
                case Remember():
                    self._remember(action.said, action.done)

    def _learn(self, action: Learn) -> None:
        self._heard_bytes = sum(len(up) for up in action.heard.values())
        heard = self._store.write(peers.pack(action.heard))
        base = self.core.said[-1].blob.digest if self.core.said else ""
        self._train(replace(self.task, round=action.round, base=base, down=heard))
