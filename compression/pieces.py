"""Tensors laid end to end, cut into pieces, and each piece put into a class with those whose values are alike.

Each tensor is cut into pieces of 2^b values, 4 <= b <= 31, the last of a tensor maybe shorter. Both sides know where;
only the classes are sent. The encoder sorts pieces into kinds by the mean magnitude of their values and by how many
more are positive than negative: in a row of a layer's update both stay the same for a while. It then joins kinds, each
time the two that save most, as long as that makes the whole smaller: a table less, and fewer classes to tell apart,
against tables that fit less well.

Classes are sent as symbols (`entropy.py`) of an alphabet of k, each in the context of the class of the piece before it.
So that many can be read at once, the pieces are cut into runs of 64: the first ones of all runs come first, in the
context 0, then the second ones ..., each in the context 1 + (the class before it in its run), with a cut after each
place: 1 + k contexts in all. k is at most 255.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import entropy

Ints = NDArray[np.int64]

SMALLEST = 4
WHOLE = 31
"""The b that leaves tensors whole, as none of ours has more than 2^31 values."""
_MAGNITUDES = 64 << np.arange(42, dtype=np.int64)
_BIASES = np.array([-3, 4])
_TABLE_BITS_PER_SYMBOL = 12
"""What an entry of a table costs, about."""
_STEPS = 256
"""Costs are whole numbers of a 256th of a bit: their sums are exact, and so the same on every machine."""
_TILE = 1 << 16
_RUN = 64


@dataclass(frozen=True)
class Classes:
    """A class for each piece [pieces], numbered from 0 in the order of magnitude, and what all will cost, about."""

    of_pieces: NDArray[np.uint8]
    cost: int

    @property
    def count(self) -> int:
        """Count the classes."""
        return int(self.of_pieces.max(initial=0)) + 1


def lengths(sizes: Sequence[int], b: int) -> Ints:
    """Count the values of each piece of tensors of these sizes; none is empty."""
    of_tensors = np.array([size for size in sizes if size], np.int64)
    counts = -(-of_tensors >> b)
    pieces = np.full(int(counts.sum()), 1 << b, np.int64)
    pieces[np.cumsum(counts) - 1] = of_tensors - ((counts - 1) << b)
    return pieces


def classify(values: NDArray[np.int32], tokens: NDArray[np.uint8], pieces: Ints) -> Classes:
    """Choose the classes of pieces for values [n] and their tokens [n]."""
    used, kinds = np.unique(_kinds(values, pieces), return_inverse=True)
    counts = _count(tokens, np.repeat(kinds.astype(np.uint16), pieces), len(used))
    joined, cost = _join(np.column_stack([np.bincount(kinds), counts]))
    return Classes(joined[kinds].astype(np.uint8), cost)


def encode(classes: Classes) -> bytes:
    """Encode the classes of pieces; the inverse of `decode`."""
    of_pieces = classes.of_pieces
    before = np.where(np.arange(len(of_pieces)) % _RUN > 0, 1 + np.roll(of_pieces, 1), 0).astype(np.uint8)
    rows = [slice(i, None, _RUN) for i in range(min(_RUN, len(of_pieces)))]
    symbols, contexts = (np.concatenate([all_[row] for row in rows]) for all_ in (of_pieces, before))
    cuts = np.cumsum([len(of_pieces[row]) for row in rows])[:-1].tolist()
    return entropy.encode(symbols, classes.count, contexts, 1 + classes.count, cuts)


def decode(data: bytes, count: int, k: int) -> NDArray[np.uint8]:
    """Decode hostile bytes into classes [count] below k.

    Raises:
        DecodeError: they are not such classes.
    """
    of_pieces, contexts = np.empty(count, np.uint8), np.zeros(-(-count // _RUN), np.uint8)
    decoder = entropy.Decoder(data, count, k, 1 + k)
    for i in range(min(_RUN, count)):
        row = of_pieces[i::_RUN]
        row[:] = decoder.take(len(row), contexts[: len(row)])
        contexts = 1 + row
    decoder.finish()
    return of_pieces


def _kinds(values: NDArray[np.int32], pieces: Ints) -> Ints:
    """Give each piece a number for its magnitude, to a factor of 2, and within that for its bias, one of three."""
    starts = np.cumsum(pieces) - pieces
    sums = np.add.reduceat(np.abs(values).view(np.uint32), starts, dtype=np.int64)
    positive = np.add.reduceat(values > 0, starts, dtype=np.int64)
    negative = np.add.reduceat(values < 0, starts, dtype=np.int64)
    magnitudes = np.searchsorted(_MAGNITUDES, (1024 * sums + 64 * pieces) // pieces, side="right")
    biases = 8 * (positive - negative) // np.maximum(positive + negative, 1)
    kinds: Ints = magnitudes * (len(_BIASES) + 1) + np.searchsorted(_BIASES, biases, side="right")
    return kinds


def _count(tokens: NDArray[np.uint8], kinds: NDArray[np.uint16], used: int) -> Ints:
    """Count how often each token occurs in each kind [kinds, tokens]."""
    width = int(tokens.max()) + 1
    counts = np.zeros(used * width, np.int64)
    for i in range(0, len(tokens), _TILE):
        cells = kinds[i : i + _TILE].astype(np.int64) * width + tokens[i : i + _TILE]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(used, width)


def _join(counts: Ints) -> tuple[Ints, int]:
    """Join kinds, given how many pieces are of each kind, and how often each token occurs in it [kinds, 1 + tokens].

    Returns:
        The class of each kind [kinds], and the cost.
    """
    pieces = int(counts[:, 0].sum())
    classes = np.arange(len(counts))
    costs = _cost(counts, pieces)
    gains = costs + costs[:, None] - _cost(counts + counts[:, None], pieces)
    np.fill_diagonal(gains, 0)
    while True:
        i, j = divmod(int(gains.argmax()), len(gains))
        if gains[i, j] <= 0:
            break
        classes[classes == j] = i
        counts[i] += counts[j]
        counts[j] = 0
        costs[[i, j]] = _cost(counts[[i, j]], pieces)
        gains[j] = gains[:, j] = 0
        gains[i] = gains[:, i] = np.where(counts[:, 0] > 0, _gains(counts, costs, i, pieces), 0)
    return np.unique(classes, return_inverse=True)[1], int(costs.sum())


def _gains(counts: Ints, costs: Ints, i: int, pieces: int) -> Ints:
    """Give what joining each class with class i would save [classes]; nothing for class i itself."""
    gains: Ints = costs + costs[i] - _cost(counts + counts[i], pieces)
    gains[i] = 0
    return gains


def _cost(counts: Ints, pieces: int) -> Ints:
    """Give the costs of classes [...], see `_join`: of their tokens, their tables, and of naming them."""
    of_class, tokens = counts[..., 0], counts[..., 1:]
    coded = _bits(tokens.sum(axis=-1)) - _bits(tokens).sum(axis=-1)
    named = of_class * _bits(np.array(pieces)) // pieces - _bits(of_class)
    costs: Ints = coded + named + _STEPS * _TABLE_BITS_PER_SYMBOL * np.count_nonzero(tokens, axis=-1)
    return costs


def _bits(counts: Any) -> Any:
    """Give counts * log2 counts."""
    return np.rint(_STEPS * counts * np.log2(np.maximum(counts, 1))).astype(np.int64)
