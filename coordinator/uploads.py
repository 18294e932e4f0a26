"""Updates on their way in: which chunks of which offer are here. State and event in, actions out."""

from edge_runtime.coordinator.actions import Accept, Action, Keep, Tell
from edge_runtime.message import Chunk, Offer
from edge_runtime.transfer import Incoming

_MAX_SILENCE = 16
"""Ticks between two repetitions to a device that does not answer."""


class Uploads:
    """One update at a time from every device."""

    def __init__(self) -> None:
        self._incoming: dict[str, tuple[Offer, Incoming]] = {}
        self._silence: dict[str, int] = {}

    def heard(self, device: str) -> None:
        """Note that a device spoke."""
        self._silence[device] = 0

    def due(self, device: str) -> bool:
        """Count a tick without a word from a device; say whether to repeat what it should answer (ever less often)."""
        silence = self._silence.get(device, 0) + 1
        self._silence[device] = silence
        return silence <= 1 or not silence & (silence - 1) or not silence % _MAX_SILENCE

    def holds(self, device: str) -> bool:
        """Say whether an update of this device is on its way."""
        return device in self._incoming

    def begin(self, device: str, offer: Offer) -> list[Action]:
        """Let an offer in that was found good."""
        held = self._incoming.get(device)
        if held is not None and held[0].blob == offer.blob:
            return []  # what was asked for is on its way, or `ask` will be called
        incoming = Incoming(offer.blob)
        self._incoming[device] = (offer, incoming)
        return [Accept(device, offer)] if incoming.complete else [Tell(device, incoming.ask())]

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
        elif need := incoming.ask_next():
            actions.append(Tell(device, need))
        return actions

    def ask(self, device: str) -> list[Action]:
        """Ask again for what is missing, if it has stalled."""
        incoming = self._incoming[device][1]
        return [Tell(device, incoming.ask())] if incoming.stalled() else []

    def restart(self, device: str) -> list[Action]:
        """Ask for all of it again: the bytes do not have the digest."""
        if device not in self._incoming:
            return []
        offer, _ = self._incoming[device]
        incoming = Incoming(offer.blob)
        self._incoming[device] = (offer, incoming)
        return [Tell(device, incoming.ask())]

    def drop(self, device: str) -> None:
        """Forget a device's update."""
        self._incoming.pop(device, None)

    def clear(self) -> None:
        """Forget all."""
        self._incoming.clear()
        self._silence.clear()
