"""A shared model as whole numbers, so that what a device lacks of it is an exact difference.

The coordinator keeps the model w at full precision. What it tells of it is w rounded to a grid: tensor l has a step
2^e_l, and the device gets k = round(w / 2^e_l), half to even, of which it makes the float32 values k 2^e_l. Nobody owes
anybody the rounding: it never enters w. Two sides that hold the grid of an earlier round need only the difference of
the whole numbers, which is exact, and the same for all who hold that round's. A step is a power of two, so that grids
nest: with another step, both count in the finer one.

    e_l = round(log2 rms of the last change of tensor l, where it is not 0) + log2 of the coding's step (`coding.py`)

e_l moves only when the change has at least doubled or halved twice since it was set. Before the first change is known,
it is taken for 1/16 of the tensor's rms. |k| stays below 2^24, so that float32 holds it exactly.

What a device does not hold yet it may know all the same: a built-in model begins as its run's seed says
(`models.initial`), and most of it stays close to that. So it is told k - k0, with k0 = round(w_0 / 2^e_l), half to even
and at most 2^23 either way.

The coded form, little-endian: u32 round, one signed byte per tensor (its e_l), and one byte, 0 to 3. If that is odd:
u32 round of the grid that the other side holds, u32 CRC-32 of what it holds of it (its e_l, then k as i32), u32 length
of the vector that comes next, and the differences of what it holds. Then, if there is anything that it does not hold:
k, or if the byte is 2 or 3, u32 CRC-32 of these k0 as i32, and k - k0. These are vectors of whole numbers
(`compression/integers.py`), cut into the rows of the tensors.
"""

import dataclasses
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import integers
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat, Layout

Bits = NDArray[np.bool_]
Integers = NDArray[np.int32]
Exponents = NDArray[np.int8]

Initial = Callable[[Bits | None], Flat] | None
"""Gives w_0 at some places of the model [size] (None: at all), in the layout's order; None: nobody knows it."""

_HEAD, _BASE, _CRC = struct.Struct("<I"), struct.Struct("<III"), struct.Struct("<I")
_LOWEST, _HIGHEST, _MOST_BITS = -100, 100, 23
_FIRST_CHANGE = 1 / 16
_SLACK = 2
_CHANGE, _FROM_START = 1, 2
_MOST_APART = 6
"""Between two exponents, for a difference to be sent."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The shared model of a round on its grid, or what a device holds of it."""

    round: int
    exponents: Exponents
    """Of every tensor's step [tensors]."""
    values: Integers
    """k of the values held, in the layout's order."""
    held: Bits | None = None
    """Which values of the model these are [size]; None: all."""

    def floats(self, layout: Layout) -> Flat:
        """Give k 2^e."""
        values = self.values.astype(np.float32)
        for at, exponent in zip(cuts(counts(layout, self.held)), self.exponents, strict=True):
            values[at] = np.ldexp(values[at], int(exponent))
        return values


def exponents(change: Flat | None, model: Flat, layout: Layout, before: Exponents | None) -> Exponents:
    """Choose e_l for step 1.

    Args:
        change: of the model in the last round [size]; None: it has not changed yet.
        model: as it now is [size].
        layout: of both.
        before: what was chosen last [tensors].
    """
    found = np.zeros(len(layout.sizes), np.int8)
    for i, where in enumerate(layout.slices):
        rms = _rms(model[where]) * _FIRST_CHANGE if change is None else _rms(change[where])
        kept = _LOWEST if before is None else int(before[i])
        wanted = _exponent(rms) if rms else kept
        found[i] = wanted if before is None or abs(wanted - kept) >= _SLACK else kept
    return found


def _rms(values: Flat) -> float:
    """Give the root mean square of what is not 0: what a sparse update does not touch says nothing of its size."""
    wide = values[values != 0].astype(np.float64)
    return float(np.sqrt(wide @ wide / len(wide))) if len(wide) else 0.0


def _exponent(length: float) -> int:
    return int(np.clip(np.rint(np.log2(length)), _LOWEST, _HIGHEST))


def read_exponents(data: bytes) -> Exponents:
    """Read exponents, which are stored as signed bytes."""
    return np.frombuffer(data, np.int8).copy()


def snap(model: Flat, layout: Layout, round_: int, steps: Exponents, finer: int) -> Grid:
    """Round a model [size] to the grid of steps 2^(steps + finer) (coarser where its values are too large for that)."""
    values = np.empty(layout.size, np.int32)
    used = np.empty(len(steps), np.int8)
    for i, where in enumerate(layout.slices):
        largest = float(np.abs(model[where]).max(initial=0.0))
        least = int(np.frexp(largest)[1]) - _MOST_BITS if largest else _LOWEST
        used[i] = np.clip(max(int(steps[i]) + finer, least), _LOWEST, _HIGHEST)
        values[where] = np.rint(np.ldexp(model[where], -int(used[i])))
    return Grid(round_, used, values)


