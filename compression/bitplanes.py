"""One tensor's bits to bytes, in the smallest of some codings.

One byte names the coding of the n bits, then:

    0   n bits packed into bytes, most significant first, the last byte filled up with zeros
    1   a zstandard frame (`frames.py`) of the same
    2   one byte b, the rarer bit; a number (`bitfield.py`), how many of it there are, at most n / 4; where (`gaps.py`)
    3   the bits by the tensor's structure (`structured.py`)
    4   nothing: all bits are 0
    5   nothing: all bits are 1
"""

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, frames, gaps, structured
from edge_runtime.compression.errors import DecodeError

Bits = NDArray[np.bool_]

_PACKED, _FRAME, _GAPS, _STRUCTURED, ZEROS, ONES = range(6)
_SMALL_BYTES = 1 << 13
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
            return _decode_gaps(bitfield.Reader(content), size)
        case 3:
            return structured.decode(content, shape, 2).view(np.bool_)
        case 4 | 5 as bit if not content:
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
