"""Updates on their way in: which chunks of which offer are here. State and event in, actions out.

The more devices have a task, the smaller is the window of each, so that what a fleet has on its way fits the queues of
the broker and of the coordinator, nobody waits for a slow one, and little is sent again after a coordinator was killed:
what is on its way then has come to nobody.
"""

from collections.abc import Callable, Iterable

from edge_runtime.coordinator.actions import Accept, Action, Keep, Recall, Tell
from edge_runtime.message import WINDOW, Blob, Chunk, Offer
from edge_runtime.transfer import Incoming

MOST_CHUNKS, MOST_BYTES = 512, 1 << 24
"""On their way from all devices together; of more devices, one chunk from each."""
_MAX_TICKS = 16
"""Between two repetitions of a task. Who was away says hello, and is told again at once."""


class Uploads:
    """One update at a time from every device."""

    def __init__(self, senders: Callable[[], int]) -> None:
        """Begin with nothing; `senders` says how many devices may send at the same time."""
        self._senders = senders
        self._incoming: dict[str, tuple[Offer, Incoming]] = {}
        self._ticks: dict[str, int] = {}

    def anew(self, device: str) -> None:
        """Note that a device has come back, or has another task."""
        self._ticks[device] = 0

    def due(self, device: str) -> bool:
        """Count a tick that a device's task is open; say whether to repeat it (ever less often, whatever it says)."""
        ticks = self._ticks.get(device, 0) + 1
        self._ticks[device] = ticks
        return not ticks & (ticks - 1) or not ticks % _MAX_TICKS

    def holds(self, device: str) -> bool:
        """Say whether an update of this device is on its way."""
        return device in self._incoming

    def begin(self, device: str, offer: Offer) -> list[Action]:
        """Let an offer in that was found good."""
        held = self._incoming.get(device)
        if held is None or held[0].blob != offer.blob:
            return [Recall(device, offer)]
        need = held[1].ask_next(self._window(offer.blob))
        return [Tell(device, need)] if need else []  # what was asked for is on its way, or `ask` will be called

    def recalled(self, device: str, offer: Offer, have: Iterable[int]) -> list[Action]:
        """Go on after `Recall`: ask for what is missing, and is not on its way."""
        incoming = Incoming(offer.blob, have)
        self._incoming[device] = (offer, incoming)
        if incoming.complete:
            return [Accept(device, offer)]
        if incoming.expect(offer.sent):
            return []
        return [Tell(device, incoming.ask(self._window(offer.blob)))]

    def take(self, device: str, chunk: Chunk) -> list[Action]:
        """Take a chunk; one that was not asked for gives no action."""
        if device not in self._incoming:
            return []
        offer, incoming = self._incoming[device]
        if not incoming.take(chunk):
            return []
        actions: list[Action] = [Keep(device, offer, chunk)]
        if incoming.complete:
            actions.append(Accept(device, offer))
        elif need := incoming.ask_next(self._window(offer.blob)):
            actions.append(Tell(device, need))
        return actions

    def ask(self, device: str) -> list[Action]:
        """Count a tick; ask again for what is missing, if it has stalled."""
        offer, incoming = self._incoming[device]
        need = incoming.tick(self._window(offer.blob))
        return [Tell(device, need)] if need else []

    def lose(self, device: str) -> None:
        """Take what is on its way from a device as lost: its link was made anew."""
        if device in self._incoming:
            self._incoming[device][1].lose()

    def damaged(self, device: str) -> list[Action]:
        """Ask again for what of it is not good: the bytes do not have the digest."""
        return [Recall(device, self._incoming[device][0])] if device in self._incoming else []

    def drop(self, device: str) -> None:
        """Forget a device's update."""
        self._incoming.pop(device, None)

    def clear(self) -> None:
        """Forget all."""
        self._incoming.clear()
        self._ticks.clear()

    def _window(self, blob: Blob) -> int:
        senders = max(1, self._senders())
        return max(1, min(WINDOW, MOST_CHUNKS // senders, MOST_BYTES // (senders * blob.chunk)))
