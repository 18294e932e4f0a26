"""Which values of a model are active, tensor by tensor, and flat vectors of only these."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.tree import Flat, Layout

Bits = NDArray[np.bool_]
Places = NDArray[np.int32]
"""Flat indices within one tensor, in ascending order."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Which values of a model are active."""

    layout: Layout
    """Of the dense model."""
    places: tuple[Places | None, ...]
    """Of each tensor's active values; None: all are active."""

    @functools.cached_property
    def packed(self) -> Layout:
        """Lay out the active values: a tensor that is all active keeps its shape, any other is a row of values."""
        pairs = zip(self.layout.shapes, self.places, strict=True)
        return Layout(self.layout.names, tuple(shape if at is None else (len(at),) for shape, at in pairs))

    @property
    def full(self) -> bool:
        """Say whether every value is active."""
        return all(at is None for at in self.places)

    def bits(self) -> Bits:
        """Give the mask as one bool per value of the dense model [size]."""
        bits = np.ones(self.layout.size, np.bool_)
        for where, at in zip(self.layout.slices, self.places, strict=True):
            if at is not None:
                bits[where] = False
                bits[where][at] = True
        return bits

    def pack(self, flat: Flat) -> Flat:
        """Pick the active values [packed size] out of a dense vector [size]."""
        parts = zip(self.layout.slices, self.places, strict=True)
        return np.concatenate([flat[where] if at is None else flat[where][at] for where, at in parts])

    def unpack(self, values: Flat) -> Flat:
        """Put active values [packed size] in their places of a dense vector [size] of zeros."""
        flat = np.zeros(self.layout.size, np.float32)
        for where, held, at in zip(self.layout.slices, self.packed.slices, self.places, strict=True):
            flat[where][slice(None) if at is None else at] = values[held]
        return flat

    def keep(self, chosen: Bits) -> "Mask":
        """Give the mask of those active values that are `chosen` [packed size]."""
        places = []
        for held, at in zip(self.packed.slices, self.places, strict=True):
            part = chosen[held]
            some = np.arange(len(part), dtype=np.int32) if at is None else at
            places.append(None if at is None and part.all() else some[part])
        return Mask(self.layout, tuple(places))

    def add(self, more: Sequence[Places]) -> "Mask":
        """Give the mask with further places, in any order, of each tensor."""
        places = []
        for size, at, new in zip(self.layout.sizes, self.places, more, strict=True):
            joined = at if at is None or not len(new) else np.sort(np.concatenate([at, new]))
            places.append(None if joined is None or len(joined) == size else joined)
        return Mask(self.layout, tuple(places))

    def carry(self, values: Flat, to: "Mask") -> Flat:
        """Carry active values [packed size] over to another mask of the same layout; what is only there gets 0."""
        parts = []
        for held, mine, theirs, size in zip(self.packed.slices, self.places, to.places, self.layout.sizes, strict=True):
            dense = np.zeros(size, np.float32)
            dense[slice(None) if mine is None else mine] = values[held]
            parts.append(dense if theirs is None else dense[theirs])
        return np.concatenate(parts)

    def same(self, other: "Mask") -> bool:
        """Say whether another mask of the same layout is the same."""
        pairs = zip(self.places, other.places, strict=True)
        return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)


def from_bits(layout: Layout, bits: Bits) -> Mask:
    """Make a mask of one bool per value [size]; the inverse of `Mask.bits`."""
    parts = (bits[where] for where in layout.slices)
    return Mask(layout, tuple(None if part.all() else np.flatnonzero(part).astype(np.int32) for part in parts))
