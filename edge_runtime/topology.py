"""Who listens to whom among equals. Plain hashes, so that every device finds the same without asking anybody."""

import hashlib
from collections.abc import Collection

TOPOLOGIES = ("full", "ring", "random")


def neighbours(
    members: Collection[str], device: str, topology: str, peers: int, seed: int, round_: int
) -> tuple[str, ...]:
    """List whom a device listens to in a round, in alphabetical order.

    Args:
        members: names of all who take part; whether `device` is among them makes no difference.
        device: who listens.
        topology: `full` (all others), `ring` (the one before and the one after it in alphabetical order), or `random`
            (others drawn anew in every round; that one listens to another does not mean that it is listened to).
        peers: how many `random` draws.
        seed: of the draw.
        round_: which round it is.
    """
    others = sorted({*members} - {device})
    if topology == "full":
        return tuple(others)
    if topology == "ring":
        ring = sorted({*members, device})
        place = ring.index(device)
        return tuple(sorted({ring[place - 1], ring[(place + 1) % len(ring)]} - {device}))
    drawn = sorted(others, key=lambda other: hashlib.sha256(f"{seed}/{round_}/{device}/{other}".encode()).digest())
    return tuple(sorted(drawn[:peers]))