def part(grid: Grid, held: Bits | None) -> Grid:
    """Give what a device holds of a whole grid."""
    return grid if held is None else Grid(grid.round, grid.exponents, grid.values[held], held)


def encode(grid: Grid, layout: Layout, base: Grid | None, initial: Initial = None) -> bytes:
    """Encode for a device that holds `base` (None: nothing) and may know w_0; the inverse of `decode`."""
    start = None if initial is None else _snapped(initial(grid.held), layout, grid)
    head, from_start = _HEAD.pack(grid.round) + grid.exponents.tobytes(), 0 if start is None else _FROM_START
    whole = b""
    if base is None or not np.array_equal(base.exponents, grid.exponents):
        every = np.ones(len(grid.values), np.bool_)
        whole = head + bytes([from_start]) + _encode_fresh(grid, layout, every, start)
    if base is None:
        return whole
    sent = grid.values.copy()
    known = np.empty(len(sent), np.bool_)
    for at, (mine, theirs), (found, values) in zip(
        cuts(counts(layout, grid.held)), _exponents(grid, base), _aligned(layout, base, grid.held), strict=True
    ):
        known[at] = found & (abs(mine - theirs) <= _MOST_APART)
        if not known[at].any():
            continue
        old, least = known[at], min(mine, theirs)
        sent[at][old] = (sent[at][old] << (mine - least)) - (values[old] << (theirs - least))
    changes = integers.encode(sent[known], rows(layout, _spread(layout, grid.held, known)))
    fresh = _encode_fresh(grid, layout, ~known, start)
    change = (
        head + bytes([from_start | _CHANGE]) + _BASE.pack(base.round, _crc_of(base), len(changes)) + changes + fresh
    )
    return whole if whole and len(whole) < len(change) else change


def decode(data: bytes, layout: Layout, held: Bits | None, base: Grid | None, initial: Initial = None) -> Grid:
    """Decode hostile bytes into what a device holds at `held` [size], given what it held before, and maybe w_0.

    Raises:
        DecodeError: malformed, or a difference from something else than `base`, or than w_0 as it is here.
    """
    tensors, sizes = len(layout.sizes), counts(layout, held)
    start = _HEAD.size + tensors + 1
    if len(data) < start:
        raise DecodeError("grid: it ends too early")
    exponents = np.frombuffer(data, np.int8, tensors, _HEAD.size).copy()
    if tensors and not _LOWEST <= int(exponents.min()) <= int(exponents.max()) <= _HIGHEST:
        raise DecodeError("grid: a step is out of range")
    blank = Grid(_HEAD.unpack_from(data)[0], exponents, np.empty(sum(sizes), np.int32), held)
    form = data[start - 1]
    if form > _CHANGE | _FROM_START:
        raise DecodeError(f"grid: no form is {form}")
    if form & _FROM_START and initial is None:
        raise DecodeError("grid: it counts from a beginning that this device does not know")
    known = initial if form & _FROM_START else None
    if form & _CHANGE:
        _add(blank, data[start:], layout, base, known)
    else:
        _take_fresh(blank, layout, np.ones(len(blank.values), np.bool_), known, data[start:])
    if len(blank.values) and int(np.abs(blank.values.astype(np.int64)).max()) >> (_MOST_BITS + 1):
        raise DecodeError("grid: a value is too large")
    return blank


def _add(grid: Grid, data: bytes, layout: Layout, base: Grid | None, initial: Initial) -> None:
    """Fill in the values of `grid` from a difference."""
    if len(data) < _BASE.size:
        raise DecodeError("grid: it ends too early")
    round_, crc, length = _BASE.unpack_from(data)
    if base is None or base.round != round_:
        holds = "none" if base is None else f"that of round {base.round}"
        raise DecodeError(f"grid: a difference from that of round {round_}, and this device holds {holds}")
    if _crc_of(base) != crc:
        raise DecodeError(f"grid: a difference from another grid of round {round_} than the one that this device holds")
    sizes = counts(layout, grid.held)
    aligned = list(_aligned(layout, base, grid.held))
    apart = [abs(mine - theirs) <= _MOST_APART for mine, theirs in _exponents(grid, base)]
    known = [found & close for (found, _), close in zip(aligned, apart, strict=True)]
    old = np.concatenate(known)
    end = _BASE.size + length
    changes = integers.decode(data[_BASE.size : end], rows(layout, _spread(layout, grid.held, old)))
    _take_fresh(grid, layout, ~old, initial, data[end:])
    done = 0
    for at, here, (_, values), (mine, theirs) in zip(cuts(sizes), known, aligned, _exponents(grid, base), strict=True):
        count = int(np.count_nonzero(here))
        if count:  # else the steps may be too far apart to shift by
            least = min(mine, theirs)
            held = values[here].astype(np.int64) << (theirs - least)
            grid.values[at][here] = (held + changes[done : done + count]) >> (mine - least)
        done += count


