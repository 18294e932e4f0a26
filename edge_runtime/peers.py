"""A run among equals, from one device's side, without clock, socket or disk: state and event in, actions out.

The coordinator begins the run by an ordinary task of the phase `peers`, whose down-blob is a `Start`, and is not needed
any more until devices offer their figures at the end. In between every device goes through the rounds by itself:

* It trains round n with what its neighbours said in round n - 1 (its own server half makes a Down of that), and says
  the outcome, an Up as a blob, to all who listen: an `Offer` and the chunks, unasked.
* It goes on as soon as all neighbours were heard. At the deadline, counted from when the waiting began, it goes on
  without those that were not.
* Repair is the listener's: it asks one by one who has not been heard (`Status`), or whose chunks are missing (`Need`).
  What was said can be asked for during the next three rounds; who asks later is told that it is gone (`Refuse`), and
  need not wait for the deadline.
* A device forgets nothing that it has said: `Remember` stands before the first word of it. What it heard it may forget
  (a crash), and ask for again. So without deadlines passing, a run ends in the same bits whatever is lost on the way.

By rule: of two things that a neighbour says for one round the first that is complete counts; what is late, of another
run, of a stranger or too large is dropped and counted. Whether an Up makes sense is judged in the trainer.
"""

import base64
import binascii
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import WINDOW, Blob, Chunk, Message, Need, Offer, Refuse, Status, check_name
from edge_runtime.seal import POINT_BYTES
from edge_runtime.topology import TOPOLOGIES, neighbours
from edge_runtime.transfer import Incoming

KEPT = 4
"""Rounds for which a device can repeat what it said."""
_MAX_PEERS = 4096
_MAX_ROUNDS = 1_000_000


@dataclass(frozen=True)
class Start:
    """What a device must know to go through a run without a coordinator."""

    peers: tuple[str, ...]
    """All devices of the run, itself included."""
    rounds: int
    deadline_s: float
    """How long a device waits for its neighbours in a round."""
    topology: str
    fanout: int
    """Neighbours that the topology `random` draws."""
    seed: int
    """Of that draw."""
    max_bytes: int
    """Largest Up that is listened to."""
    keys: tuple[str, ...] = ()
    """Public keys of the peers, in their order, by which they seal (`seal.py`): compressed points in base64, an empty
    text for one that is heard no more. Empty tuple: they do not seal."""

    def key_of(self) -> dict[str, bytes]:
        """Give the keys of the peers that are heard, by their names."""
        return {peer: base64.b64decode(key) for peer, key in zip(self.peers, self.keys, strict=False) if key}

    def speakers(self, device: str) -> tuple[str, ...]:
        """List whom a device listens to in some round."""
        return tuple(sorted({*self.peers} - {device})) if self.topology == "random" else self.neighbours(device, 0)

    def neighbours(self, device: str, round_: int) -> tuple[str, ...]:
        """List whom a device listens to when it trains round `round_`."""
        return neighbours(self.peers, device, self.topology, self.fanout, self.seed, round_)


def encode_start(start: Start) -> bytes:
    """Encode to JSON; the inverse of `decode_start`."""
    record = asdict(start)
    if not start.keys:
        del record["keys"]
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_start(data: bytes, device: str) -> Start:
    """Decode hostile bytes that begin a run for `device`.

    Raises:
        DecodeError: malformed, out of bounds, or a run that the device has no part in.
    """
    record = {"keys": [], **_object(data, "start")}
    if set(record) != set(Start.__dataclass_fields__):
        raise DecodeError("start: its fields are not those of one")
    names = record["peers"]
    if not isinstance(names, list) or not 0 < len(names) <= _MAX_PEERS or not all(type(n) is str for n in names):
        raise DecodeError(f"start: peers are not 1 to {_MAX_PEERS} names")
    try:
        peers = tuple(check_name(name, "start: peer") for name in names)
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    if device not in peers or len({*peers}) < len(peers):
        raise DecodeError(f"start: {device} is not among the peers, or one of them is named twice")
    for name, least, most in (("rounds", 1, _MAX_ROUNDS), ("fanout", 1, _MAX_PEERS), ("max_bytes", 1, 1 << 30)):
        if type(record[name]) is not int or not least <= record[name] <= most:
            raise DecodeError(f"start: {name} must be from {least} to {most}")
    if type(record["seed"]) is not int or not 0 <= record["seed"] < 2**63 or record["topology"] not in TOPOLOGIES:
        raise DecodeError("start: seed or topology is out of range")
    deadline_s = record["deadline_s"]
    if type(deadline_s) not in (int, float) or not 0 < deadline_s < math.inf:
        raise DecodeError("start: deadline_s must be a number above 0")
    keys = _keys(record["keys"], len(peers))
    return Start(**{**record, "peers": peers, "deadline_s": float(deadline_s), "keys": keys})


