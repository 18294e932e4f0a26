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
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy, gaps, grid
from edge_runtime.compression.errors import DecodeError
from edge_runtime.compression.ranks import Members

Bits = NDArray[np.bool_]
Classes = NDArray[np.uint8]

_EIGHTHS = 8
_CLASSES = 2 * _EIGHTHS * _EIGHTHS
_GROUPS = 5
_FEW = 4


def are_few(marks: Bits) -> bool:
    """Say whether there are so few marks [n] that they can be encoded: a place takes 40 times a bit's memory."""
    return _FEW * int(np.count_nonzero(marks)) <= len(marks)


def encode(marks: Bits, mask: Bits, shapes: Sequence[tuple[int, ...]]) -> bytes:
    """Encode marks [n] in the context of a mask [n] over tensors laid end to end; the inverse of `decode`.

    See `are_few`.
    """
    classes, at = _classes(mask, shapes), np.flatnonzero(marks)
    groups = _group(np.bincount(classes[at], minlength=_CLASSES), _count(classes))
    coded = entropy.encode(groups, _GROUPS)
    group_of = groups.take(classes)
    groups_at = group_of[at]
    places = [Members(group_of == group).rank(at[groups_at == group]) for group in range(1, _GROUPS)]
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
    group_of = groups.take(_classes(mask, shapes))
    if sum(counts) * _FEW > len(mask):
        raise DecodeError(f"marks: {sum(counts)} in {len(mask)} places")
    members = [Members(group_of == group) for group in range(1, _GROUPS)]
    places = gaps.decode(reader, counts, [len(some) for some in members])
    reader.finish()
    marks = np.zeros(len(mask), np.bool_)
    for some, ranks in zip(members, places, strict=True):
        marks[some.select(ranks)] = True
    return marks


def _classes(mask: Bits, shapes: Sequence[tuple[int, ...]]) -> Classes:
    classes = mask.astype(np.uint8)
    start = 0
    for shape in shapes:
        end = start + math.prod(shape)
        if grid.sides(shape):
            matrix = mask[start:end].view(np.uint8).reshape(shape[0], -1)
            rows, columns = (_eighths(matrix.sum(axis=axis, dtype=np.uint32)) for axis in (1, 0))  # 32: the fastest
            classes[start:end].reshape(matrix.shape)[:] += 2 * _EIGHTHS * rows[:, None] + 2 * columns
        start = end
    return classes


def _eighths(counts: NDArray[np.uint32]) -> Classes:
    return (np.searchsorted(np.sort(counts), counts) * _EIGHTHS // len(counts)).astype(np.uint8)


def _count(classes: Classes) -> NDArray[np.int64]:
    """Count each class, two places at a time, which takes half as long."""
    even = len(classes) & -2
    pairs = np.bincount(classes[:even].view(np.uint16), minlength=1 << 16).reshape(1 << 8, 1 << 8)
    counts: NDArray[np.int64] = pairs.sum(axis=0) + pairs.sum(axis=1)
    counts[classes[even:]] += 1
    return counts[:_CLASSES]


def _group(marked: NDArray[np.int64], sizes: NDArray[np.int64]) -> Classes:
    """Put classes into groups by the part of them that is marked, each group with about as many marks."""
    order = np.argsort(-marked / np.maximum(sizes, 1), kind="stable")
    middles = np.cumsum(marked[order]) * 2 - marked[order]
    groups = np.zeros(_CLASSES, np.uint8)
    groups[order] = 1 + middles * (_GROUPS - 1) // max(2 * int(marked.sum()), 1)
    return np.where(marked > 0, groups, 0).astype(np.uint8)
