"""Chunks on their way to devices: to each by itself, or once to all that fetch the same blob. State in, loads out.

A blob that several devices fetch is a stream. Its first chunks wait a moment for the devices that have a task with
that blob and have not asked yet; after that it goes as fast as its fastest device asks. Who listens takes what comes,
and asks for what it lacks. Three rules keep every device from receiving a chunk twice, and the coordinator from
sending it more often than it must:

* A chunk goes to all if more of the listening devices lack it than have it, and at least two lack it; else to those
  that asked, each by itself.
* What a device asks for the first time, and was sent to all since it listens, is on its way to it: not sent again.
* What a device asks for the second time was lost on the way: it is sent again.

A device that keeps asking for what was sent to all does not hear it (its broker's rules may forbid it): from then on it
is sent everything by itself.

What waits is a few numbers per chunk and device: bytes are read when the network takes them.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_runtime.message import Blob

log = logging.getLogger(__name__)

GATHER_S = 0.25
"""How long a stream waits for devices before it begins."""
_GONE_S = 10.0
_LOOK_S = 1.0
_DEAF = 3
"""So many times in a row a device asks in vain before it is taken as one that does not hear what is sent to all."""


@dataclass(frozen=True)
class Load:
    """One chunk to send: to one device that asked for it, or to all that listen, of whom these did."""

    devices: tuple[str, ...]
    digest: str
    index: int
    to_all: bool


@dataclass
class _Member:
    """A device that fetches a blob."""

    joined: int
    """How many chunks the stream had sent to all before."""
    heard_s: float = 0.0
    mark: int = -1
    """The last chunk that it asked for: what comes before is here, or was asked for."""
    repeats: int = 0


@dataclass
class _Stream:
    """A blob that devices fetch."""

    shared: bool
    expected: int = 0
    begins_s: float | None = None
    """When its first chunk goes even if devices are missing; None: nobody has looked yet."""
    members: dict[str, _Member] = field(default_factory=dict)
    wanted: dict[int, list[str]] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    """Of every chunk that was sent to all, the how-manieth of these it was (last)."""
    count: int = 0

    def ready(self, now_s: float) -> bool:
        """Say whether a chunk that is wanted may go."""
        if self.begins_s is None:
            self.begins_s = now_s + (GATHER_S if self.shared else 0.0)
        return now_s >= self.begins_s or len(self.members) >= self.expected


class Downloads:
    """What devices have asked for and were not sent yet."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._turns: dict[str, _Stream] = {}
        """Those of them of which something is wanted; whose turn it is comes first."""
        self._looked_s = -math.inf
        """When it was last looked for streams to forget."""
        self._deaf: set[str] = set()
        self._heard: dict[tuple[str, str], _Member] = {}
        """Those who have spoken since `next` last told the time."""
        self._now_s = 0.0

    def want(self, device: str, blob: Blob, indices: Iterable[int], expected: int) -> None:
        """Note what a device asks for; `expected`: how many devices have a task with this blob."""
        wanted = sorted({index for index in indices if index < blob.chunks})
        if not wanted:
            return
        stream = self._streams.setdefault(blob.digest, _Stream(blob.shared))
        stream.expected = expected
        member = stream.members.setdefault(device, _Member(stream.count))
        self._heard[blob.digest, device] = member
        member.repeats = member.repeats + 1 if wanted[-1] <= member.mark else 0
        if stream.shared and member.repeats >= _DEAF and device not in self._deaf:
            self._deaf.add(device)
            log.warning("device %s does not hear what is sent to all: does its broker let it read .../all/+?", device)
        for index in wanted:
            coming = index > member.mark and stream.sent.get(index, 0) > member.joined and device not in self._deaf
            if not coming and device not in (asking := stream.wanted.setdefault(index, [])):
                asking.append(device)
        member.mark = max(member.mark, wanted[-1])
        if stream.wanted:
            self._turns.setdefault(blob.digest, stream)

    def next(self, now_s: float) -> Load | None:
        """Take the next chunk that may go; None if there is none now."""
        self._now_s = now_s
        while self._heard:
            self._heard.popitem()[1].heard_s = now_s
        for digest, stream in self._turns.items():
            if stream.ready(now_s):
                load = self._take(digest, stream)
                if not stream.wanted:
                    del self._turns[digest]
                return load
        self._forget()
        return None

    def _take(self, digest: str, stream: _Stream) -> Load:
        index = min(stream.wanted)
        asking = tuple(stream.wanted.pop(index))
        if stream.shared and self._most_lack(stream, index, asking):
            self._note(stream, index, [device for device in asking if device in self._deaf])
            return Load(asking, digest, index, True)
        if len(asking) > 1:
            stream.wanted[index] = list(asking[1:])
        return Load(asking[:1], digest, index, False)

    def _note(self, stream: _Stream, index: int, deaf: list[str]) -> None:
        """Note that a chunk goes to all; those who do not hear it still want it."""
        stream.count += 1
        stream.sent[index] = stream.count
        if deaf:
            stream.wanted[index] = deaf

    def due_s(self) -> float | None:
        """Say when something may go that waits; None if nothing does."""
        waiting = self._turns.values()
        return min((0.0 if stream.ready(self._now_s) else stream.begins_s or 0.0 for stream in waiting), default=None)

    def leave(self, device: str) -> None:
        """Take it that a device begins anew: what was on its way to it is lost."""
        for stream in self._streams.values():
            stream.members.pop(device, None)

    def clear(self) -> None:
        """Forget all: the link was lost, and what was on its way with it."""
        self._streams.clear()
        self._turns.clear()
        self._heard.clear()

    def _most_lack(self, stream: _Stream, index: int, asking: tuple[str, ...]) -> bool:
        lack = have = 0
        for device, member in stream.members.items():
            if device in self._deaf or self._now_s - member.heard_s > _GONE_S:
                continue
            coming = stream.sent.get(index, 0) > member.joined
            if device in asking or (index > member.mark and not coming):
                lack += 1
            else:
                have += 1
        return lack > max(1, have)

    def _forget(self) -> None:
        """Drop the streams of which nobody has asked for anything for a while; all are looked at, so not every time."""
        if self._now_s < self._looked_s + _LOOK_S:
            return
        self._looked_s = self._now_s
        for digest in [digest for digest, stream in self._streams.items() if self._idle(stream)]:
            del self._streams[digest]

    def _idle(self, stream: _Stream) -> bool:
        return not stream.wanted and all(self._now_s - member.heard_s > _GONE_S for member in stream.members.values())
