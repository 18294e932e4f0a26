"""Rank and select: where in a vector the n-th of equal numbers is, and how many of them come before a place.

As in succinct data structures, what is kept is a bit for each place, 64 in a word, and how many are on up to each word;
so a list of all members, which takes 64 bits for each, is never made. Within a word the eight bytes are counted side by
side (Vigna, "Broadword Implementation of Rank/Select Queries", 2008).
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_PLACES = np.argsort(1 - _BYTES, axis=1, kind="stable").astype(np.uint8)
"""Of each byte, the places of those of its bits that are on come first."""
_PAIRS, _FOURS, _EIGHTS = (np.uint64(0x0101010101010101 * byte) for byte in (0x55, 0x33, 0x0F))
_EACH, _HIGH, _LOW_BYTE = (np.uint64(number) for number in (0x0101010101010101, 0x8080808080808080, 0xFF))
_1, _2, _4, _6, _7, _8, _56, _63 = (np.uint64(number) for number in (1, 2, 4, 6, 7, 8, 56, 63))

_TILE = 1 << 16
"""Places compared at a time: new memory costs more than to fill it."""


class Members:
    """The places of a vector [n] that hold this number."""

    def __init__(self, numbers: NDArray[np.uint8], number: int) -> None:
        packed = np.zeros(-(-len(numbers) // 64) * 8, np.uint8)
        for i in range(0, len(numbers), _TILE):
            bits = np.packbits(numbers[i : i + _TILE] == number, bitorder="little")
            packed[i // 8 : i // 8 + len(bits)] = bits
        self._words = packed.view("<u8").astype(np.uint64, copy=False)
        self._through = np.cumsum(_count(self._words))

    def __len__(self) -> int:
        return int(self._through[-1]) if len(self._through) else 0

    def rank(self, places: Ints) -> Ints:
        """Count the members before each place [k], which has one itself; the inverse of `select`."""
        at = places.astype(np.uint64)
        word = at >> _6
        ranks: Ints = self._through[word] - _count(self._words[word] >> (at & _63))
        return ranks

    def select(self, ranks: Ints) -> Ints:
        """Give the places of members [k] that so many come before, each fewer than there are."""
        word = np.searchsorted(self._through, ranks, side="right")
        bits = self._words[word]
        through = _by_byte(bits) * _EACH  # of each byte, how many bits are on up to it
        left = (ranks - self._through[word]).view(np.uint64) + (through >> _56)
        passed = ((left * _EACH | _HIGH) - through & _HIGH) >> _7  # 1 for each byte that ends before the member
        start = (passed * _EACH >> _56) * _8
        inside = left - (through << _8 >> start & _LOW_BYTE)
        places: Ints = 64 * word + start.view(np.int64) + _PLACES[bits >> start & _LOW_BYTE, inside]
        return places


def _by_byte(words: Words) -> Words:
    """Count the bits of each byte of words [k], in that byte."""
    counts: Words = words - (words >> _1 & _PAIRS)
    counts = (counts & _FOURS) + (counts >> _2 & _FOURS)
    counts += counts >> _4
    counts &= _EIGHTS
    return counts


def _count(words: Words) -> Ints:
    """Count the bits of words [k]."""
    return (_by_byte(words) * _EACH >> _56).view(np.int64)
