"""A few marked places of a model to bytes, in the context of a mask that both sides know, as a mask's changes are.

What changes is clumpy as masks are, and where it happens shows in the mask before. A place has one of 128 classes:
16 r + 2 c + (whether it is on), with r and c the eighths of its tensor that its row and its column are in. Rows and
columns are those of the tensor's matrix (`grid.py`; c is that of the flat tensor's other dimensions): a row is in the
eighth 8 k // m if k of the m rows have less on, and a column likewise. Of a tensor that is no matrix r = c = 0. The
encoder puts classes where marks are about as frequent into one of 4 groups, or into group 0, where there are none. The
marks are a quarter of the places at most. The bytes:

    number    of the bytes of the next part
    bytes     the group of each class, as symbols (`entropy.py`) of an alphabet of 5
    numbers   how many marks each of the groups 1 to 4 has
    the rest  where these are among the places of their group (`gaps.py`), one list for each of the groups 1 to 4
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy, gaps, grid
from edge_runtime.compression.errors import DecodeError
from edge_runtime.compression.ranks import Members

Bits = NDArray[np.bool_]
Ints = NDArray[np.int64]
Groups = NDArray[np.uint8]
Eighths = NDArray[np.uint8]

_EIGHTHS = 8
_CLASSES = 2 * _EIGHTHS * _EIGHTHS
_GROUPS = 5
_FEW = 4
_TILE = 1 << 16


def are_few(marks: Bits) -> bool:
    """Say whether there are so few marks [n] that they can be encoded: a place takes 40 times a bit's memory."""
    return _FEW * int(np.count_nonzero(marks)) <= len(marks)


def encode(marks: Bits, mask: Bits, shapes: Sequence[tuple[int, ...]]) -> bytes:
    """Encode marks [n] in the context of a mask [n] over tensors laid end to end; the inverse of `decode`.

    See `are_few`.
    """
    at = np.flatnonzero(marks)
    tensors = list(_tensors(mask, shapes))
    groups = _group(_count_at(at, tensors), np.sum([_count(tensor) for tensor in tensors], axis=0))
    coded = entropy.encode(groups, _GROUPS)
    group_of = _spread(groups, tensors, len(mask))
    groups_at = group_of[at]
    places = [Members(group_of, group).rank(at[groups_at == group]) for group in range(1, _GROUPS)]
    counts = b"".join(bitfield.pack_number(len(some)) for some in places)
    return bitfield.pack_number(len(coded)) + coded + counts + gaps.encode(places)


def decode(data: bytes, mask: Bits, shapes: Sequence[tuple[int, ...]]) -> Bits:
    """Decode hostile bytes into marks [n].

    Raises:
        DecodeError: they are not such marks.
    """
    reader = bitfield.Reader(data)
    groups = entropy.decode(reader.take(reader.take_number()), _CLASSES, _GROUPS).astype(np.uint8)
    counts = [reader.take_number() for _ in range(1, _GROUPS)]
    group_of = _spread(groups, _tensors(mask, shapes), len(mask))
    if sum(counts) * _FEW > len(mask):
        raise DecodeError(f"marks: {sum(counts)} in {len(mask)} places")
    members = [Members(group_of, group) for group in range(1, _GROUPS)]
    places = gaps.decode(reader, counts, [len(some) for some in members])
    reader.finish()
    marks = group_of.view(np.bool_)  # which is not needed any more, and new memory costs more than to fill it
    marks[:] = False
    for some, ranks in zip(members, places, strict=True):
        marks[some.select(ranks)] = True
    return marks


@dataclass(frozen=True)
class _Tensor:
    """A tensor's part of the mask as a matrix [m, k], and the eighths of its rows [m] and columns [k]."""

    start: int
    on: NDArray[np.uint8]
    rows: Eighths
    columns: Eighths


def _tensors(mask: Bits, shapes: Sequence[tuple[int, ...]]) -> Iterator[_Tensor]:
    start = 0
    for shape in shapes or ((len(mask),),):
        end = start + math.prod(shape)
        on = mask[start:end].view(np.uint8)
        if grid.sides(shape):
            on = on.reshape(shape[0], -1)
            rows, columns = (_eighths(on.sum(axis=axis, dtype=np.uint32)) for axis in (1, 0))  # 32: the fastest
        else:
            on = on.reshape(1, -1)
            rows, columns = (np.zeros(size, np.uint8) for size in on.shape)
        if end > start:
            yield _Tensor(start, on, rows, columns)
        start = end


def _eighths(counts: NDArray[np.uint32]) -> Eighths:
    return (np.searchsorted(np.sort(counts), counts) * _EIGHTHS // len(counts)).astype(np.uint8)


def _count(tensor: _Tensor) -> Ints:
    """Count the places of each class."""
    heights, widths = (np.bincount(some, minlength=_EIGHTHS) for some in (tensor.rows, tensor.columns))
    counts = np.zeros((_EIGHTHS, _EIGHTHS, 2), np.int64)
    room = np.empty((int(heights.max()), len(tensor.columns)), np.uint8)
    for eighth in range(_EIGHTHS):
        rows = np.flatnonzero(tensor.rows == eighth)
        sums = tensor.on.take(rows, 0, room[: len(rows)], "clip").sum(axis=0, dtype=np.uint32)
        counts[eighth, :, 1] = np.bincount(tensor.columns, sums, _EIGHTHS)  # as float64: exact below 2^53
    counts[:, :, 0] = heights[:, None] * widths - counts[:, :, 1]
    return counts.ravel()


def _count_at(at: Ints, tensors: Sequence[_Tensor]) -> Ints:
    """Count the classes of these places, which rise."""
    counts = np.zeros(_CLASSES, np.int64)
    for tensor in tensors:
        first, last = np.searchsorted(at, [tensor.start, tensor.start + tensor.on.size])
        row, column = np.divmod(at[first:last] - tensor.start, tensor.on.shape[1])
        eighths = _EIGHTHS * tensor.rows[row].astype(np.int64) + tensor.columns[column]
        counts += np.bincount(2 * eighths + tensor.on[row, column], minlength=_CLASSES)
    return counts


def _spread(groups: Groups, tensors: Iterable[_Tensor], size: int) -> Groups:
    """Give the group of each place [size]."""
    group_of = np.empty(size, np.uint8)
    off, on = groups.reshape(_EIGHTHS, _EIGHTHS, 2).transpose(2, 0, 1)
    for tensor in tensors:
        its = group_of[tensor.start : tensor.start + tensor.on.size].reshape(tensor.on.shape)
        if_off, more = (part.take(tensor.columns, axis=1) for part in (off, on - off))
        step = max(1, _TILE // len(tensor.columns))
        for i in range(0, len(tensor.rows), step):
            rows = tensor.rows[i : i + step]
            some = np.multiply(more[rows], tensor.on[i : i + step], out=its[i : i + step])  # modulo 256
            some += if_off[rows]
    return group_of


def _group(marked: Ints, sizes: Ints) -> Groups:
    """Put classes into groups by the part of them that is marked, each group with about as many marks."""
    order = np.argsort(-marked / np.maximum(sizes, 1), kind="stable")
    middles = np.cumsum(marked[order]) * 2 - marked[order]
    groups = np.zeros(_CLASSES, np.uint8)
    groups[order] = 1 + middles * (_GROUPS - 1) // max(2 * int(marked.sum()), 1)
    return np.where(marked > 0, groups, 0).astype(np.uint8)
