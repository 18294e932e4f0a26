"""Fields of different widths, packed into bytes: lowest bit first, zeros fill up the last byte."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression.errors import DecodeError

Ints = NDArray[np.int64]

_BLOCK = 1 << 15
_MAX_VARINT_BYTES = 5
_UNFILLED = "a byte is filled up with other than zeros"


def pack(fields: Ints, widths: NDArray[np.integer]) -> bytes:
    """Pack fields [n], none negative, each into its number of bits [n], 56 at most; see `Reader.take_fields`."""
    packed = np.zeros(-(-int(widths.sum(dtype=np.int64)) // 8), np.uint8)
    for block, first, bits in _blocks(widths):
        moved = fields[block] << (bits & 7)
        for k, place in enumerate(_bytes(widths[block], bits)):
            sums = np.bincount(place, moved >> 8 * k & 255)  # of bits that are apart
            room = packed[first + k : first + k + len(sums)]
            room += sums[: len(room)].astype(np.uint8)
    return packed.tobytes()


def pack_unary(numbers: Ints) -> bytes:
    """Pack numbers [n], none negative, each as that many zeros and a one; the inverse of `Reader.take_unary`."""
    bits = np.zeros(int(numbers.sum()) + len(numbers), np.uint8)
    bits[np.cumsum(numbers + 1) - 1] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def pack_number(number: int) -> bytes:
    """Pack a number below 2^35, 7 bits a byte, lowest first, the high bit says that more follow; see `take_number`."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


class Reader:
    """Takes one part of hostile bytes after the other; every method raises DecodeError where they are not such."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, size: int) -> bytes:
        """Take so many bytes."""
        if size > len(self._data) - self._place:
            raise DecodeError(f"{size} bytes are announced where {len(self._data) - self._place} are left")
        self._place += size
        return self._data[self._place - size : self._place]

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._place < len(self._data):
            raise DecodeError(f"{len(self._data) - self._place} bytes too many")

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(len(self._data) - self._place)

    def take_number(self) -> int:
        """Take a number below 2^35."""
        number = 0
        for i in range(_MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 127) << 7 * i
            if byte < 128:
                return number
        raise DecodeError("a number does not end")

    def take_fields(self, widths: NDArray[np.integer]) -> Ints:
        """Take fields of these widths [n], 56 bits at most; the inverse of `pack`."""
        total = int(widths.sum(dtype=np.int64))
        data = self.take(-(-total // 8))
        if total % 8 and data[-1] >> total % 8:
            raise DecodeError(_UNFILLED)
        packed = np.frombuffer(data + bytes(8), np.uint8)
        fields = np.zeros(len(widths), np.int64)
        for block, first, bits in _blocks(widths):
            found = fields[block]
            for k, place in enumerate(_bytes(widths[block], bits)):
                found |= packed[first + k :].take(place).astype(np.int64) << 8 * k
            found >>= bits & 7
            found &= (1 << widths[block].astype(np.int64)) - 1
        return fields

    def take_unary(self, count: int, largest: int) -> Ints:
        """Take `count` numbers in unary, none above `largest`."""
        if not count:
            return np.zeros(0, np.int64)
        most = -(-count * (largest + 1) // 8)
        bits = np.unpackbits(np.frombuffer(self._data, np.uint8, offset=self._place)[:most], bitorder="little")
        ends = np.flatnonzero(bits)[:count]
        if len(ends) < count:
            raise DecodeError(f"{len(ends)} unary numbers where {count} are expected")
        self._bits(self.take(int(ends[-1]) // 8 + 1), int(ends[-1]) + 1)
        numbers = np.diff(ends, prepend=-1) - 1
        if int(numbers.max()) > largest:
            raise DecodeError(f"{numbers.max()} where {largest} is the largest that may be")
        return numbers

    @staticmethod
    def _bits(data: bytes, size: int) -> NDArray[np.uint8]:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if bits[size:].any():
            raise DecodeError(_UNFILLED)
        return bits[:size]


def _blocks(widths: NDArray[np.integer]) -> Iterator[tuple[slice, int, Ints]]:
    """Give the fields block by block: which, the byte that the first begins in, and the first bit of each after it."""
    bit = 0
    for i in range(0, len(widths), _BLOCK):
        block = slice(i, i + _BLOCK)
        ends = np.cumsum(widths[block], dtype=np.int64) + bit % 8
        yield block, bit // 8, ends - widths[block]
        bit += int(ends[-1]) - bit % 8


def _bytes(widths: NDArray[np.integer], bits: Ints) -> Iterator[Ints]:
    """Give the first byte of each field, then the next one ..., as many as the widest may touch."""
    most = int(widths.max())
    return itertools.repeat(bits >> 3, -(-(most + 7) // 8) if most else 0)
