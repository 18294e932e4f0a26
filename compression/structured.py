"""A tensor's bits or codes by its structure: of the two models of it, the one that promises to be smaller.

One byte names the model, then its bytes: 0, rows and columns (`grid.py`); 1, runs and neighbours (`lattice.py`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import grid, lattice
from edge_runtime.compression.errors import DecodeError

Symbols = NDArray[np.uint8]

_LARGEST_ALPHABET = 16


def encode(symbols: Symbols, shape: tuple[int, ...], alphabet: int) -> bytes | None:
    """Encode symbols [product of shape] below `alphabet`; None if no structure is to be expected. See `decode`."""
    if not symbols.size or alphabet > _LARGEST_ALPHABET:
        return None
    by_grid, by_lattice = grid.fit(symbols, shape, alphabet), lattice.fit(symbols, shape, alphabet)
    if by_lattice and (by_grid is None or by_lattice.columns.bits < by_grid.columns.bits):
        return b"\x01" + lattice.encode(symbols, alphabet, by_lattice)
    return None if by_grid is None else b"\x00" + grid.encode(symbols, shape, alphabet, by_grid)


def decode(data: bytes, shape: tuple[int, ...], alphabet: int) -> Symbols:
    """Decode hostile bytes into symbols [product of shape] below `alphabet`.

    Raises:
        DecodeError: they are not such a tensor.
    """
    size = math.prod(shape)
    if size and alphabet <= _LARGEST_ALPHABET and data[:1] == b"\x00":
        return grid.decode(data[1:], shape, alphabet)
    if size and alphabet <= _LARGEST_ALPHABET and data[:1] == b"\x01":
        return lattice.decode(data[1:], size, alphabet)
    raise DecodeError(f"structure: nothing is coded as {data[:1]!r} there")
