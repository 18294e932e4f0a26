"""Masks on the wire: as a seed, whole, or as what changed. Bits in, bytes out, and back.

A bit vector whose length n both sides know is one byte that names its coding, then:

    0   n bits packed into bytes, most significant first, the last byte filled up with zeros
    1   a zstandard frame (`frames.py`) of the same
    2   one byte b, the rarer bit; u32 count of it, at most n / 2; u32 length of the gap bytes; a zstandard frame of
        them. A gap g is the number of other bits before each rarer one: g // 255 bytes of 255, then one byte g % 255

A change from a mask that both sides hold is one byte that names its form, then:

    0   nothing: the mask stays as it is
    1   the new mask as a bit vector
    2   old XOR new as a bit vector
    3   u32 length of the first, then two bit vectors: which of the active were dropped, which inactive ones grown

Integers are little-endian. The smallest is taken each time, the first of equals. A mask from a seed is defined by the
raw 64-bit draws of PCG64, started by numpy's SeedSequence from the seed as a little-endian integer. numpy promises the
same draws for ever (NEP 19), but not the same results of its sampling functions.
"""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import frames
from edge_runtime.compression.errors import DecodeError

Bits = NDArray[np.bool_]

SEED_BYTES = 16
_PIECE = 1 << 18
_TOP_BITS = 12
_SHIFT = np.uint64(64 - _TOP_BITS)
_SIZE = struct.Struct("<I")
_GAPS = struct.Struct("<BII")


def from_seed(seed: bytes, sizes: Sequence[int], active: Sequence[int]) -> Bits:
    """Draw a random mask over tensors laid end to end [sum of sizes].

    Of tensor l exactly `active[l]` of `sizes[l]` coordinates are on: those with the smallest draws, in the order of
    (draw, index).
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    generator = np.random.PCG64(int.from_bytes(seed, "little"))
    mask = np.zeros(sum(sizes), np.bool_)
    start = 0
    for size, kept in zip(sizes, active, strict=True):
        _turn_on(mask[start : start + size], kept, generator)
        start += size
    return mask


def _turn_on(part: Bits, kept: int, generator: np.random.PCG64) -> None:
    """Turn on the `kept` coordinates with the smallest draws.

    The draws are made twice, piece by piece, since all of a large tensor's would take eight times its mask's memory:
    once to find the top bits of the last draw that is kept, and once to compare.
    """
    state = generator.state
    counts = np.zeros(1 << _TOP_BITS, np.int64)
    for _, draws in _pieces(len(part), generator):
        counts += np.bincount((draws >> _SHIFT).astype(np.int64), minlength=len(counts))
    if not kept:
        return
    generator.state = state
    through = np.cumsum(counts)
    last = int(np.searchsorted(through, kept))
    close, where = [], []
    for start, draws in _pieces(len(part), generator):
        top = draws >> _SHIFT
        part[start : start + len(draws)] = top < last
        at = np.flatnonzero(top == last)
        close.append(draws[at])
        where.append(at + start)
    order = np.argsort(np.concatenate(close), kind="stable")
    part[np.concatenate(where)[order[: kept - int(through[last] - counts[last])]]] = True


def _pieces(size: int, generator: np.random.PCG64) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    for start in range(0, size, _PIECE):
        yield start, generator.random_raw(min(_PIECE, size - start))


def encode(bits: Bits) -> bytes:
    """Encode a bit vector; the inverse of `decode`."""
    packed = np.packbits(bits).tobytes()
    return min((b"\x00" + packed, b"\x01" + frames.pack(packed), _encode_gaps(bits)), key=len)


def decode(data: bytes, size: int) -> Bits:
    """Decode hostile bytes into a bit vector [size].

    Raises:
        DecodeError: they are not one.
    """
    if data[:1] == b"\x02":
        return _decode_gaps(data, size)
    if data[:1] not in (b"\x00", b"\x01"):
        raise DecodeError(f"mask: no bit vector is coded as {data[:1]!r}")
    length = -(-size // 8)
    packed = data[1:] if data[:1] == b"\x00" else frames.unpack(data[1:], length)
    if len(packed) != length:
        raise DecodeError(f"mask: {len(packed)} bytes where {length} are expected")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if bits[size:].any():
        raise DecodeError("mask: it is filled up with other than zeros")
    return bits[:size].astype(np.bool_)


def encode_change(old: Bits, new: Bits) -> bytes:
    """Encode what makes `old` into `new` (same length); the inverse of `decode_change`."""
    changed = old ^ new
    if not changed.any():
        return b"\x00"
    dropped, grown = encode(changed[old]), encode(changed[~old])
    two_sets = b"\x03" + _SIZE.pack(len(dropped)) + dropped + grown
    return min((b"\x01" + encode(new), b"\x02" + encode(changed), two_sets), key=len)


def decode_change(data: bytes, old: Bits) -> Bits:
    """Decode hostile bytes into the mask that `old` becomes.

    Raises:
        DecodeError: they are not a change of a mask of this length.
    """
    match data[:1]:
        case b"\x00" if len(data) == 1:
            return old.copy()
        case b"\x01":
            return decode(data[1:], len(old))
        case b"\x02":
            return old ^ decode(data[1:], len(old))
        case b"\x03" if len(data) >= 1 + _SIZE.size:
            return _decode_two_sets(data, old)
        case _:
            raise DecodeError("mask: not a change of a mask")


def _decode_two_sets(data: bytes, old: Bits) -> Bits:
    start = 1 + _SIZE.size
    end = start + _SIZE.unpack_from(data, 1)[0]
    active = int(np.count_nonzero(old))
    new = old.copy()
    new[old] ^= decode(data[start:end], active)
    new[~old] ^= decode(data[end:], len(old) - active)
    return new


def _encode_gaps(bits: Bits) -> bytes:
    rarer = 2 * int(np.count_nonzero(bits)) <= len(bits)
    places = np.flatnonzero(bits == rarer)
    gaps = np.diff(places, prepend=-1) - 1
    coded = np.full(len(gaps) + int((gaps // 255).sum()), 255, np.uint8)
    coded[np.cumsum(gaps // 255 + 1) - 1] = gaps % 255
    return b"\x02" + _GAPS.pack(rarer, len(places), len(coded)) + frames.pack(coded.tobytes())


def _decode_gaps(data: bytes, size: int) -> Bits:
    if len(data) < 1 + _GAPS.size:
        raise DecodeError("mask: it ends too early")
    rarer, count, length = _GAPS.unpack_from(data, 1)
    if rarer > 1 or 2 * count > size or length > count + size // 255:
        raise DecodeError("mask: it claims more gaps than fit")
    coded = np.frombuffer(frames.unpack(data[1 + _GAPS.size :], length), np.uint8)
    ends = coded != 255
    if int(np.count_nonzero(ends)) != count or (length and not ends[-1]):
        raise DecodeError("mask: its gaps do not add up")
    places = np.cumsum(coded, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= size:
        raise DecodeError("mask: a gap leads beyond its end")
    bits = np.full(size, not rarer, np.bool_)
    bits[places] = bool(rarer)
    return bits
