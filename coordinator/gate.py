"""Who is let in: opens what devices say, seals what they are told, and counts what is dropped, by device and reason.

Without identities (`Open`) messages are bare. With them (`Sealed`) a message is dropped before anything of it is
decoded unless it was sealed by the device of its topic, which must be enrolled and not revoked, for this start of this
coordinator, and newer than all before (`edge_runtime/seal.py`).
"""

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_runtime.errors import EdgeError
from edge_runtime.message import Chunk, Message, decode, encode
from edge_runtime.seal import (
    NOBODY,
    ORDINARY,
    REPEATED,
    STALE,
    UNKNOWN,
    Head,
    Key,
    PublicKey,
    SealError,
    Tags,
    is_chunk,
    place,
    put_in,
    random_tag,
    rare,
    take_out,
)

log = logging.getLogger(__name__)

MALFORMED, MISNAMED, OTHER_WIRE, EQUIVOCATION = "malformed", "misnamed", "other wire", "equivocation"
"""Why a message is dropped, beside what `seal.py` names: no message; no device id in its topic; another version; an
update of a round in which another one of this device was judged."""
STRANGERS = "(strangers)"
"""Stands for all names that nobody vouches for."""
_MOST_NAMES = 1_024
_MOST_GREETINGS = 4_096


class Keys(Protocol):
    """Who belongs to the fleet."""

    def key_of(self, device: str) -> bytes | None:
        """Give the public key of a device (DER, SubjectPublicKeyInfo); None: it is not enrolled, or revoked."""
        ...


