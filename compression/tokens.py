"""Signed integers of any size as tokens of a small alphabet, and the bits that these leave.

A value v is u = 2 v, or -2 v - 1 if negative. Below 64, u is its own token. Above, with e = floor(log2 u), the token is
64 + 4 (e - 6) + the two bits below u's first, which ends at 167 for e = 31. The e - 2 bits below those are sent as they
are: a plane for each place, least significant first, of the bits of all values that have it, in their order. So a rare
large value costs no more than an escape would, and a table has no more entries than the values are wide. Planes are
those of 65,536 values, then of the next, so that nobody holds more than these beside the vector.

A plane is packed into bytes, most significant bit first, the last filled up with zeros.
"""

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield
from edge_runtime.compression.errors import DecodeError

Integers = NDArray[np.int32]
Tokens = NDArray[np.uint8]

MOST = 168
_DIRECT = 64
_LEAST_LEFT = 4
"""Bits that the smallest large value, 64, leaves: all but the first of its 7, and two."""
_TILE = 1 << 16


def split(values: Integers) -> tuple[Tokens, bytes]:
    """Give the token of each value [n], and what they all leave; the inverse of `join`."""
    found = np.empty(len(values), np.uint8)
    starts = range(0, len(values), _TILE)
    return found, b"".join([_split(values[i : i + _TILE], found[i : i + _TILE]) for i in starts])


def join(tokens: NDArray[np.uint16], rest: bytes) -> Integers:
    """Make values [n] of tokens [n] below `MOST` and of what they left, which is hostile.

    Raises:
        DecodeError: they left something else.
    """
    folded = tokens.astype(np.uint32)
    reader = bitfield.Reader(rest)
    for i in range(0, len(folded), _TILE):
        _join(folded[i : i + _TILE], reader)
    if reader.rest():
        raise DecodeError("tokens: they leave less than there is")
    return folded.view(np.int32)


def _split(values: Integers, tokens: Tokens) -> bytes:
    folded = ((values << 1) ^ (values >> 31)).view(np.uint32)
    tokens[:] = folded  # of large ones the lowest bits, for now
    large = np.flatnonzero(folded >= _DIRECT)
    high = folded[large]
    left = np.frexp(high.astype(np.float64))[1].astype(np.uint32) - np.uint32(3)
    tokens[large] = _DIRECT + 4 * (left - _LEAST_LEFT) + (high >> left & 3)
    return b"".join(pack(high[left > place], place) for place in range(int(left.max(initial=0))))


def _join(folded: NDArray[np.uint32], reader: bitfield.Reader) -> None:
    """Turn tokens into the values, in place."""
    large = np.flatnonzero(folded >= _DIRECT)
    above = folded[large] - np.uint32(_DIRECT)
    left = (above >> 2) + np.uint32(_LEAST_LEFT)
    high = (4 + (above & 3)) << left
    for place in range(int(left.max(initial=0))):
        has = left > place
        high[has] |= unpack(reader, int(np.count_nonzero(has)), place)
    folded[large] = high
    signs = folded & 1
    np.negative(signs, out=signs)
    folded >>= 1
    folded ^= signs


def pack(numbers: NDArray[np.uint32], place: int) -> bytes:
    """Pack the bits at a place of numbers [n] as a plane; the inverse of `unpack`."""
    return np.packbits((numbers >> np.uint32(place) & 1).astype(np.bool_)).tobytes()


def unpack(reader: bitfield.Reader, count: int, place: int) -> NDArray[np.uint32]:
    """Take a plane of `count` bits from hostile bytes, and put them at a place of numbers [count].

    Raises:
        DecodeError: there are too few bytes, or the last is filled up with other than zeros.
    """
    bits = np.unpackbits(np.frombuffer(reader.take(-(-count // 8)), np.uint8))
    if bits[count:].any():
        raise DecodeError("plane: it is filled up with other than zeros")
    numbers = bits[:count].astype(np.uint32)
    numbers <<= np.uint32(place)
    return numbers
