"""The device's side of the protocol, without clock, socket or disk: state and event in, actions out.

`agent.py` feeds it and carries its actions out, in order; a simulation does the same. What makes it safe:

* A result is durable before the first word about it is said (`Remember` stands before `Send(Offer)`), is never
  computed again and never overwritten: until its fate is known, every new task is answered with the old offer.
* The state that training leaves takes effect only with the fate `applied`: it is filed under the digest of the update,
  and `Memory.base` names the digest in force. Every other fate leaves the old state in force.
* `Memory` is written in one piece, so that there is no instant at which two files disagree.

Anything may be lost, doubled or late; `tick` repeats whatever is outstanding.
"""

from dataclasses import dataclass, replace

from edge_runtime.message import (
    CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    Blob,
    Chunk,
    Fate,
    Hello,
    Message,
    Need,
    Noted,
    Offer,
    Profile,
    Refuse,
    Status,
    Task,
    Welcome,
)
from edge_runtime.transfer import Incoming

_UNASKED = 4
"""Chunks, of one full chunk's bytes at most, that follow an offer at once: a round trip less for each update, and TCP
notices a lost offer by what comes behind it."""


@dataclass(frozen=True)
class Talk:
    """A run among equals, as far as this device has come in it."""

    task: Task
    """The coordinator's, by which it began."""
    said: tuple[Offer, ...] = ()
    """What this device said last, oldest first; the state that the newest left is in force."""


@dataclass(frozen=True)
class Memory:
    """What a device must not forget."""

    run: str = ""
    epoch: int = 0
    round: int = -1
    """The last round whose result was made, whatever became of it."""
    base: str = ""
    """Digest of the last update that was applied: the name of the state in force. Empty: none."""
    setup: str = ""
    """Digest of the run's setup, kept for its next round."""
    pending: Offer | None = None
    talk: Talk | None = None


@dataclass(frozen=True)
class Send:
    """Send this message to the coordinator."""

    message: Message


@dataclass(frozen=True)
class SendChunks:
    """Send these chunks of a blob that is held here."""

    blob: Blob
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Recall:
    """Look which chunks of a blob were kept, drop those of any other, and call `recalled`."""

    blob: Blob


@dataclass(frozen=True)
class Tune:
    """Listen to what all devices are sent of this blob, and of no other; None: of none."""

    blob: Blob | None


@dataclass(frozen=True)
class Keep:
    """Put a chunk of an incoming blob aside."""

    blob: Blob
    chunk: Chunk


@dataclass(frozen=True)
class Check:
    """All chunks are here: compare the digest, and call `checked`."""

    blob: Blob


@dataclass(frozen=True)
class Train:
    """Do the task with the state filed under `base` (empty: none), and call `trained` or `failed`."""

    task: Task


@dataclass(frozen=True)
class Remember:
    """Make the memory durable before the next action; states and blobs that it does not name may go."""

    memory: Memory


Action = Send | SendChunks | Recall | Tune | Keep | Check | Train | Remember


