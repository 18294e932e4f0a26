"""What the cores of a run speak: what they are told of the run, where it stands, and what they want done.

`rounds.py` (synchronous) and `versions.py` (asynchronous) take events and give these actions; `server.py` does them.
"""

from dataclasses import dataclass, field

from edge_runtime.message import Chunk, Fate, Message, Need, Offer


@dataclass(frozen=True)
class Plan:
    """What a run is, as far as the protocol cares."""

    run: str
    epoch: int
    rounds: int
    devices: int
    """Devices that must have said hello before the first round."""
    cohort: int = 0
    """Devices per round, or at work at the same time in an asynchronous run; 0: all."""
    quorum: float = 0.8
    """The part of the cohort that must have answered for a round to close at its deadline."""
    evaluate: bool = True
    """Whether all devices evaluate the final model after the last round."""
    score: bool = False
    """Whether devices that are to have a part say before the first round which channels matter to them."""
    max_blob: int = 1 << 30
    """Largest update that is let in, bytes."""
    decentralised: bool = False
    """Whether the devices go through all rounds by themselves: for the coordinator that is one round, `peers`."""
    asynchronous: bool = False
    buffer: int = 1
    """Updates after which an asynchronous run makes a new version of the shared model."""
    seed: int = 0

    @property
    def updates(self) -> int:
        """Count the updates after which an asynchronous run ends: as many as a synchronous one of all devices has."""
        return self.rounds * self.devices


@dataclass
class Progress:
    """Where a run stands: what the journal knows at the start, and the core moves on."""

    round: int = 0
    """The open round; in an asynchronous run the number of updates that were judged, accepted or not."""
    phase: str = "train"
    cohort: tuple[str, ...] = ()
    accepted: dict[str, str] = field(default_factory=dict)
    """Digest of the update of every device of the cohort that was accepted in this round."""
    known: set[str] = field(default_factory=set)
    finished: bool = False
    applied: int = 0
    """Asynchronous: updates that were accepted."""
    issued: dict[str, int] = field(default_factory=dict)
    """Asynchronous: number of the newest task of every device; it is `round` at the time that the task was made."""
    judged: dict[str, int] = field(default_factory=dict)
    """Asynchronous: number of the newest task of every device whose update was judged."""


@dataclass(frozen=True)
class Tell:
    """Send this message to a device."""

    device: str
    message: Message


@dataclass(frozen=True)
class Assign:
    """Make (again) the task of the open round or version for a device, and send it. `fresh`: it lost its state."""

    device: str
    fresh: bool


@dataclass(frozen=True)
class Repeat:
    """Send a device its open task again, made from whichever version it was; if that is gone, assign a new one."""

    device: str


@dataclass(frozen=True)
class SendChunks:
    """Send a device these chunks of a blob of its task."""

    device: str
    need: Need


@dataclass(frozen=True)
class Recall:
    """Look which chunks of an incoming update were kept, drop those of any other, and call `recalled`."""

    device: str
    offer: Offer


@dataclass(frozen=True)
class Keep:
    """Put a chunk of an incoming update aside."""

    device: str
    offer: Offer
    chunk: Chunk


@dataclass(frozen=True)
class Accept:
    """All chunks are here: check, decode, journal and absorb the update, and call `accepted`."""

    device: str
    offer: Offer


@dataclass(frozen=True)
class Look:
    """Tell the device what the journal knows of an offer for a round that is over."""

    device: str
    offer: Offer


@dataclass(frozen=True)
class Register:
    """Make it durable that this device exists."""

    device: str


@dataclass(frozen=True)
class Sample:
    """Draw a cohort from these devices (sorted), make the assignment durable, and call `opened`."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Close:
    """End the round or version, and call `closed`."""


@dataclass(frozen=True)
class Finish:
    """The run is over, durably."""


Action = Tell | Assign | Repeat | SendChunks | Recall | Keep | Accept | Look | Register | Sample | Close | Finish


def fate_of(offer: Offer, fate: str, reason: str = "") -> Fate:
    """Say what became of an offer."""
    return Fate(offer.run, offer.round, offer.phase, offer.blob.digest, fate, reason[:500])
