"""Vectors of float32 without loss, bit for bit, or rounded to bfloat16: exponents near their entropy, the rest as is.

A vector is some tensors laid end to end, whose sizes both sides know. It is, little-endian:

    1 byte    the smallest exponent E above 0, at least 1; the exponent is bits 23 to 30 of a value
    1 byte    a middle exponent M
    number    the length of the exponents (`bitfield.py`)
    ...       the exponents less M as `integers.py` codes them, an exponent of 0 as if it were E - 1
    ...       plane 2: bits 16 to 22 of each value, and its sign as the highest bit
    ...       planes 1 and 0, without loss only: bits 8 to 15 and 0 to 7 of each value

A plane has a byte for each value, and comes as two parts: the values whose exponent is not 0, then the others (most of
them zeros). A part is one byte that says how it is coded, a number, its length, and that many bytes:

    0   as it is
    1   a zstandard frame (`frames.py`)
    2   as `entropy.py` codes it, with an alphabet of 256

The smallest is taken, the first of equals. Exponents of trained weights need less than 3 bits of their 8; the planes
hardly compress, unless many values are equal or have few digits.

bfloat16 is the upper half of a float32, here rounded to the nearest, half-way to even. A value above what it holds
becomes infinite, and a NaN stays one, though it may lose its payload.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy, frames, integers
from edge_runtime.compression.errors import DecodeError

Vector = NDArray[np.float32]
Bits = NDArray[np.uint32]

_ALL_PLANES = (2, 1, 0)
_UPPER_PLANE = (2,)
_TILE = 1 << 16
_WORTH_A_TRY = 0.999
"""Bytes that are all but noise take the longest to code, and gain the least."""


def encode_lossless(values: Vector, sizes: Sequence[int]) -> bytes:
    """Encode values [sum of sizes]; the inverse of `decode_lossless`."""
    return _encode(_bits(values, sizes), sizes, _ALL_PLANES)


def decode_lossless(data: bytes, sizes: Sequence[int]) -> Vector:
    """Decode hostile bytes into values [sum of sizes].

    Raises:
        DecodeError: they are not that.
    """
    return _decode(data, sizes, _ALL_PLANES)


def encode_bf16(values: Vector, sizes: Sequence[int]) -> bytes:
    """Round values [sum of sizes] to bfloat16 and encode them; `decode_bf16` gives the rounded ones."""
    return _encode(_bits(round_to_bf16(values), sizes), sizes, _UPPER_PLANE)


def decode_bf16(data: bytes, sizes: Sequence[int]) -> Vector:
    """Decode hostile bytes into values [sum of sizes], each a bfloat16.

    Raises:
        DecodeError: they are not that.
    """
    return _decode(data, sizes, _UPPER_PLANE)


def round_to_bf16(values: Vector) -> Vector:
    """Round values [n] to the nearest bfloat16, half-way to even."""
    bits = values.view(np.uint32)
    half_way = np.uint32(0x7FFF) + (bits >> 16 & 1)
    rounded = np.where(np.isnan(values), bits | np.uint32(1 << 22), bits + half_way)  # a quiet NaN has bit 22
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _bits(values: Vector, sizes: Sequence[int]) -> Bits:
    if values.dtype != np.float32 or values.shape != (sum(sizes),):
        raise TypeError(f"floats: {values.dtype} {values.shape} where float32 ({sum(sizes)},) is expected")
    return np.ascontiguousarray(values).view(np.uint32)


def _encode(bits: Bits, sizes: Sequence[int], planes: Sequence[int]) -> bytes:
    exponents = (bits >> 23 & 255).astype(np.int32)
    smallest = int(exponents.min(initial=255, where=exponents > 0))
    sent = np.maximum(exponents, smallest - 1)
    middle = int(np.median(sent)) if len(sent) else 0
    coded = integers.encode(sent - np.int32(middle), sizes)
    head = bytes([smallest, middle]) + bitfield.pack_number(len(coded))
    parts = bits[exponents > 0], bits[exponents == 0]
    return head + coded + b"".join(_encode_plane(_plane(part, place)) for place in planes for part in parts)


def _decode(data: bytes, sizes: Sequence[int], planes: Sequence[int]) -> Vector:
    reader = bitfield.Reader(data)
    smallest, middle = reader.take(2)
    exponents = integers.decode(reader.take(reader.take_number()), sizes)
    exponents += np.int32(middle)
    if not smallest or ((exponents < smallest - 1) | (exponents > 255)).any():
        raise DecodeError(f"floats: an exponent is above 255, or below the smallest, {smallest}")
    coded = exponents >= smallest
    exponents[~coded] = 0
    bits = exponents.view(np.uint32)
    bits <<= np.uint32(23)
    for place in planes:
        plane = np.empty(len(bits), np.uint8)
        for part in (coded, ~coded):
            plane[part] = _decode_plane(reader, int(np.count_nonzero(part)))
        _add_plane(bits, plane, place)
    if reader.rest():
        raise DecodeError("floats: bytes are left")
    return bits.view(np.float32)


def _plane(bits: Bits, place: int) -> NDArray[np.uint8]:
    upper = bits >> 16 & 127 | bits >> 31 << 7
    return (bits >> (8 * place) if place < 2 else upper).astype(np.uint8)


def _add_plane(bits: Bits, plane: NDArray[np.uint8], place: int) -> None:
    """Put a plane into its place; the inverse of `_plane`."""
    for i in range(0, len(bits), _TILE):
        wide = plane[i : i + _TILE].astype(np.uint32)
        bits[i : i + _TILE] |= wide << (8 * place) if place < 2 else (wide & 127) << 16 | wide >> 7 << 31


def _encode_plane(plane: NDArray[np.uint8]) -> bytes:
    codings = [plane.tobytes(), frames.pack(plane.tobytes())]
    if _entropy_bytes(plane) < _WORTH_A_TRY * len(plane):
        codings.append(entropy.encode(plane, 256))
    kind = min(range(len(codings)), key=lambda i: len(codings[i]))
    return bytes([kind]) + bitfield.pack_number(len(codings[kind])) + codings[kind]


def _entropy_bytes(plane: NDArray[np.uint8]) -> float:
    counts = np.bincount(plane)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(plane) / counts)).sum() / 8)


def _decode_plane(reader: bitfield.Reader, count: int) -> NDArray[np.integer]:
    kind, data = reader.take(1), reader.take(reader.take_number())
    match kind:
        case b"\x00" if len(data) == count:
            return np.frombuffer(data, np.uint8)
        case b"\x01":
            return np.frombuffer(frames.unpack(data, count), np.uint8)
        case b"\x02":
            return entropy.decode(data, count, 256)
        case _:
            raise DecodeError(f"floats: no plane of {count} values is coded as {kind!r} in {len(data)} bytes")
