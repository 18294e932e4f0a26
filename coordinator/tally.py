"""What a coordinator has heard, said and judged since it was started: counts for whoever watches it.

Every key is one of few: kinds of messages, and kinds of reasons. No device has a count of its own here, so that neither
a large fleet nor a hostile one makes it grow.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_runtime.coordinator.rounds import RoundsCore
from edge_runtime.coordinator.versions import VersionsCore
from edge_runtime.message import Message
from edge_runtime.transport import Traffic

_REASONS = {
    "norm-limit": "norm",
    "not finite": "not finite",
    "are expected": "size",
    "it is of ": "other round",
}
"""What stands in the reason of a rejection, and how it is counted; all else is malformed."""
STATES = ("idle", "fetching", "training", "listening", "sending", "done", "late", "refused", "offline")
"""What a device may be at; late: it was here, offline: it never was."""


def state_of(core: RoundsCore | VersionsCore, device: str) -> str:
    """Say what a device is at: one of STATES."""
    if device not in core.online:
        return "late" if device in core.progress.known else "offline"
    return "refused" if device in core.refused else core.doing.get(device, "idle")


def kind_of(message: Message) -> str:
    """Name what a message is: `hello`, `task`, `chunk` and so on."""
    return type(message).__name__.lower()


def reason_of(text: str) -> str:
    """Name the kind of a reason for which an update was thrown out."""
    return next((kind for words, kind in _REASONS.items() if words in text), "malformed")


@dataclass
class Tally:
    """Counts, all from zero when a coordinator is started."""

    received: Counter[str] = field(default_factory=Counter)
    """Messages of devices that were taken, by kind."""
    received_bytes: Counter[str] = field(default_factory=Counter)
    """Their bytes, seals included."""
    sent: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    """Updates, evaluations among them."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Updates that were thrown out, by `reason_of`."""
    lost: int = 0
    """Messages for which the queue had no room."""
    traffic: Callable[[], Traffic] = lambda: Traffic(0, 0)
    """Counts the bytes on the sockets; of a simulation none."""

    def heard(self, message: Message, size_bytes: int) -> None:
        """Count a message that was taken."""
        kind = kind_of(message)
        self.received[kind] += 1
        self.received_bytes[kind] += size_bytes

    def said(self, message: Message, size_bytes: int) -> None:
        """Count a message that went out."""
        kind = kind_of(message)
        self.sent[kind] += 1
        self.sent_bytes[kind] += size_bytes

    def judged(self, reason: str) -> None:
        """Count an update; `reason`: why it was thrown out, empty if it was not."""
        if reason:
            self.rejected[reason_of(reason)] += 1
        else:
            self.accepted += 1