class DeviceCore:
    """State of one device. Every method takes an event and gives the actions that follow, to be done in order."""

    def __init__(self, memory: Memory, held: set[str], hello: Hello) -> None:
        """Start from what was remembered; `held` are the digests of the blobs that are complete on disk."""
        self.memory = memory
        self.task: Task | None = None
        self.doing = "idle"
        self._held = held
        self._hello = hello
        self._incoming: Incoming | None = None
        self._coming = 0
        """Chunks of the task's Down that are on their way, unasked."""
        self._tuned: Blob | None = None
        self._heard = False
        """Whether the coordinator has said anything since the last hello of a start or a new connection."""

    def resume(self, task: Task) -> None:
        """Be at a run among equals again that the memory says is not over."""
        self.task, self.doing = task, "training"

    @property
    def fetching(self) -> bool:
        """Say whether a blob is on its way in."""
        return self._incoming is not None

    @property
    def waiting(self) -> bool:
        """Say whether something is outstanding, an answer to the hello included, so that `tick` should come soon."""
        return self.memory.pending is not None or self._incoming is not None or not self._heard

    def start(self) -> list[Action]:
        """Say hello (after a start or a new connection), offer what is pending, and ask anew for what was under way."""
        asked: list[Action] = [Send(self._incoming.ask())] if self._incoming is not None else []
        self._heard = False
        return [Send(self._hello), *self._offer(), *asked]

    def tick(self) -> list[Action]:
        """Repeat what is outstanding; if nothing is, say hello."""
        if self.memory.pending is not None:
            return self._offer()
        if self._incoming is not None:
            need = self._incoming.tick()
            return [Send(need)] if need else []
        return [Send(self._status())] if self.task else [Send(self._hello)]

    def nudge(self) -> list[Action]:
        """Say a word, so that a coordinator that does not know this device any more hears of it."""
        return self._offer() or [Send(self._status() if self.task else self._hello)]

    def handle(self, message: Message) -> list[Action]:
        """Take a message from the coordinator; what is not for a device, or not now, gives no action."""
        self._heard = True
        match message:
            case Task():
                return self._on_task(message)
            case Chunk():
                return self._on_chunk(message)
            case Need():
                return self._on_need(message)
            case Fate():
                return self._on_fate(message)
            case Welcome() | Hello() | Status() | Refuse() | Offer() | Profile() | Noted():
                return []

    def recalled(self, blob: Blob, have: set[int]) -> list[Action]:
        """Go on after `Recall`: ask for what is missing, and is not on its way."""
        self._incoming = Incoming(blob, have)
        coming, self._coming = self._coming, 0
        if self._incoming.complete:
            return [Check(blob)]
        tuned = self._tune(blob if blob.shared else None)
        if self.task is not None and blob == self.task.down and self._incoming.expect(coming):
            return tuned
        return [*tuned, Send(self._incoming.ask())]

    def checked(self, blob: Blob, good: bool) -> list[Action]:
        """Go on after `Check`: with the next blob or the training, or (bad) with what is not good of the same blob."""
        self._incoming = None
        if good:
            self._held.add(blob.digest)
        return self._advance()

    def trained(self, task: Task, blob: Blob, metrics: dict[str, float]) -> list[Action]:
        """Take the result of `Train`, whose bytes (and state) are already durable."""
        if self.task is None or not _same(task, self.task):
            return []
        offer = Offer(task.run, task.round, task.phase, blob, metrics)
        talk = self.memory.talk if self.memory.talk and self.memory.talk.task.run == task.run else None
        self.memory = Memory(task.run, self.task.epoch, _done(task), task.base, task.setup.digest, offer, talk)
        self._held = {task.setup.digest, blob.digest}
        self._rest()
        first = tuple(range(min(blob.chunks, _UNASKED, max(1, CHUNK_BYTES // blob.chunk))))
        unasked = [SendChunks(blob, first)] if first else []
        return [Remember(self.memory), Send(replace(offer, sent=len(first))), *unasked]

    def halve_chunks(self) -> list[Action]:
        """Cut what is pending in smaller chunks: the broker does not carry these."""
        pending = self.memory.pending
        if pending is None or pending.blob.chunk <= MIN_CHUNK_BYTES:
            return []
        return self._cut(pending, max(MIN_CHUNK_BYTES, pending.blob.chunk // 2))

    def failed(self, task: Task, reason: str) -> list[Action]:
        """Take the failure of `Train`."""
        if self.task is None or not _same(task, self.task):
            return []
        self._rest()
        return [Send(Refuse(task.run, task.round, False, reason, task.phase))]

    def _on_task(self, task: Task) -> list[Action]:
        if self.memory.pending is not None:
            return self._answer(task, self.memory.pending)
        if self._stale(task):
            return self._decline(task)
        if self.task is not None and _same(task, self.task):
            self.task = task
            if self._incoming is not None and self._incoming.blob not in (task.setup, task.down):
                self._incoming = None  # it is cut in other chunks now
                return self._advance()
            return [Send(self._status())]
        if task.base and (task.run, task.base) != (self.memory.run, self.memory.base):
            return [Send(Refuse(task.run, task.round, True, "this device no longer has its state", task.phase))]
        self.task, self._coming = task, task.sent
        self._incoming = None
        return self._advance()

    def _answer(self, task: Task, pending: Offer) -> list[Action]:
        """Offer what is pending; if it is this task's, of which a later start of the coordinator asks, note that."""
        if (task.run, task.round, task.phase) != (pending.run, pending.round, pending.phase):
            return self._offer()
        if task.epoch > self.memory.epoch:
            self.memory = replace(self.memory, epoch=task.epoch)
            return [Remember(self.memory), *self._answer(task, pending)]
        return self._cut(pending, task.down.chunk) if task.down.chunk < pending.blob.chunk else self._offer()

    def _cut(self, pending: Offer, chunk: int) -> list[Action]:
        self.memory = replace(self.memory, pending=replace(pending, blob=replace(pending.blob, chunk=chunk)))
        return [Remember(self.memory), *self._offer()]

    def _stale(self, task: Task) -> bool:
        """Say whether a later start of the coordinator was heard, or as late a task of the same one done."""
        asked, done, now = (task.epoch, _done(task)), self.memory, self.task
        if task.run == done.run and asked <= (done.epoch, done.round):
            return True
        return now is not None and task.run == now.run and asked < (now.epoch, _done(now))

    def _decline(self, task: Task) -> list[Action]:
        """Say to the coordinator of now that what it asks for is done; it may have forgotten that, or wait for good."""
        done = self.memory
        if self.task is not None or (task.run, task.epoch) != (done.run, done.epoch):
            return []
        return [Send(Refuse(task.run, task.round, False, f"round {done.round} is behind this device", task.phase))]

    def _advance(self) -> list[Action]:
        if self.task is None:
            return []
        for blob in (self.task.setup, self.task.down):
            if blob.digest not in self._held:
                self.doing = "fetching"
                return [Recall(blob)]
        self.doing = "training"
        return [*self._tune(None), Train(self.task)]

    def _tune(self, blob: Blob | None) -> list[Action]:
        tuned, self._tuned = self._tuned, blob
        return [] if blob == tuned else [Tune(blob)]

    def _on_chunk(self, chunk: Chunk) -> list[Action]:
        incoming = self._incoming
        if incoming is None or not incoming.take(chunk):
            return []
        actions: list[Action] = [Keep(incoming.blob, chunk)]
        if incoming.complete:
            actions.append(Check(incoming.blob))
        elif need := incoming.ask_next():
            actions.append(Send(need))
        return actions

    def _on_need(self, need: Need) -> list[Action]:
        pending = self.memory.pending
        if pending is None or need.digest != pending.blob.digest or max(need.want) >= pending.blob.chunks:
            return []
        return [SendChunks(pending.blob, need.want)]

    def _on_fate(self, fate: Fate) -> list[Action]:
        pending = self.memory.pending
        if pending is None or _identity(fate, fate.digest) != _identity(pending, pending.blob.digest):
            return []
        self._held.discard(pending.blob.digest)
        takes_effect = fate.fate == "applied" and pending.phase == "train"
        base = pending.blob.digest if takes_effect else self.memory.base
        self.memory = replace(self.memory, base=base, pending=None)
        return [Remember(self.memory)]

    def _offer(self) -> list[Action]:
        return [] if self.memory.pending is None else [Send(self.memory.pending)]

    def _status(self) -> Status:
        if self.task is None:
            raise AssertionError("a status without a task")
        return Status(self.task.run, self.task.round, self.doing)

    def _rest(self) -> None:
        self.task, self.doing = None, "idle"


def _done(task: Task) -> int:
    """Number the last round that is behind a device which has done a task: `score` comes before that of its number."""
    return task.round - (task.phase == "score")


def _same(one: Task, other: Task) -> bool:
    """Compare tasks without the epoch and the chunks: a coordinator that was started again asks for nothing new."""
    return _bare(one) == _bare(other)


def _bare(task: Task) -> Task:
    return replace(task, epoch=0, sent=0, setup=replace(task.setup, chunk=1), down=replace(task.down, chunk=1))


def _identity(message: Offer | Fate, digest: str) -> tuple[str, int, str, str]:
    return message.run, message.round, message.phase, digest