def _encode_fresh(grid: Grid, layout: Layout, fresh: Bits, start: Integers | None) -> bytes:
    """Encode those values of a grid that are `fresh`, from w_0 on its grid if that is known."""
    if not fresh.any():
        return b""
    at = rows(layout, _spread(layout, grid.held, fresh))
    if start is None:
        return integers.encode(grid.values[fresh], at)
    return _CRC.pack(_crc(start[fresh])) + integers.encode(grid.values[fresh] - start[fresh], at)


def _take_fresh(grid: Grid, layout: Layout, fresh: Bits, initial: Initial, data: bytes) -> None:
    """Fill in those values of a grid that are `fresh`; the inverse of `_encode_fresh`."""
    if not fresh.any():
        if data:
            raise DecodeError("grid: it tells of more than there is")
        return
    places = _spread(layout, grid.held, fresh)
    if initial is None:
        grid.values[fresh] = integers.decode(data, rows(layout, places))
        return
    start = _snapped(initial(places), layout, dataclasses.replace(grid, held=places))
    if data[: _CRC.size] != _CRC.pack(_crc(start)):
        raise DecodeError(
            "grid: it counts from another beginning than this device draws from the seed: update it, or the coordinator"
        )
    grid.values[fresh] = start + integers.decode(data[_CRC.size :], rows(layout, places))


def _crc(values: Integers, start: int = 0) -> int:
    return zlib.crc32(values.astype("<i4", copy=False).data, start)


def _crc_of(grid: Grid) -> int:
    return _crc(grid.values, zlib.crc32(grid.exponents.tobytes()))


def _snapped(values: Flat, layout: Layout, grid: Grid) -> Integers:
    """Count values, which lie where those of `grid` do, in its steps."""
    found = np.empty(len(values), np.int32)
    with np.errstate(over="ignore"):
        for at, exponent in zip(cuts(counts(layout, grid.held)), grid.exponents, strict=True):
            steps = np.ldexp(values[at], -int(exponent))
            np.rint(steps, out=steps)
            found[at] = np.clip(steps, -1 << _MOST_BITS, 1 << _MOST_BITS, out=steps)
    return found


def pack(grid: Grid) -> bytes:
    """Write down a grid for oneself: round, exponents and k as they are, quickly; the inverse of `unpack`."""
    return _HEAD.pack(grid.round) + grid.exponents.tobytes() + grid.values.astype("<i4").tobytes()


def unpack(data: bytes, layout: Layout, held: Bits | None) -> Grid:
    """Read what `pack` wrote of the values in `held` [size].

    Raises:
        DecodeError: it is of another length.
    """
    tensors, size = len(layout.sizes), sum(counts(layout, held))
    if len(data) != _HEAD.size + tensors + 4 * size:
        raise DecodeError(f"grid: {len(data)} bytes do not hold {size} values of {tensors} tensors")
    exponents = np.frombuffer(data, np.int8, tensors, _HEAD.size).copy()
    values = np.frombuffer(data, "<i4", size, _HEAD.size + tensors).astype(np.int32)
    return Grid(_HEAD.unpack_from(data)[0], exponents, values, held)


def counts(layout: Layout, held: Bits | None) -> tuple[int, ...]:
    """Count the values held of every tensor."""
    if held is None:
        return layout.sizes
    return tuple(int(np.count_nonzero(held[where])) for where in layout.slices)


def rows(layout: Layout, held: Bits | None) -> list[int]:
    """Count the values held of every row of every tensor (its first axis; of one dimension it is one row)."""
    counted: list[int] = []
    for shape, size, where in zip(layout.shapes, layout.sizes, layout.slices, strict=True):
        count = shape[0] if len(shape) > 1 else 1
        if held is None:
            counted += [size // count] * count
        else:
            counted += np.count_nonzero(held[where].reshape(count, -1), axis=1).tolist()
    return counted


def _spread(layout: Layout, held: Bits | None, chosen: Bits) -> Bits:
    """Say which values of the model [size] those are that are `chosen` of the held ones."""
    if held is None:
        return chosen
    dense = np.zeros(layout.size, np.bool_)
    dense[held] = chosen
    return dense


def cuts(sizes: Sequence[int]) -> list[slice]:
    """Say where tensors of these sizes lie, end to end."""
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _exponents(grid: Grid, base: Grid) -> list[tuple[int, int]]:
    return list(zip(grid.exponents.tolist(), base.exponents.tolist(), strict=True))


def _aligned(layout: Layout, base: Grid, held: Bits | None) -> Iterator[tuple[Bits, Integers]]:
    """Give for every tensor, at the places in `held`, whether `base` holds a value there, and which (else 0)."""
    for where, at in zip(layout.slices, cuts(counts(layout, base.held)), strict=True):
        size = where.stop - where.start
        found, values = np.ones(size, np.bool_), base.values[at]
        if base.held is not None:
            found = base.held[where]
            values = np.zeros(size, np.int32)
            values[found] = base.values[at]
        yield (found, values) if held is None else (found[held[where]], values[held[where]])
