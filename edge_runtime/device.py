"""A device: carries out what its core decides, on a store and a trainer.

Synchronous, without a thread or a clock of its own: `agent.py` feeds it from the network, a timer and the trainer
process, `simulate.py` from a loop. Nothing here needs numpy, so that an idle agent stays small.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from edge_runtime.among import Among, Circle
from edge_runtime.errors import DecodeError, DeviceError
from edge_runtime.message import Blob, Chunk, Hello, Message, Noted, Offer, Task, Welcome, decode
from edge_runtime.protocol import (
    Action,
    Check,
    DeviceCore,
    Keep,
    Recall,
    Remember,
    Send,
    SendChunks,
    Talk,
    Train,
    Tune,
)
from edge_runtime.seal import ORDINARY, STALE, Envelope, Plain, SealError, rare
from edge_runtime.store import Store, without_result
from edge_runtime.trainer_process import Outcome

log = logging.getLogger(__name__)


class Trainer(Protocol):
    """Runs a task beside the agent."""

    def start(self, task: Task) -> None:
        """Begin with `task`, dropping any other that is under way."""
        ...


class Tuner(Protocol):
    """What a device asks of its link beside sending."""

    def tune(self, blob: Blob | None) -> None:
        """Listen to what all devices are sent of this blob, and of no other."""
        ...

    def room(self) -> bool:
        """Say whether the link takes another chunk now."""
        ...


class Device:
    """One device: core, store and trainer. Every method is called from one thread."""

    def __init__(  # noqa: PLR0913, PLR0917  # one for each seam
        self,
        store: Store,
        trainer: Trainer,
        send: Callable[[Message], bool],
        hello: Hello,
        figures: Callable[[str], dict[str, float]],
        circle: Circle | None = None,
        tuner: Tuner | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        """Take up where the store says this device was.

        `figures(run)` gives what is metered outside the trainer (bytes on the socket since the run's first task, RSS of
        the agent): it goes along with each offer. Without a `circle` the device refuses runs among equals; without a
        `tuner` it hears only what it is sent by itself. `envelope` opens what the coordinator says, and is the one by
        which `send` seals; without one messages are bare.
        """
        self.store = store
        self.among: Among | None = None
        self.received_bytes = 0
        self.chunks_sent = 0
        self.dropped: Counter[str] = Counter()
        """Messages of the coordinator that were not taken, by reason."""
        self._envelope: Envelope = envelope or Plain()
        self._nudged = False
        self._trainer, self._send, self._figures, self._hello = trainer, send, figures, hello
        self._circle, self._tuner = circle, tuner
        self._broken = False
        self._unsent: dict[tuple[str, int], Blob] = {}
        self._sent: set[tuple[str, int]] = set()
        """Chunks of what is pending that were sent since it was made or found."""
        self._run = ""
        """The run that was last heard of."""
        self._noted = ("", "")
        """In which run which profile of this device is noted."""
        self._mended = ""
        """Digest of the Down of the last task for which something was damaged."""
        self.core = self._load()

    def _load(self) -> DeviceCore:
        memory = self.store.load()
        core = DeviceCore(memory, self.store.held(), self._hello)
        self.among = None if memory.talk is None else self._gather(memory.talk)
        if self.among is not None and not self.among.core.done:
            core.resume(self.among.task)
        return core

    def forget(self) -> None:
        """Take nothing more until the next tick, which goes on from what is in the store, as after a crash."""
        self._broken = True

    def revive(self) -> None:
        """Forget all that is not in the store, as a crash would, and go on."""
        self._unsent.clear()
        self._sent.clear()
        self.core = self._load()
        self.start()

    def _gather(self, talk: Talk) -> Among:
        if self._circle is None:
            raise DecodeError("this device takes no part in runs among equals")
        return Among(talk, self.store, self._circle, self._trainer.start, self._remember_said)

    @property
    def waiting(self) -> bool:
        """Say whether something is outstanding, so that `tick` should come soon."""
        return self._broken or self.core.waiting or (self.among is not None and self.among.core.waiting)

    def start(self) -> None:
        """Say hello, and go on with a run among equals."""
        self._do(self.core.start())
        if self.among is not None:
            self._guard(self.among.begin)

    def tick(self) -> None:
        """Repeat what is outstanding. After a failed write: try the disk, and start anew once it is mended."""
        self._nudged = False
        if self._broken:
            self.store.probe()
            self._broken = False
            self.revive()
        self._do(self.core.tick())
        if self.among is not None:
            self._guard(self.among.tick)
        self._introduce()

    def _introduce(self) -> None:
        """Say what this device is, until the run has noted it."""
        profile = self.store.profile() if self._run and not self._broken else None
        if profile is not None and self._noted != (self._run, profile.digest):
            self._send(profile)

    def receive(self, data: bytes, to_all: bool = False) -> None:
        """Take hostile bytes from the network: what is no message, or `to_all` no chunk, is counted and dropped."""
        try:
            message, anew = (decode(data), False) if to_all else self._envelope.open(data)
            if to_all and not isinstance(message, Chunk):
                raise DecodeError("only chunks are sent to all")
        except DecodeError as error:
            self._drop(error)
            return
        self._nudged = False
        if anew:
            self._do(self.core.start())
        self.handle(message)

    def _drop(self, error: DecodeError) -> None:
        """Count what is not taken; where that may be of a coordinator that was started anew, let it hear a word."""
        reason = error.reason if isinstance(error, SealError) else "malformed"
        self.dropped[reason] += 1
        if rare(self.dropped[reason]):
            level = logging.INFO if reason in ORDINARY else logging.WARNING
            log.log(level, "dropped from the coordinator: %s (%d so far)", error, self.dropped[reason])
        if reason == STALE and not self._nudged:
            self._nudged = True
            self._do(self.core.nudge())

    def receive_from(self, peer: str, data: bytes, to_all: bool) -> None:
        """Take hostile bytes from a peer, said to all or to this device only; outside a run among equals: drop them."""
        among = self.among
        if among is not None:
            self._guard(lambda: among.receive(peer, data, to_all))

    def halve_chunks(self) -> None:
        """Cut what is pending in smaller chunks."""
        self._do(self.core.halve_chunks())

    def pump(self) -> bool:
        """Send chunks that were asked for, as far as the network takes them; say whether some are left."""
        self._guard(self._pump)
        return bool(self._unsent)

    def _pump(self) -> None:
        while self._unsent and (self._tuner is None or self._tuner.room()):
            (digest, index), blob = next(iter(self._unsent.items()))
            del self._unsent[digest, index]
            self.chunks_sent += 1
            if not self._send(Chunk(digest, index, self.store.read(digest, *blob.span(index)))):
                self._unsent.clear()  # the link is down: it will all be asked for again

    def handle(self, message: Message) -> None:
        """Take a message."""
        match message:
            case Welcome() | Task() if message.run != self._run:
                self._run = message.run
                self._introduce()
            case Noted():
                self._noted = (message.run, message.digest)
            case _:
                pass
        self._do(self.core.handle(message))

    def finished(self, task: Task, outcome: Outcome) -> None:
        """Take what the trainer reports: durable first, offered then."""
        if task.phase == "peers":
            self._finished_among(task, outcome)
            return
        if outcome.reason:
            self._do(self.core.failed(task, outcome.reason))
            return
        try:
            blob = self.store.put(outcome.payload, outcome.state)
            self._keep_personal(task, outcome)
        except DeviceError:
            self._broken = True
            raise
        blob = replace(blob, chunk=task.down.chunk)
        sizes = {"payload-bytes-up": float(blob.size), "payload-bytes-down": float(task.down.size)}
        metrics = {**outcome.metrics, **sizes, **self._figures(task.run)}
        self._do(self.core.trained(task, blob, metrics))

    def _keep_personal(self, task: Task, outcome: Outcome) -> None:
        """Keep the model that a task left, and serve it if it is as good on this device's own data as the one served.

        Whatever the coordinator makes of the update, which is the shared model's: this one is the device's.
        """
        if not outcome.personal:
            return
        found, served = outcome.metrics["accuracy-personal"], outcome.metrics.get("accuracy-served")
        better = served is None or found >= served
        self.store.keep_personal(task.run, outcome.personal, better)
        said = "serving it" if better else "going on with the one that is served"
        log.info("the personal model has %.1f %% on this device's own data: %s", 100 * found, said)

    def _finished_among(self, task: Task, outcome: Outcome) -> None:
        among = self.among
        if among is None or among.task.run != task.run:
            return
        if outcome.reason:
            self._do(self.core.failed(among.task, outcome.reason))
        else:
            self._guard(lambda: self._keep_personal(task, outcome))
            self._guard(lambda: among.finished(task, outcome))

    def _do(self, actions: list[Action]) -> None:
        self._guard(lambda: self._carry_out(actions))

    def _guard(self, event: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            event()
        except DeviceError:
            # What the core believes may not be on the disk: forget it, as a crash would, until the disk is mended.
            self._broken = True
            raise

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(action.message)
                case SendChunks() if self._lost(action):
                    log.warning("the result of this device is damaged: it is made again")
                    self.store.remember(without_result(self.core.memory))
                    self.revive()
                case SendChunks():
                    self._unsent |= {(action.blob.digest, index): action.blob for index in action.indices}
                    self._pump()
                case Tune() if self._tuner is not None:
                    self._tuner.tune(action.blob)
                case Recall() | Keep() | Check():
                    self._take_in(action)
                case Train() if not self.store.sound(action.task):
                    self._mend(action.task)
                case Train() if action.task.phase == "peers":
                    self._begin(action.task)
                case Train():
                    self.among = None
                    self._trainer.start(action.task)
                case Remember():
                    self._unsent.clear()
                    self._sent.clear()
                    self.store.remember(action.memory)

    def _mend(self, task: Task) -> None:
        """Go on with what the store has that is good; a task for which that was done before cannot be done here."""
        if self._mended == task.down.digest:
            reason = "what this device writes does not come back as it was: mend its disk"
            self._carry_out(self.core.failed(task, reason))
        else:
            self._mended = task.down.digest
            self.revive()

    def _lost(self, action: SendChunks) -> bool:
        """Say whether a blob is not here, or (asked when chunks are asked for that were sent before) damaged."""
        digest, wanted = action.blob.digest, {(action.blob.digest, index) for index in action.indices}
        again = wanted & self._sent
        self._sent |= wanted
        if digest not in self.store.held():
            return True
        return bool(again) and hashlib.sha256(self.store.read(digest)).hexdigest() != digest

    def _take_in(self, action: Recall | Keep | Check) -> None:
        match action:
            case Recall():
                self._carry_out(self.core.recalled(action.blob, self.store.partial(action.blob)))
            case Keep():
                self.store.keep(action.blob, action.chunk)
            case Check():
                self._carry_out(self.core.checked(action.blob, self.store.check(action.blob)))

    def _begin(self, task: Task) -> None:
        """Begin a run among equals."""
        known = self.core.memory.talk
        talk = known if known is not None and known.task.run == task.run else Talk(task)
        try:
            self.among = self._gather(talk)
        except DecodeError as error:
            self._carry_out(self.core.failed(task, str(error)))
            return
        self._remember_said(talk.said, done=False)
        self.among.begin()

    def _remember_said(self, said: tuple[Offer, ...], done: bool) -> None:
        """Make durable what this device said to its peers; at the end of the run, offer the coordinator its figures."""
        if self.among is None:
            raise AssertionError("nothing is said outside a run among equals")
        task, metrics = self.among.task, self.among.metrics
        self.core.memory = replace(self.core.memory, talk=Talk(task, said))
        if done:
            nothing = Blob(hashlib.sha256(b"").hexdigest(), 0)
            self._carry_out(self.core.trained(task, nothing, {**metrics, **self._figures(task.run)}))
        else:
            self.store.remember(self.core.memory)
