"""Posteriors, one probability distribution over the classes in each row: quantised, and coded by what is likely.

What a student loses is KL(p || q), and for a small error that is 2 sum_c (sqrt p_c - sqrt q_c)^2. So the square root of
a probability is quantised uniformly, to levels from 0 to m = 2^bits - 1: level = round(m sqrt p). On a trained model's
posteriors this needs two thirds of the bytes that a uniform step of log p needs for the same divergence.

Decoded, a class has the weight 1024 level^2, or, at level 0, the class's floor of 1 to 256 (at level 1/2 it would be
256), and the probability weight / sum of the row's weights. Weights and sums are integers, so that one division and one
rounding to float32 are all that is inexact, and both are the same on every machine.

A row is coded as its winner (the first class with the highest level), the winner's level, and the others' levels. Those
are coded in contexts: one of four ranges that the winner's level lies in (how much is left for the others), and one of
four kinds that the pair of winner and class is of (which classes are mistaken for one another).

    1 byte    bits, 2 to 8
    3 bytes   thresholds: the range of a winner's level is how many of them are not above it
    4 times   a number, a length (`bitfield.py`), and as many bytes that `entropy.py` codes:
              each class's floor, less 1, of 256; each row's winner, of the classes; its level, of m + 1;
              the kind of each pair, of 4, winner by winner, or if there are fewer rows than classes nothing, all are 0
    to the end, as `entropy.py` codes them: the levels of the other classes in their order, row by row, of m + 1, in the
    contexts 4 range + kind
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy
from edge_runtime.compression.errors import DecodeError

Levels = NDArray[np.int64]

_LEAST_BITS, _MOST_BITS = 2, 8
_UNIT = 1024
_RANGES = 4
_KINDS = 4
_TILE = 1 << 16
_NO_RANGES = np.full(_RANGES - 1, 255, np.uint8)


def encode(log_probs: NDArray[np.floating[Any]], bits: int, keep_arg_max: bool = False) -> bytes:
    """Encode log-probabilities, or logits, [rows, classes]; `decode` gives probabilities.

    Args:
        log_probs: up to a number that may be added to a row; minus infinity stands for a probability of 0.
        bits: 2 to 8. 5 are enough for a model that is sure of itself.
        keep_arg_max: raise the winner's level where another would win after decoding. In each row the first of the
            largest is then the same as before.

    Raises:
        ValueError: a row has no largest number, or `bits` is out of range.
    """
    if not _LEAST_BITS <= bits <= _MOST_BITS:
        raise ValueError(f"posteriors: {_LEAST_BITS} to {_MOST_BITS} bits, not {bits}")
    if log_probs.ndim != 2 or not log_probs.shape[1]:
        raise ValueError(f"posteriors: {log_probs.shape} is not rows and classes")
    most = (1 << bits) - 1
    probs = _normalise(log_probs)
    levels = np.rint(most * np.sqrt(probs)).astype(np.int64)
    floors = _floors(probs, levels, most)
    if keep_arg_max:
        _raise_winners(levels, floors, log_probs)
    return _encode(levels, floors, bits)


def decode(data: bytes, rows: int, classes: int) -> NDArray[np.float32]:
    """Decode hostile bytes into probabilities [rows, classes].

    Raises:
        DecodeError: they are not that.
    """
    reader = bitfield.Reader(data)
    bits, *thresholds = reader.take(1 + _RANGES - 1)
    if not _LEAST_BITS <= bits <= _MOST_BITS:
        raise DecodeError(f"posteriors: {bits} bits")
    alphabet = 1 << bits
    floors = entropy.decode(reader.take(reader.take_number()), classes, 256)
    winners = entropy.decode(reader.take(reader.take_number()), rows, classes).astype(np.int64)
    tops = entropy.decode(reader.take(reader.take_number()), rows, alphabet)
    kinds = entropy.decode(reader.take(reader.take_number()), _pairs(rows, classes), _KINDS)
    contexts = _contexts(winners, tops, np.array(thresholds), kinds, classes)
    others = entropy.decode(reader.rest(), len(contexts), alphabet, contexts)
    levels = np.zeros((rows, classes), np.uint16)
    levels[_others(winners, classes)] = others
    levels[np.arange(rows), winners] = tops
    return _probabilities(levels, floors)


def _normalise(log_probs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    if not log_probs.size:
        return np.zeros(log_probs.shape)
    largest = log_probs.max(axis=1, keepdims=True).astype(np.float64)
    if not np.isfinite(largest).all():  # the largest of a row with a NaN is NaN
        raise ValueError("posteriors: a row has no largest number")
    probs: NDArray[np.float64] = np.exp(log_probs - largest)
    probs /= probs.sum(axis=1, keepdims=True)
    return probs


def _floors(probs: NDArray[np.float64], levels: Levels, most: int) -> NDArray[np.uint8]:
    """Give each class the floor, less 1, that stands for the mean of its probabilities at level 0 [classes]."""
    at_zero = levels == 0
    means = (probs * at_zero).sum(axis=0) / np.maximum(at_zero.sum(axis=0), 1)
    floors: NDArray[np.uint8] = np.clip(np.rint(_UNIT * most**2 * means) - 1, 0, 255).astype(np.uint8)
    return floors


def _raise_winners(levels: Levels, floors: NDArray[np.uint8], log_probs: NDArray[np.floating[Any]]) -> None:
    """Raise the levels of winners that would lose. Only a tie makes one, since a larger p has no lower level.

    No tie is at level m, since two probabilities are not both above (1 - 1 / 2m)^2.
    """
    winners = log_probs.argmax(axis=1)
    losing = np.flatnonzero(_weights(levels, floors).argmax(axis=1) != winners)
    levels[losing, winners[losing]] += 1


def _probabilities(levels: NDArray[np.uint16], floors: NDArray[np.integer]) -> NDArray[np.float32]:
    probs = np.empty(levels.shape, np.float32)
    rows = max(1, _TILE // levels.shape[1])
    for i in range(0, len(levels), rows):
        weights = _weights(levels[i : i + rows], floors)
        probs[i : i + rows] = weights / weights.sum(axis=1, keepdims=True, dtype=np.int64)
    return probs


def _weights(levels: NDArray[np.integer], floors: NDArray[np.integer]) -> NDArray[np.uint32]:
    return np.where(levels > 0, _UNIT * levels.astype(np.uint32) ** 2, floors + np.uint32(1))


def _encode(levels: Levels, floors: NDArray[np.uint8], bits: int) -> bytes:
    rows, classes = levels.shape
    winners, tops = levels.argmax(axis=1), levels.max(axis=1)
    others = levels[_others(winners, classes)]
    alphabet, pairs = 1 << bits, _pairs(rows, classes)
    coded_floors = entropy.encode(floors, 256)
    coded_winners = entropy.encode(winners.astype(np.uint16), classes)
    coded_tops = entropy.encode(tops.astype(np.uint8), alphabet)
    tries = []
    for thresholds in (_quartiles(tops), _NO_RANGES):
        for kinds in (_kinds(winners, others, classes)[:pairs], np.zeros(pairs, np.uint8)):
            contexts = _contexts(winners, tops, thresholds, kinds, classes)
            parts = (coded_floors, coded_winners, coded_tops, entropy.encode(kinds, _KINDS))
            coded_others = entropy.encode(others.astype(np.uint8), alphabet, contexts)
            tries.append(bytes([bits, *thresholds]) + b"".join(map(_measured, parts)) + coded_others)
    return min(tries, key=len)


def _measured(part: bytes) -> bytes:
    return bitfield.pack_number(len(part)) + part


def _quartiles(tops: Levels) -> NDArray[np.uint8]:
    return np.sort(tops)[len(tops) * np.arange(1, _RANGES) // _RANGES].astype(np.uint8) if len(tops) else _NO_RANGES


def _kinds(winners: Levels, others: Levels, classes: int) -> NDArray[np.uint8]:
    """Put the pairs that occur into quarters by their mean level [classes * classes]."""
    pairs = np.repeat(winners * classes, classes - 1) + np.nonzero(_others(winners, classes))[1]
    counts = np.bincount(pairs, minlength=classes * classes)
    means = np.bincount(pairs, others, classes * classes) / np.maximum(counts, 1)
    if not len(pairs):
        return np.zeros(len(means), np.uint8)
    edges = np.quantile(means[counts > 0], np.arange(1, _KINDS) / _KINDS)
    return np.searchsorted(edges, means).astype(np.uint8) * (counts > 0)


def _pairs(rows: int, classes: int) -> int:
    """Count the pairs of winner and class whose kind is sent."""
    return classes * classes if classes <= rows else 0


def _others(winners: Levels, classes: int) -> NDArray[np.bool_]:
    """Tell which entries are not their row's winner [rows, classes]."""
    others: NDArray[np.bool_] = np.arange(classes) != winners[:, None]
    return others


def _contexts(
    winners: Levels, tops: NDArray[np.integer], thresholds: NDArray[np.integer], kinds: NDArray[Any], classes: int
) -> NDArray[np.uint8]:
    """Give the context of every level but the winners' [rows * (classes - 1)]."""
    ranges = (tops[:, None] >= thresholds).sum(axis=1).astype(np.uint8)
    of_rows = kinds.reshape(-1, classes).astype(np.uint8)[winners] if len(kinds) else np.zeros((1, classes), np.uint8)
    contexts: NDArray[np.uint8] = (_KINDS * ranges[:, None] + of_rows)[_others(winners, classes)]
    return contexts
