"""A tensor of small whole numbers to bytes: each in the context of its neighbours, and of how lively its run has been.

What lies side by side in an image, or in a kernel, is alike. The flat tensor is cut into runs of the same length: with
conv weights, and those of a dense layer that looks at an image, a run is one filter of one channel. The bytes:

    number    L (`bitfield.py`), the length of a run, which divides the tensor's
    number    D, 1 <= D <= L: how far back the second neighbour is, as a row of an image is wide
    1 byte    k + 16 s: k and s are 0 to 4
    bytes     2^k - 1 borders, which do not fall
    the rest  the numbers, first the first ones of all runs, then the second ones ..., as symbols (`entropy.py`) with a
              cut after each place, each in the context 2^k ((u + v) >> s) + (class of its run)

of an alphabet of m; u is the number before it in its run, v the one D before it, (m - 1) // 2 if there is none, and
(2 m - 2) >> s is below 16. The class of a run is that of a column (`liveliness.py`) of the matrix
whose rows are the places.
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

_NEIGHBOUR_BITS, _MOST_SHIFT = 4, 4
_LONGEST = 1 << 12
_WIDEST = 64
_LIKENESS = 20


@dataclass(frozen=True)
class Fit:
    """How to code a tensor: length of a run, width of what it runs through, shift of neighbours, classes of runs."""

    length: int
    width: int
    shift: int
    columns: liveliness.Fit


def fit(symbols: Symbols, shape: tuple[int, ...], alphabet: int) -> Fit | None:
    """Fit to a tensor's symbols [product of shape]; None if it shows no runs."""
    if (run := _run(symbols, shape, alphabet)) is None:
        return None
    least = _least_shift(alphabet)
    rows, before = _lay(symbols, *run, alphabet, least)
    counts = liveliness.count(rows, before, 1 << _NEIGHBOUR_BITS, alphabet)
    shifts = range(least, _MOST_SHIFT + 1)
    merged = [counts.reshape(-1, 1 << (shift - least), *counts.shape[1:]).sum(axis=1) for shift in shifts]
    fits = [
        Fit(*run, shift, liveliness.fit(some, log))
        for shift, some in zip(shifts, merged, strict=True)
        for log in range(MOST + 1)
    ]
    return min(fits, key=lambda fit: fit.columns.bits)


def _run(symbols: Symbols, shape: tuple[int, ...], alphabet: int) -> tuple[int, int] | None:
    """Guess the length and width of a run.

    Of kernels the shape tells; of a dense layer that looks at square images it shows how far off its columns are alike.
    """
    if len(shape) > 2:
        return (math.prod(shape[2:]), shape[-1]) if 1 < math.prod(shape[2:]) <= _LONGEST else None
    if len(shape) < 2 or shape[1] < 2 * _WIDEST:
        return None
    columns = sum(liveliness.of(alphabet)[row] for row in symbols.reshape(shape))
    centred = (columns - columns.mean()) / max(columns.std(), 1)
    alike = [float(centred[lag:] @ centred[:-lag]) for lag in range(2, _WIDEST)]
    width = 2 + int(np.argmax(alike))
    square = width * width
    return (square, width) if _LIKENESS * max(alike) > centred @ centred and shape[1] % square == 0 else None


def _lay(symbols: Symbols, length: int, width: int, alphabet: int, shift: int) -> tuple[Symbols, Symbols]:
    """Lay out what is at each place of all runs, and the contexts of neighbours, both [length, runs]."""
    rows = symbols.reshape(-1, length).T
    return rows, np.array([_before(rows, i, width, alphabet) >> shift for i in range(length)], np.uint8)


def encode(symbols: Symbols, alphabet: int, fit: Fit) -> bytes:
    """Encode symbols [n] below `alphabet` (at most 256); the inverse of `decode`."""
    rows, before = _lay(symbols, fit.length, fit.width, alphabet, fit.shift)
    contexts = liveliness.contexts(rows, before, fit.columns.borders, alphabet)
    cuts = range(rows.shape[1], rows.size, rows.shape[1])
    coded = entropy.encode(rows.ravel(), alphabet, contexts, _kinds(alphabet, fit.shift) << fit.columns.log, cuts)
    run = bitfield.pack_number(fit.length) + bitfield.pack_number(fit.width)
    return run + bytes([fit.columns.log | fit.shift << 4]) + fit.columns.borders.tobytes() + coded


def decode(data: bytes, count: int, alphabet: int) -> Symbols:
    """Decode hostile bytes into symbols [count > 0] below `alphabet`.

    Raises:
        DecodeError: they are not such a tensor.
    """
    reader = bitfield.Reader(data)
    length, width = reader.take_number(), reader.take_number()
    if not 0 < width <= length <= _LONGEST or count % length:
        raise DecodeError(f"runs: of {length} with a width of {width} in {count}")
    shift, log = divmod(reader.take(1)[0], 16)
    if not _least_shift(alphabet) <= shift <= _MOST_SHIFT or log > MOST:
        raise DecodeError(f"runs: 2^{log} classes and a shift of {shift}")
    class_of = liveliness.class_of(liveliness.take_borders(reader, log))
    decoder = entropy.Decoder(reader.rest(), count, alphabet, _kinds(alphabet, shift) << log)
    rows, columns = np.empty((length, count // length), np.uint8), Columns(count // length, alphabet)
    for i, row in enumerate(rows):
        contexts = (_before(rows, i, width, alphabet) >> shift << log) + class_of[columns.levels()]
        row[:] = decoder.take(len(row), contexts.astype(np.uint8))
        columns.add(row)
    decoder.finish()
    return rows.T.ravel()


def _before(rows: Symbols, i: int, width: int, alphabet: int) -> Ints:
    """Add up the two neighbours of each symbol of row i [columns]."""
    usual = np.full(rows.shape[1], (alphabet - 1) // 2)
    near, far = (rows[i - back] if i >= back else usual for back in (1, width))
    both: Ints = near.astype(np.int64) + far
    return both


def _least_shift(alphabet: int) -> int:
    return max((2 * alphabet - 2).bit_length() - _NEIGHBOUR_BITS, 0)


def _kinds(alphabet: int, shift: int) -> int:
    return ((2 * alphabet - 2) >> shift) + 1