class Gate(Protocol):
    """How a coordinator wraps what it says to devices, and what it takes from them."""

    vouches: bool
    """Whether a message that is taken is of the device that it names."""

    def seal(self, device: str, message: Message) -> bytes:
        """Encode what a device is told."""
        ...

    def open(self, device: str, data: bytes) -> Message:
        """Decode hostile bytes that came on the topic of a device.

        Raises:
            DecodeError: not a message; SealError: not one of that device, now.
        """
        ...

    def greets(self, device: str, stranger: bytes) -> bool:
        """Say whether to answer who spoke out of turn; once between two ticks."""
        ...

    def greet(self, device: str, stranger: bytes, message: Message) -> bytes:
        """Encode an answer to who spoke out of turn."""
        ...

    def tick(self) -> None:
        """Let some time pass."""
        ...

    def points(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Give the public keys by which equals know each other, as `peers.Start` has them; none: they do not seal."""
        ...


class Post(Protocol):
    """The network as the coordinator sees it."""

    def send(self, device: str, message: Message) -> bool:
        """Send a message to a device; False: it was dropped."""
        ...

    def greet(self, device: str, stranger: bytes, message: Message) -> bool:
        """Answer a device that spoke out of turn; False: it was dropped."""
        ...

    def share(self, chunk: Chunk) -> bool:
        """Send a chunk to all devices that listen to its blob; False: it was dropped."""
        ...

    def room(self) -> bool:
        """Say whether the network takes another chunk now."""
        ...


class Open:
    """The gate of a fleet without identities."""

    vouches = False

    def seal(self, device: str, message: Message) -> bytes:  # noqa: ARG002
        """Encode a message."""
        return encode(message)

    def open(self, device: str, data: bytes) -> Message:  # noqa: ARG002
        """Decode a message."""
        return decode(data)

    def greets(self, device: str, stranger: bytes) -> bool:  # noqa: ARG002
        """Answer nobody: there is no turn to speak out of."""
        return False

    def greet(self, device: str, stranger: bytes, message: Message) -> bytes:  # noqa: ARG002
        """Never called."""
        return encode(message)

    def tick(self) -> None:
        """Do nothing."""

    def points(self, devices: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Give no keys."""
        return ()


@dataclass
class _Pair:
    """The tags in force with a device, and the one that comes next."""

    next: bytes
    mine: bytes = b""
    theirs: bytes = NOBODY
    heard: int = 0


class Sealed:
    """The gate of a fleet with identities. Holds something for enrolled devices only."""

    vouches = True

    def __init__(self, fleet: str, key: Key, keys: Keys, tags: Tags = random_tag) -> None:
        self._fleet, self._key, self._keys, self._tags = fleet, key, keys, tags
        self._pairs: dict[str, _Pair] = {}
        self._read: dict[str, tuple[bytes, PublicKey]] = {}
        self._greeted: set[tuple[str, bytes]] = set()
        self._count = 0
        self._trouble = ""
        """Why keys cannot be looked up."""

    def seal(self, device: str, message: Message) -> bytes:
        """Encode and seal; with a device that has not answered yet, what it cannot take, but will answer to."""
        if is_chunk(bare := encode(message)):
            return bare
        pair = self._pair(device)
        return self._put_in(device, pair.mine or pair.next, pair.theirs, bare)

    def open(self, device: str, data: bytes) -> Message:
        """Open and decode; see `Gate.open`."""
        if is_chunk(data):
            if device not in self._pairs or self._key_of(device) is None:
                raise SealError(UNKNOWN)
            return decode(data)
        head, text = take_out(self._key_of(device), place(self._fleet, "up", device), data)
        pair = self._pair(device)
        if head.receiver == pair.next:
            pair.mine, pair.next, pair.theirs = pair.next, self._tags(), head.sender
        elif (head.receiver, head.sender) != (pair.mine, pair.theirs):
            raise SealError(STALE, head.sender)
        elif head.count <= pair.heard:
            raise SealError(REPEATED)
        pair.heard = head.count
        return decode(text)

    def greets(self, device: str, stranger: bytes) -> bool:
        """Say whether to answer a tag; so that messages played again by the thousand cost no thousand signatures."""
        if (device, stranger) in self._greeted or len(self._greeted) >= _MOST_GREETINGS:
            return False
        self._greeted.add((device, stranger))
        return True

    def greet(self, device: str, stranger: bytes, message: Message) -> bytes:
        """Encode and seal an answer that tells the tag which comes next."""
        return self._put_in(device, self._pair(device).next, stranger, encode(message))

    def tick(self) -> None:
        """Let everybody be answered again."""
        self._greeted.clear()

    def points(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Give the keys of devices as compressed points; an empty one of who is not enrolled any more."""
        keys = map(self._key_of, devices)
        return tuple("" if key is None else base64.b64encode(key.point()).decode() for key in keys)

    def _key_of(self, device: str) -> PublicKey | None:
        try:
            der, trouble = self._keys.key_of(device), ""
        except EdgeError as error:
            der, trouble = None, str(error)  # who cannot be looked up is not let in, until that is mended
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("%s", trouble or "keys of devices can be looked up again")
        if der is None:
            self._read.pop(device, None)
            self._pairs.pop(device, None)
            return None
        held = self._read.get(device)
        if held is None or held[0] != der:
            held = self._read[device] = der, PublicKey.of_der(der)
        return held[1]

    def _pair(self, device: str) -> _Pair:
        pair = self._pairs.get(device)
        if pair is None:
            pair = self._pairs[device] = _Pair(self._tags())
        return pair

    def _put_in(self, device: str, mine: bytes, theirs: bytes, bare: bytes) -> bytes:
        self._count += 1
        return put_in(self._key, place(self._fleet, "down", device), Head(mine, theirs, self._count), bare)


class Dropped:
    """Counts what was dropped, by device and reason, and says so in the log: ever more rarely."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, device: str, reason: str, why: str, vouched: bool) -> None:
        """Count one; `vouched`: names that come here are those of enrolled devices, so that they are not too many."""
        beyond = not vouched and device not in self.counts and len(self.counts) >= _MOST_NAMES
        if reason in (UNKNOWN, MISNAMED) or beyond:
            device = STRANGERS
        reasons = self.counts.setdefault(device, {})
        reasons[reason] = count = reasons.get(reason, 0) + 1
        if rare(count):
            level = logging.INFO if reason in ORDINARY else logging.WARNING
            more = {"device": device, "reason": reason, "count": count}
            log.log(level, "dropped from %s: %s (%s so far)", device, why[:300], f"{count:,}", extra=more)

    def harmful(self) -> int:
        """Count those that no honest device would have sent."""
        return self.total() - sum(map(self.total, ORDINARY))

    def total(self, reason: str = "") -> int:
        """Count all, or all for one reason."""
        return sum(n for reasons in self.counts.values() for why, n in reasons.items() if reason in ("", why))
