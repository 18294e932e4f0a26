"""Codings of ours for tensors laid end to end, each of which `bench wire` shows by itself."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from edge_runtime.compression import bitfield, entropy, grid, lattice
from edge_runtime.coordinator.wire_subjects import Array, Coding

Shape = tuple[int, ...]

STRUCTURES = ("rows and columns", "runs and neighbours")
"""Of `structured.py`, by their number."""


def tables(symbols: Array, alphabet: int, sizes: Sequence[int], back: Callable[[Array], Array]) -> Coding:
    """Give the entropy coder with a table for each tensor, and nothing else that is known; `back` takes symbols."""
    contexts = np.repeat(np.minimum(np.arange(len(sizes)), 255).astype(np.uint8), sizes)
    small = symbols.astype(np.uint16)

    def decode(data: bytes) -> Array:
        return back(entropy.decode(data, len(small), alphabet, contexts))

    return Coding("rANS, a table per tensor", "ours", lambda: entropy.encode(small, alphabet, contexts), decode)


def structures(
    symbols: Array, dims: Sequence[Shape], alphabet: int, back: Callable[[Array], Array]
) -> Iterator[Coding]:
    """Give both models of a tensor's structure (`structured.py`); a tensor that has none is coded by frequencies."""
    ways = ((_by_grid, _from_grid), (_by_lattice, _from_lattice))
    for name, (encode, decode) in zip(STRUCTURES, ways, strict=True):
        coding = per_tensor(name, symbols, dims, partial(encode, alphabet), partial(decode, alphabet))
        yield Coding(name, "ours", coding.encode, partial(_through, coding.decode, back))


def _through(decode: Callable[[bytes], Array], back: Callable[[Array], Array], data: bytes) -> Array:
    return back(decode(data))


def _by_grid(alphabet: int, part: Array, shape: Shape) -> bytes:
    fit = grid.fit(part, shape, alphabet)
    return entropy.encode(part, alphabet) if fit is None else grid.encode(part, shape, alphabet, fit)


def _from_grid(alphabet: int, data: bytes, shape: Shape) -> Array:
    if grid.sides(shape) is None:
        return entropy.decode(data, math.prod(shape), alphabet)
    return grid.decode(data, shape, alphabet)


def _by_lattice(alphabet: int, part: Array, shape: Shape) -> bytes:
    fit = lattice.fit(part, shape, alphabet)
    plain = b"\x00" + entropy.encode(part, alphabet)
    return plain if fit is None else b"\x01" + lattice.encode(part, alphabet, fit)


def _from_lattice(alphabet: int, data: bytes, shape: Shape) -> Array:
    model = lattice if data[:1] == b"\x01" else entropy
    return np.asarray(model.decode(data[1:], math.prod(shape), alphabet))


def per_tensor(
    name: str,
    values: Array,
    dims: Sequence[Shape],
    encode: Callable[[Array, Shape], bytes],
    decode: Callable[[bytes, Shape], Array],
) -> Coding:
    """Give a coding of tensors laid end to end [sum of their sizes], each by itself."""
    ends = np.cumsum([math.prod(shape) for shape in dims])[:-1]

    def encode_all() -> bytes:
        return framed(encode(part, shape) for part, shape in zip(np.split(values, ends), dims, strict=True))

    def decode_all(data: bytes) -> Array:
        parts = zip(unframed(data, len(dims)), dims, strict=True)
        return np.concatenate([decode(part, shape) for part, shape in parts])

    return Coding(name, "ours", encode_all, decode_all)


def framed(parts: Iterable[bytes]) -> bytes:
    """Put the codings of tensors end to end, each after the number of its bytes; the inverse of `unframed`."""
    return b"".join(bitfield.pack_number(len(part)) + part for part in parts)


def unframed(data: bytes, count: int) -> list[bytes]:
    """Cut the codings of `count` tensors apart.

    Raises:
        DecodeError: they are not that.
    """
    reader = bitfield.Reader(data)
    parts = [reader.take(reader.take_number()) for _ in range(count)]
    reader.finish()
    return parts
