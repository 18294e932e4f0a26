"""Rank and select: where in a bit vector its n-th member is, and how many come before a place.

As in succinct data structures, what is kept is the bits, packed, and how many are on up to each byte; so a list of all
members, which takes 64 bits for each, is never made.
"""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Ints = NDArray[np.int64]

_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ONES = _BYTES.sum(axis=1, dtype=np.uint8)
_PLACES = np.argsort(1 - _BYTES, axis=1, kind="stable").astype(np.uint8)
"""Of each byte, the places of those of its bits that are on come first."""


class Members:
    """The members of a bit vector [n]."""

    def __init__(self, bits: Bits) -> None:
        self._packed = np.packbits(bits, bitorder="little")
        self._through = np.cumsum(_ONES.take(self._packed), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._through[-1]) if len(self._through) else 0

    def rank(self, places: Ints) -> Ints:
        """Count the members before each place [k], which has one itself; the inverse of `select`."""
        byte = places >> 3
        after = self._packed[byte] >> (places & 7).astype(np.uint8)
        ranks: Ints = self._through[byte] - _ONES[after]
        return ranks

    def select(self, ranks: Ints) -> Ints:
        """Give the places of members [k] that so many come before, each fewer than there are."""
        byte = np.searchsorted(self._through, ranks, side="right")
        packed = self._packed[byte]
        places: Ints = 8 * byte + _PLACES[packed, ranks - (self._through[byte] - _ONES[packed])]
        return places
