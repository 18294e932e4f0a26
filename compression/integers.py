"""Vectors of signed integers that are mostly small, near the entropy of what changes along them.

A vector is some tensors laid end to end, whose sizes both sides know. It is one byte that names its coding, then:

    0   nothing: every value is 0
    1   i32 smallest value; u8 width w (0 to 32); planes (`tokens.py`) of the w lowest bits of each value less the
        smallest, least significant first
    2   i32 smallest value; u8 width w (0 to 4); a zstandard frame (`frames.py`) of the w lowest bytes of the same, of
        all values first the least significant, and so on
    3   u8 b (4 to 31); u8 k, the number of classes (1 to 255); u8 t, the number of tokens (1 to 168); the length of the
        classes, and of the tokens, both as numbers (`bitfield.py`); the classes (`pieces.py`); the tokens as
        `entropy.py` codes them; to the end what the tokens leave (`tokens.py`)

In coding 3 each tensor is cut into pieces of 2^b values (`pieces.py`), and each piece has one of k classes, which says
what its values are like: the magnitude and the sign of an update change along a tensor, from row to row, by more than
it costs to say so every 16 values. The tokens of a class share one table, so that a bias of ten values pays for none.
Who knows more of the shape may give the sizes of parts of tensors for those of tensors: rows, or the stretches of a row
that belong to one channel.

The smallest coding is taken, the first of equals. Integers are little-endian.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy, frames, pieces, tokens
from edge_runtime.compression.errors import DecodeError

Integers = NDArray[np.int32]

_PLAIN = struct.Struct("<iB")
_PIECES = (4, pieces.WHOLE)


def encode(values: Integers, sizes: Sequence[int]) -> bytes:
    """Encode values [sum of sizes]; the inverse of `decode`."""
    if values.dtype != np.int32 or values.shape != (sum(sizes),):
        raise TypeError(f"integers: {values.dtype} {values.shape} where int32 ({sum(sizes)},) is expected")
    if not values.any():
        return b"\x00"
    smallest = values.min()
    above = values.view(np.uint32) - smallest.view(np.uint32)
    bits = int(above.max()).bit_length()
    as_bits = _PLAIN.pack(smallest, bits) + b"".join([tokens.pack(above, place) for place in range(bits)])
    as_bytes = _PLAIN.pack(smallest, -(-bits // 8)) + _encode_bytes(above, -(-bits // 8))
    return min((b"\x01" + as_bits, b"\x02" + as_bytes, b"\x03" + _encode_tokens(values, sizes)), key=len)


def decode(data: bytes, sizes: Sequence[int]) -> Integers:
    """Decode hostile bytes into values [sum of sizes].

    Raises:
        DecodeError: they are not that.
    """
    count, reader = sum(sizes), bitfield.Reader(data)
    match reader.take(1):
        case b"\x00" if len(data) == 1:
            return np.zeros(count, np.int32)
        case b"\x01":
            return _decode_plain(reader, count, _decode_bits)
        case b"\x02":
            return _decode_plain(reader, count, _decode_bytes)
        case b"\x03":
            return _decode_tokens(reader, sizes)
        case _:
            raise DecodeError(f"integers: none are coded as {data[:1]!r}")


def _decode_plain(
    reader: bitfield.Reader, count: int, decode_above: Callable[[bitfield.Reader, int, int], NDArray[np.uint32]]
) -> Integers:
    smallest, width = _PLAIN.unpack(reader.take(_PLAIN.size))
    above = decode_above(reader, width, count)
    if reader.rest() or int(above.max(initial=0)) + smallest >= 1 << 31:
        raise DecodeError("integers: bytes are left, or a value is too large")
    above += np.array(smallest, np.int32).view(np.uint32)
    return above.view(np.int32)


def _decode_bits(reader: bitfield.Reader, width: int, count: int) -> NDArray[np.uint32]:
    if width > 32:
        raise DecodeError(f"integers: {width} bits are more than a value has")
    above = np.zeros(count, np.uint32)
    for place in range(width):
        above |= tokens.unpack(reader, count, place)
    return above


def _encode_bytes(above: NDArray[np.uint32], width: int) -> bytes:
    return frames.pack(above.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].T.tobytes())


def _decode_bytes(reader: bitfield.Reader, width: int, count: int) -> NDArray[np.uint32]:
    if width > 4:
        raise DecodeError(f"integers: {width} bytes are more than a value has")
    above = np.zeros((count, 4), np.uint8)
    above[:, :width] = np.frombuffer(frames.unpack(reader.rest(), width * count), np.uint8).reshape(width, count).T
    return above.view("<u4").reshape(count).astype(np.uint32, copy=False)


def _encode_tokens(values: Integers, sizes: Sequence[int]) -> bytes:
    found, rest = tokens.split(values)
    tried = [(b, pieces.classify(values, found, pieces.lengths(sizes, b))) for b in _PIECES]
    b, classes = min(tried, key=lambda choice: choice[1].cost)
    k, t = classes.count, int(found.max()) + 1
    named = pieces.encode(classes)
    coded = entropy.encode(found, t, np.repeat(classes.of_pieces, pieces.lengths(sizes, b)))
    head = bytes([b, k, t]) + bitfield.pack_number(len(named)) + bitfield.pack_number(len(coded))
    return head + named + coded + rest


def _decode_tokens(reader: bitfield.Reader, sizes: Sequence[int]) -> Integers:
    b, k, t = reader.take(3)
    if not pieces.SMALLEST <= b <= pieces.WHOLE or not k or not 1 <= t <= tokens.MOST:
        raise DecodeError(f"integers: pieces of 2^{b} values, {k} classes, {t} tokens")
    named_bytes, coded_bytes = reader.take_number(), reader.take_number()
    lengths = pieces.lengths(sizes, b)
    of_pieces = pieces.decode(reader.take(named_bytes), len(lengths), k)
    found = entropy.decode(reader.take(coded_bytes), sum(sizes), t, np.repeat(of_pieces, lengths))
    return tokens.join(found, reader.rest())
