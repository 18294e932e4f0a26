"""A matrix of small whole numbers to bytes: each in the context of how lively its row and its column are.

Trained masks and codebook indices are clumpy: some units, and some of what they look at, matter more than others. A
tensor is laid out with its first dimension as the rows, or as the columns if there are fewer of the others; one that
makes fewer than two rows is no matrix. The bytes of a matrix:

    1 byte    k, 0 to 4: there are 2^k classes of rows, and as many of columns (`liveliness.py`)
    fields    the class of each row, k bits each (`bitfield.py`); rows of a higher class come first, of equals in order
    bytes     2^k - 1 borders, which do not fall
    the rest  the numbers, row after row, as symbols (`entropy.py`) with a cut after each row, each in the context
              2^k (class of its row) + (class of its column)
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy, liveliness
from edge_runtime.compression.errors import DecodeError
from edge_runtime.compression.liveliness import MOST, Columns

Symbols = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """How to code a matrix: the rank of each row by its liveliness, 0 to 15, and the classes of columns."""

    ranks: Ints
    columns: liveliness.Fit


def sides(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Give the rows and columns of a tensor's matrix; None if it is none."""
    first, others = shape[0] if shape else 1, math.prod(shape[1:])
    return (min(first, others), max(first, others)) if min(first, others) > 1 else None


def fit(symbols: Symbols, shape: tuple[int, ...], alphabet: int) -> Fit | None:
    """Fit to a tensor's symbols [product of shape]; None if it is no matrix."""
    if sides(shape) is None:
        return None
    matrix, lively = _lay(symbols, shape), liveliness.of(alphabet)
    sums = np.array([lively[row].sum() for row in matrix])
    ranks = np.searchsorted(np.sort(sums), sums) * (1 << MOST) // len(sums)
    order = _order(ranks)
    counts = liveliness.count(matrix[order], ranks[order], 1 << MOST, alphabet)
    merged = [counts.reshape(1 << log, -1, *counts.shape[1:]).sum(axis=1) for log in range(MOST + 1)]
    fits = [liveliness.fit(some, log) for log, some in enumerate(merged)]
    return Fit(ranks, min(fits, key=lambda columns: columns.bits + columns.log * len(ranks)))


def encode(symbols: Symbols, shape: tuple[int, ...], alphabet: int, fit: Fit) -> bytes:
    """Encode a tensor's symbols [product of shape] below `alphabet` (at most 256); the inverse of `decode`."""
    matrix, log, borders = _lay(symbols, shape), fit.columns.log, fit.columns.borders
    classes = fit.ranks >> (MOST - log)
    order = _order(classes)
    matrix = matrix[order]
    contexts = liveliness.contexts(matrix, classes[order], borders, alphabet)
    cuts = range(matrix.shape[1], matrix.size, matrix.shape[1])
    coded = entropy.encode(matrix.ravel(), alphabet, contexts, 1 << 2 * log, cuts)
    return bytes([log]) + bitfield.pack(classes, np.full(len(classes), log)) + borders.tobytes() + coded


def decode(data: bytes, shape: tuple[int, ...], alphabet: int) -> Symbols:
    """Decode hostile bytes into a tensor's symbols [product of shape] below `alphabet`.

    Raises:
        DecodeError: they are not such a tensor.
    """
    if (matrix := sides(shape)) is None:
        raise DecodeError("matrix: the tensor is none")
    reader = bitfield.Reader(data)
    if (log := reader.take(1)[0]) > MOST:
        raise DecodeError(f"matrix: 2^{log} classes")
    classes = reader.take_fields(np.full(matrix[0], log))
    class_of = liveliness.class_of(liveliness.take_borders(reader, log))
    decoder = entropy.Decoder(reader.rest(), math.prod(shape), alphabet, 1 << 2 * log)
    symbols, columns = np.empty(matrix, np.uint8), Columns(matrix[1], alphabet)
    for row in _order(classes):
        contexts = (classes[row] << log) + class_of[columns.levels()]
        symbols[row] = decoder.take(matrix[1], contexts.astype(np.uint8))
        columns.add(symbols[row])
    decoder.finish()
    return (symbols if matrix[0] == shape[0] else symbols.T).ravel()


def _lay(symbols: Symbols, shape: tuple[int, ...]) -> Symbols:
    matrix = symbols.reshape(shape[0], -1)
    return matrix if len(matrix) <= matrix.shape[1] else matrix.T


def _order(classes: Ints) -> Ints:
    return np.argsort(-classes, kind="stable")
