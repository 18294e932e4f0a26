"""One tensor's bits to bytes, in the smallest of some codings.

One byte names the coding of the n bits, then:

    0   n bits packed into bytes, most significant first, the last byte filled up with zeros
    1   a zstandard frame (`frames.py`) of the same
    2   (no longer written) one byte b, the rarer bit; u32 count of it, at most n / 2; u32 length of the gap bytes; a
        frame of them. A gap g is the number of other bits before each rarer one: g // 255 bytes of 255, then g % 255
    3   one byte b, the rarer bit; a number (`bitfield.py`), how many of it there are, at most n / 4; where (`gaps.py`)
    4   the bits by the tensor's structure (`structured.py`)
    5   nothing: all bits are 0
    6   nothing: all bits are 1
"""

import math
import struct

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, frames, gaps, structured
from edge_runtime.compression.errors import DecodeError

Bits = NDArray[np.bool_]

_PACKED, _FRAME, _, _GAPS, _STRUCTURED, ZEROS, ONES = range(7)
_SMALL_BYTES = 1 << 13
_OLD_HEAD = struct.Struct("<BII")
_RARE = 4


def encode(bits: Bits, shape: tuple[int, ...]) -> bytes:
    """Encode bits [product of shape]; the inverse of `decode`."""
    ones = int(np.count_nonzero(bits))
    if ones in (0, len(bits)):
        return bytes([ONES if ones else ZEROS])
    packed = np.packbits(bits).tobytes()
    codings = [bytes([_PACKED]) + packed, bytes([_FRAME]) + frames.pack(packed, thorough=len(packed) <= _SMALL_BYTES)]
    if _RARE * min(ones, len(bits) - ones) <= len(bits):
        codings.append(bytes([_GAPS]) + _encode_gaps(bits))
    if (structured_bits := structured.encode(bits.view(np.uint8), shape, 2)) is not None:
        codings.append(bytes([_STRUCTURED]) + structured_bits)
    return min(codings, key=len)


def decode(data: bytes, shape: tuple[int, ...]) -> Bits:
    """Decode hostile bytes into bits [product of shape].

    Raises:
        DecodeError: they are not such bits.
    """
    size, content = math.prod(shape), data[1:]
    match data[0] if data else None:
        case 0:
            return _unpack(content, size)
        case 1:
            return _unpack(frames.unpack(content, -(-size // 8)), size)
        case 2:
            return _decode_old_gaps(content, size)
        case 3:
            return _decode_gaps(bitfield.Reader(content), size)
        case 4:
            return structured.decode(content, shape, 2).view(np.bool_)
        case 5 | 6 as bit if not content:
            return np.full(size, bit == ONES)
        case kind:
            raise DecodeError(f"bits: {len(data)} bytes of the coding {kind}")


def _unpack(packed: bytes, size: int) -> Bits:
    if len(packed) != -(-size // 8):
        raise DecodeError(f"bits: {len(packed)} bytes where {-(-size // 8)} are expected")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if bits[size:].any():
        raise DecodeError("bits: they are filled up with other than zeros")
    return bits[:size].view(np.bool_)


def _encode_gaps(bits: Bits) -> bytes:
    rarer = 2 * int(np.count_nonzero(bits)) <= len(bits)
    places = np.flatnonzero(bits == rarer)
    return bytes([rarer]) + bitfield.pack_number(len(places)) + gaps.encode([places])


def _decode_gaps(reader: bitfield.Reader, size: int) -> Bits:
    rarer, count = reader.take(1)[0], reader.take_number()
    if rarer > 1 or _RARE * count > size:
        raise DecodeError(f"bits: {count} of {size} are the rarer ones, {rarer}")
    bits = np.full(size, not rarer, np.bool_)
    bits[gaps.decode(reader, [count], [size])[0]] = bool(rarer)
    reader.finish()
    return bits


def _decode_old_gaps(data: bytes, size: int) -> Bits:
    if len(data) < _OLD_HEAD.size:
        raise DecodeError("bits: they end too early")
    rarer, count, length = _OLD_HEAD.unpack_from(data)
    if rarer > 1 or 2 * count > size or length > count + size // 255:
        raise DecodeError("bits: they claim more gaps than fit")
    coded = np.frombuffer(frames.unpack(data[_OLD_HEAD.size :], length), np.uint8)
    ends = coded != 255
    if int(np.count_nonzero(ends)) != count or (length and not ends[-1]):
        raise DecodeError("bits: their gaps do not add up")
    places = np.cumsum(coded, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= size:
        raise DecodeError("bits: a gap leads beyond the end")
    bits = np.full(size, not rarer, np.bool_)
    bits[places] = bool(rarer)
    return bits
