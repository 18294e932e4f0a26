"""Places of marks in a row of things to bytes: the gaps between them, entropy-coded.

A gap g, the number of things before a mark since the one before it, below 2^31, is a symbol and bits that are sent as
they are: below 8 the symbol is g; else, with e = floor(log2 g), it is 4 e - 4 plus the two bits after the leading one,
and the other e - 2 bits follow. The bytes: number (`bitfield.py`) of those of the symbols; the symbols (`entropy.py`),
of an alphabet of 120, in the context of the number of their list; the other bits of all gaps, as fields.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, entropy
from edge_runtime.compression.errors import DecodeError

Ints = NDArray[np.int64]

_ALPHABET = 120
_EXACT = 8


def encode(places: Sequence[Ints]) -> bytes:
    """Encode several lists of rising places (fewer than 257 lists); the inverse of `decode`."""
    gaps = np.concatenate([np.diff(some, prepend=-1) - 1 for some in places])
    lengths = np.maximum(np.frexp(gaps)[1].astype(np.int64) - 1, 2)  # exact below 2^53
    symbols = np.where(gaps < _EXACT, gaps, 4 * lengths - 4 + (gaps >> (lengths - 2) & 3))
    widths = np.where(gaps < _EXACT, 0, lengths - 2)
    coded = entropy.encode(symbols.astype(np.uint8), _ALPHABET, _contexts([len(some) for some in places]), len(places))
    return bitfield.pack_number(len(coded)) + coded + bitfield.pack(gaps & ((1 << widths) - 1), widths)


def decode(reader: bitfield.Reader, counts: Sequence[int], ends: Sequence[int]) -> list[Ints]:
    """Decode hostile bytes into lists of rising places [counts[i]], each below `ends[i]`.

    Raises:
        DecodeError: they are not such places.
    """
    if any(count > end for count, end in zip(counts, ends, strict=True)):
        raise DecodeError("gaps: there are more marks than places")
    total = sum(counts)
    decoder = entropy.Decoder(reader.take(reader.take_number()), total, _ALPHABET, len(counts))
    symbols = decoder.take(total, _contexts(counts)).astype(np.int64)
    decoder.finish()
    widths = np.where(symbols < _EXACT, 0, (symbols >> 2) - 1)
    high = np.where(symbols < _EXACT, symbols, 4 | symbols & 3)
    gaps = (high << widths) + reader.take_fields(widths)
    places = [np.cumsum(some + 1) - 1 for some in np.split(gaps, np.cumsum(counts)[:-1])]
    if any(len(some) and some[-1] >= end for some, end in zip(places, ends, strict=True)):
        raise DecodeError("gaps: one leads beyond the end")
    return places


def _contexts(counts: Sequence[int]) -> NDArray[np.uint8]:
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
