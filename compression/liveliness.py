"""How lively the columns of a matrix of small whole numbers have been so far, as a context for those that follow.

The liveliness of a number s: s itself of an alphabet of two, of one of m its distance from the middle, |2 s - m + 1|.
A column's level is the smaller of 255 and 16 (c + 1) n // (a + n), where there are n columns, and the rows before have
the liveliness a in all and c in this column: so it is held against the mean of all columns. A column's class is the
number of borders that are at most its level. All of it are integers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield
from edge_runtime.compression.errors import DecodeError

Symbols = NDArray[np.uint8]
Ints = NDArray[np.int64]
Borders = NDArray[np.uint8]

MOST = 4
"""There are 2^4 classes at most."""
_UNIT, _LEVELS = 16, 256
_CELL_BITS = 4
"""What a frequency takes, about, that is not 0."""


class Columns:
    """How lively the columns [n] have been so far."""

    def __init__(self, count: int, alphabet: int) -> None:
        self._sums, self._total, self._lively = np.zeros(count, np.int64), 0, of(alphabet)

    def levels(self) -> Ints:
        """Give the level of each [n]."""
        levels = (self._sums + 1) * (_UNIT * len(self._sums))
        levels //= self._total + len(self._sums)
        return np.minimum(levels, _LEVELS - 1, out=levels)

    def add(self, row: Symbols) -> None:
        """Take in the next row [n]."""
        lively = self._lively[row]
        self._sums += lively
        self._total += int(lively.sum())


def of(alphabet: int) -> Ints:
    """Give the liveliness of each number of an alphabet."""
    symbols = np.arange(alphabet)
    return symbols if alphabet == 2 else np.abs(2 * symbols - alphabet + 1)


def class_of(borders: Borders) -> Ints:
    """Give the class of each level [256]."""
    return np.searchsorted(borders, np.arange(_LEVELS), side="right")


def count(symbols: Symbols, others: NDArray[np.integer], kinds: int, alphabet: int) -> Ints:
    """Count symbols [rows, columns] by another context, below `kinds`, and by their level [kinds, levels, alphabet].

    The other context is one for each row [rows], or one for each symbol [rows, columns].
    """
    columns, counts = Columns(symbols.shape[1], alphabet), np.zeros(kinds * _LEVELS * alphabet, np.int64)
    for row, other in zip(symbols, others, strict=True):
        cells = (other.astype(np.int64) * _LEVELS + columns.levels()) * alphabet + row
        counts += np.bincount(cells, minlength=len(counts))
        columns.add(row)
    return counts.reshape(kinds, _LEVELS, alphabet)


def contexts(symbols: Symbols, others: NDArray[np.integer], borders: Borders, alphabet: int) -> Symbols:
    """Join another context, as of `count`, with the class of each column [rows * columns]."""
    columns, joined, classes = Columns(symbols.shape[1], alphabet), np.empty(symbols.shape, np.uint8), class_of(borders)
    for row, other, some in zip(symbols, others, joined, strict=True):
        some[:] = other.astype(np.int64) * (len(borders) + 1) + classes[columns.levels()]
        columns.add(row)
    return joined.ravel()


@dataclass(frozen=True)
class Fit:
    """The classes of columns that suit a matrix, the logarithm of their number, and the bits that it takes, about."""

    bits: float
    log: int
    borders: Borders


def fit(counts: Ints, log: int) -> Fit:
    """Fit 2^log classes to counts [kinds, levels, alphabet]."""
    through = np.cumsum(counts.sum(axis=(0, 2)))
    borders = np.searchsorted(through, through[-1] * np.arange(1, 1 << log) >> log, side="right").astype(np.uint8)
    merged = np.stack([counts[:, class_of(borders) == i].sum(axis=1) for i in range(1 << log)])
    totals = merged.sum(axis=2)
    bits = (totals * np.log2(np.maximum(totals, 1))).sum() - (merged * np.log2(np.maximum(merged, 1))).sum()
    return Fit(float(bits) + _CELL_BITS * np.count_nonzero(merged), log, borders)


def take_borders(reader: bitfield.Reader, log: int) -> Borders:
    """Take the borders of 2^log classes; raise DecodeError if they fall."""
    borders = np.frombuffer(reader.take((1 << log) - 1), np.uint8)
    if (borders[1:] < borders[:-1]).any():
        raise DecodeError("matrix: its borders fall")
    return borders
