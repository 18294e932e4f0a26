"""Masks on the wire: as a seed, whole, or as what changed. Bits in, bytes out, and back.

Both sides know the shapes of the tensors that a bit vector lies over, end to end. The vector is the coding of its bits
(`bitplanes.py`) as those of one tensor: of its shape if there is only one, else flat. Or it is one byte 6 and then
the codings of all tensors, one after the other; in each but the last, if it is a coding 0 to 3, the number
(`bitfield.py`) of the bytes that follow comes after its first byte.

A change from a mask that both sides hold is one byte that names its form, then:

    0   nothing: the mask stays as it is
    1   the new mask as a bit vector
    2   which places change, in the context of the old mask (`marks.py`)
    3   which places are dropped, in the same way; as many grow in the same tensor, drawn from a seed that both know
    4   the same, but the dropped places as a bit vector

A mask from a seed, and growth from one, are defined by the raw
64-bit draws of PCG64, started by numpy's SeedSequence from the seed as a little-endian integer. numpy promises the same
draws for ever (NEP 19), but not the same results of its sampling functions.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, bitplanes, marks
from edge_runtime.compression.errors import DecodeError

Bits = NDArray[np.bool_]
Shapes = Sequence[tuple[int, ...]]

SEED_BYTES = 16
_PIECE = 1 << 18
_TOP_BITS = 12
_SHIFT = np.uint64(64 - _TOP_BITS)
_FEW = 64
_SEVERAL = b"\x06"


def from_seed(seed: bytes, sizes: Sequence[int], active: Sequence[int]) -> Bits:
    """Draw a random mask over tensors laid end to end [sum of sizes].

    Of tensor l exactly `active[l]` of `sizes[l]` coordinates are on: those with the smallest draws, in the order of
    (draw, index).
    """
    generator = _generator(seed)
    mask = np.zeros(sum(sizes), np.bool_)
    start = 0
    for size, kept in zip(sizes, active, strict=True):
        _turn_on(mask[start : start + size], kept, generator)
        start += size
    return mask


def grow_from_seed(seed: bytes, barred: Bits, sizes: Sequence[int], numbers: Sequence[int]) -> Bits:
    """Draw places to grow at in tensors laid end to end [sum of sizes], `numbers[l]` of tensor l, none of them barred.

    The places that are not barred are drawn from in their order, as `from_seed` draws from all.
    """
    generator = _generator(seed)
    grown = np.zeros(len(barred), np.bool_)
    start = 0
    for size, number in zip(sizes, numbers, strict=True):
        free = ~barred[start : start + size]
        drawn = np.zeros(int(np.count_nonzero(free)), np.bool_)
        _turn_on(drawn, number, generator)
        grown[start : start + size][free] = drawn
        start += size
    return grown


def _generator(seed: bytes) -> np.random.PCG64:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    return np.random.PCG64(int.from_bytes(seed, "little"))


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


def encode(bits: Bits, shapes: Shapes = ()) -> bytes:
    """Encode a bit vector over tensors of these shapes (none: one of one dimension); the inverse of `decode`."""
    *parts, last = [bitplanes.encode(bits[held], shape) for held, shape in _tensors(len(bits), shapes)]
    return b"".join([_SEVERAL, *map(_framed, parts), last]) if parts else last


def decode(data: bytes, size: int, shapes: Shapes = ()) -> Bits:
    """Decode hostile bytes into a bit vector [size] over tensors of these shapes (none: one of one dimension).

    Raises:
        DecodeError: they are not one.
    """
    *tensors, (held, shape) = _tensors(size, shapes)
    if data[:1] != _SEVERAL:
        return bitplanes.decode(data, (size,) if tensors else shape)
    bits = np.empty(size, np.bool_)
    reader = bitfield.Reader(data[1:])
    for some, its_shape in tensors:
        bits[some] = bitplanes.decode(_take_framed(reader), its_shape)
    bits[held] = bitplanes.decode(reader.rest(), shape)
    return bits


def _tensors(size: int, shapes: Shapes) -> list[tuple[slice, tuple[int, ...]]]:
    shapes = shapes or ((size,),)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    if ends[-1] != size:
        raise ValueError(f"tensors of {ends[-1]} values in all where there are {size}")
    return [(slice(end - math.prod(shape), end), shape) for shape, end in zip(shapes, ends, strict=True)]


def _framed(part: bytes) -> bytes:
    return part[:1] + bitfield.pack_number(len(part) - 1) + part[1:] if part[0] < bitplanes.ZEROS else part


def _take_framed(reader: bitfield.Reader) -> bytes:
    kind = reader.take(1)
    return kind + reader.take(reader.take_number()) if kind[0] < bitplanes.ZEROS else kind


def encode_change(old: Bits, new: Bits, shapes: Shapes = ()) -> bytes:
    """Encode what makes `old` into `new` (same length); the inverse of `decode_change`."""
    changed = old ^ new
    if not changed.any():
        return b"\x00"
    if not marks.are_few(changed):
        return b"\x01" + encode(new, shapes)
    places = b"\x02" + marks.encode(changed, old, shapes)
    if _FEW * len(places) < len(old):  # to try the whole mask as well would take several times as long
        return places
    return min((places, b"\x01" + encode(new, shapes)), key=len)


def encode_regrowth(old: Bits, dropped: Bits, shapes: Shapes = ()) -> bytes:
    """Encode which places of `old` are `dropped`, where a seed says what grows; `decode_change` tells what comes of it.

    Args:
        old: the mask before.
        dropped: bits of the same length.
        shapes: as of `encode`.
    """
    return b"\x03" + marks.encode(dropped, old, shapes) if marks.are_few(dropped) else b"\x04" + encode(dropped, shapes)


def decode_change(data: bytes, old: Bits, shapes: Shapes = (), seed: bytes = b"", again: bool = True) -> Bits:
    """Decode hostile bytes into the mask that `old` becomes.

    Args:
        data: what `encode_change` or, if there is a seed, `encode_regrowth` made.
        old: the mask before.
        shapes: of the tensors laid end to end; none: one of one dimension.
        seed: what grows is drawn from it; see `regrow`.
        again: whether places just dropped may grow.

    Raises:
        DecodeError: they are not a change of a mask of this length.
    """
    match data[:1]:
        case b"\x00" if len(data) == 1:
            return old.copy()
        case b"\x01":
            return decode(data[1:], len(old), shapes)
        case b"\x02":
            changed = marks.decode(data[1:], old, shapes)
            changed ^= old
            return changed
        case b"\x03" if seed:
            return regrow(old, marks.decode(data[1:], old, shapes), shapes, seed, again)
        case b"\x04" if seed:
            return regrow(old, decode(data[1:], len(old), shapes), shapes, seed, again)
        case _:
            raise DecodeError("mask: not a change of a mask")


def regrow(old: Bits, dropped: Bits, shapes: Shapes, seed: bytes, again: bool = True) -> Bits:
    """Drop places of `old`, and grow as many in each tensor from a seed; none of `old`, but `again` just dropped ones.

    Raises:
        DecodeError: a place that is dropped is not in `old`, or there is no room to grow.
    """
    tensors = [held for held, _ in _tensors(len(old), shapes)]
    numbers = [int(np.count_nonzero(dropped[held])) for held in tensors]
    kept = old & ~dropped
    barred = kept if again else old
    room = [held.stop - held.start - int(np.count_nonzero(barred[held])) for held in tensors]
    if (dropped & ~old).any() or any(number > free for number, free in zip(numbers, room, strict=True)):
        raise DecodeError("mask: what is dropped was not there, or as many cannot grow")
    return kept | grow_from_seed(seed, barred, [held.stop - held.start for held in tensors], numbers)