def _keys(texts: Any, count: int) -> tuple[str, ...]:
    if not isinstance(texts, list) or len(texts) not in (0, count):
        raise DecodeError("start: there is not a key for each peer")
    for text in texts:
        try:
            good = type(text) is str and len(base64.b64decode(text, validate=True)) in (0, POINT_BYTES)
        except ValueError:
            good = False
        if not good:
            raise DecodeError("start: a key is not that of a peer")
    return tuple(texts)


def pack(heard: Mapping[str, bytes]) -> bytes:
    """Write what peers said as one blob for the trainer: JSON, names to base64; the inverse of `unpack`."""
    return json.dumps({name: base64.b64encode(data).decode() for name, data in sorted(heard.items())}).encode()


def unpack(data: bytes) -> dict[str, bytes]:
    """Read what `pack` wrote.

    Raises:
        DecodeError: it is damaged.
    """
    try:
        return {name: base64.b64decode(text, validate=True) for name, text in _object(data, "heard").items()}
    except (TypeError, ValueError, binascii.Error) as error:
        raise DecodeError(f"heard: not base64: {error}") from error


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{what}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DecodeError(f"{what}: not an object")
    return record


@dataclass(frozen=True)
class Say:
    """Tell all who listen to this device."""

    message: Message


@dataclass(frozen=True)
class SayChunks:
    """Tell all who listen these chunks of an Up of this device."""

    blob: Blob
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Ask:
    """Tell one peer."""

    peer: str
    message: Message


@dataclass(frozen=True)
class Learn:
    """Train a round with what the neighbours said in the one before, and call `trained`."""

    round: int
    heard: dict[str, bytes]


@dataclass(frozen=True)
class Remember:
    """Make durable what this device has said, before the next action. `done`: it was the last round."""

    said: tuple[Offer, ...]
    done: bool


Action = Say | SayChunks | Ask | Learn | Remember


@dataclass
class _Arriving:
    """An Up on its way in."""

    offer: Offer
    incoming: Incoming
    parts: dict[int, bytes] = field(default_factory=dict)


class PeersCore:
    """State of one device in one run. Every method takes an event and gives the actions that follow, in order."""

    def __init__(self, run: str, device: str, start: Start, said: Sequence[Offer]) -> None:
        """Start from what was remembered: the last offers of this device, oldest first."""
        self.run, self.device, self.start = run, device, start
        self.said = tuple(said)
        self.round = said[-1].round + 1 if said else 0
        """The round to train next, or that is being trained."""
        self.training = False
        self.counts: Counter[str] = Counter()
        """What was dropped, by why."""
        self.faults: Counter[str] = Counter()
        """How often what a peer said made no sense, by its name."""
        self._heard: dict[tuple[int, str], bytes] = {}
        self._arriving: dict[tuple[int, str], _Arriving] = {}
        self._gone: set[tuple[int, str]] = set()
        self._since_s: float | None = None

    @property
    def done(self) -> bool:
        """Say whether all rounds are over; what was said can still be asked for."""
        return self.round >= self.start.rounds

    @property
    def waiting(self) -> bool:
        """Say whether neighbours are being waited for, so that `tick` should come soon."""
        return not self.training and not self.done

    def begin(self) -> list[Action]:
        """Go on with the run, after its start or the device's."""
        return self._maybe_learn()

    def trained(self, blob: Blob) -> list[Action]:
        """Take the outcome of `Learn`, whose bytes (and state) are already durable: say it, and go on."""
        offer = Offer(self.run, self.round, "peers", blob)
        self.said = (*self.said, offer)[-KEPT:]
        self.training, self.round, self._since_s = False, self.round + 1, None
        for kept in (self._heard, self._arriving):
            for key in [key for key in kept if key[0] < self.round - 1]:
                del kept[key]
        self._gone = {key for key in self._gone if key[0] >= self.round - 1}
        return [Remember(self.said, self.done), *self._repeat(offer), *self._maybe_learn()]

    def tick(self, now_s: float) -> list[Action]:
        """Ask for what is missing; at the deadline, go on without it."""
        if not self.waiting:
            return []
        if self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= self.start.deadline_s:
            self.counts["missing"] += len(self._missing())
            return self._learn()
        return [action for peer in self._missing() for action in self._ask(peer)]

    def hear(self, peer: str, message: Message) -> list[Action]:
        """Take what a peer says to all; what is not for this device, or not now, is dropped."""
        if peer not in self.start.peers or peer == self.device:
            self.counts["stranger"] += 1
            return []
        match message:
            case Offer():
                return self._on_offer(peer, message)
            case Chunk():
                return self._on_chunk(peer, message)
            case Refuse() if message.run == self.run and message.lost and message.round == self.round - 1:
                self._gone.add((message.round, peer))
                return self._maybe_learn()
            case _:
                return []

    def asked(self, peer: str, message: Message) -> list[Action]:
        """Answer a peer that missed something; all who listen hear the answer."""
        if peer not in self.start.peers:
            self.counts["stranger"] += 1
            return []
        match message:
            case Status() if message.run == self.run:
                found = [offer for offer in self.said if offer.round == message.round]
                if not found and message.round < self.round:
                    return [Say(Refuse(self.run, message.round, True, "said too long ago"))]
                return self._repeat(found[0]) if found else []
            case Need():
                held = [offer.blob for offer in self.said if offer.blob.digest == message.digest]
                wanted = tuple(index for index in message.want if held and index < held[0].chunks)
                return [SayChunks(held[0], wanted)] if wanted else []
            case _:
                return []

    def _repeat(self, offer: Offer) -> list[Action]:
        return [Say(offer), SayChunks(offer.blob, tuple(range(min(offer.blob.chunks, WINDOW))))]

    def _on_offer(self, peer: str, offer: Offer) -> list[Action]:
        key, needed = (offer.round, peer), self.round if self.training else self.round - 1
        if (offer.run, offer.phase) != (self.run, "peers"):
            self.counts["other run"] += 1
        elif not needed <= offer.round <= needed + 1:
            self.counts["late" if offer.round < needed else "early"] += 1
        elif not 0 < offer.blob.size <= self.start.max_bytes:
            self.counts["too large"] += 1
        elif key in self._heard or key in self._arriving:
            self.counts["repeated"] += 1
        elif peer in self.start.neighbours(self.device, offer.round + 1):
            self._arriving[key] = _Arriving(offer, Incoming(offer.blob))
            self._arriving[key].incoming.ask()  # the first window comes unasked
        return []

    def _on_chunk(self, peer: str, chunk: Chunk) -> list[Action]:
        for (round_, sender), arriving in self._arriving.items():
            if sender == peer and arriving.incoming.take(chunk):
                arriving.parts[chunk.index] = chunk.data
                if arriving.incoming.complete:
                    return self._complete((round_, peer))
                need = arriving.incoming.ask_next()
                return [Ask(peer, need)] if need else []
        return []

    def _complete(self, key: tuple[int, str]) -> list[Action]:
        arriving = self._arriving.pop(key)
        data = b"".join(arriving.parts[index] for index in sorted(arriving.parts))
        if hashlib.sha256(data).hexdigest() != arriving.offer.blob.digest:
            self.counts["damaged"] += 1
            return []  # `tick` will ask again
        self._heard[key] = data
        return self._maybe_learn()

    def _missing(self) -> list[str]:
        """List the neighbours of the next round that were not heard, and still may be."""
        if not self.round:
            return []
        return [
            peer
            for peer in self.start.neighbours(self.device, self.round)
            if (key := (self.round - 1, peer)) not in self._heard and key not in self._gone
        ]

    def _ask(self, peer: str) -> list[Action]:
        arriving = self._arriving.get((self.round - 1, peer))
        if arriving is None:
            return [Ask(peer, Status(self.run, self.round - 1, "listening"))]
        need = arriving.incoming.tick()
        return [Ask(peer, need)] if need else []

    def _maybe_learn(self) -> list[Action]:
        return self._learn() if self.waiting and not self._missing() else []

    def _learn(self) -> list[Action]:
        self.training = True
        neighbourhood = self.start.neighbours(self.device, self.round)
        heard = {peer: self._heard[key] for peer in neighbourhood if (key := (self.round - 1, peer)) in self._heard}
        return [Learn(self.round, heard)]
