"""Weighted sums of flat vectors in 64-bit fixed point: exact, and the same bits in whatever order the vectors arrive.

A value x counts as the whole number round(x * weight / cap * 2^40). Whole numbers add without rounding, so a sum can be
streamed, and does not depend on the order. The unit 2^-40 (9e-13) lies far below the resolution of float32 parameters.
A sum holds at most 2^14 vectors of values below 2^9, and 2^14 * 2^9 * 2^40 = 2^63 is where int64 ends.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.tree import Flat

Bits = NDArray[np.bool_]

UNIT = 2.0**-40
LIMIT = 2.0**9
MOST = 2**14
_TILE = 1 << 16
"""Coordinates worked on at a time, so that temporaries stay small beside the sum itself."""


def cap_of(weights: str, samples_cap: int) -> int:
    """Give the largest weight of a device: 1 where all count the same.

    Raises:
        ConfigError: `weights` is neither `uniform` nor `samples`, or the cap is not from 1 to 1,000,000.
    """
    if weights not in ("uniform", "samples"):
        raise ConfigError(f"algorithm: weights must be one of uniform, samples, not {weights!r}")
    if not 1 <= samples_cap <= 1_000_000:
        raise ConfigError(f"algorithm: samples-cap must be from 1 to 1000000, not {samples_cap}")
    return samples_cap if weights == "samples" else 1


def check(values: Flat, where: Bits | None, size: int) -> None:
    """Check an update: all `size` values, or with `where` those at the coordinates [size] that are on there.

    Raises:
        DecodeError: not that many values, or one that is not finite or not below 2^9.
    """
    wanted = size if where is None else int(np.count_nonzero(where))
    if len(values) != wanted or (where is not None and len(where) != size):
        raise DecodeError(f"update: {len(values)} values where {wanted} are expected")
    if wanted and not (values.max() < LIMIT and values.min() > -LIMIT):  # so written, it is true for NaN as well
        raise DecodeError(f"update: a value is not finite or not below {LIMIT:g} in magnitude")


class Total:
    """A running sum of vectors [size], and of their weights."""

    def __init__(self, size: int, cap: int = 1, owners: bool = False) -> None:
        """Start at zero.

        Args:
            size: length of the vectors.
            cap: weights are clamped to [1, cap].
            owners: keep the sum of weights for every coordinate by itself, over the vectors that own it.
        """
        self.count = 0
        self.size = size
        self._sum = np.zeros(size, np.int64)
        self._cap = cap
        self._weight = 0
        self._weights = np.zeros(size, np.int64) if owners else None

    def add(self, values: Flat, where: Bits | None = None, weight: int = 1) -> None:
        """Add one vector.

        Args:
            values: its values [size]; with `where`, those at the coordinates [size] that are on there.
            where: the coordinates that the vector owns; None: all.
            weight: how much it counts.

        Raises:
            DecodeError: not that many values, one that is not finite or not below 2^9, or one vector too many.
                Nothing has changed then.
        """
        check(values, where, len(self._sum))
        if self.count == MOST:
            raise DecodeError(f"update: a round takes {MOST} updates at most")
        weight = min(max(weight, 1), self._cap)
        self.count += 1
        self._weight += weight
        self._add(values, where, weight)

    def _add(self, values: Flat, where: Bits | None, weight: int) -> None:
        factor = weight / self._cap / UNIT
        done = 0
        for tile in self._tiles():
            owned = np.arange(tile.start, tile.stop) if where is None else tile.start + np.flatnonzero(where[tile])
            terms = values[done : done + len(owned)].astype(np.float64) * factor
            self._sum[owned] += np.rint(terms).astype(np.int64)
            if self._weights is not None:
                self._weights[owned] += weight
            done += len(owned)

    def step(self, model: Flat, rate: float = 1.0) -> None:
        """Move `model` [size] by minus rate times the weighted mean, in place; what nobody owns keeps its bits."""
        if not self.count:
            return
        for tile in self._tiles():
            weights = self._weight if self._weights is None else np.maximum(self._weights[tile], 1)
            mean = self._sum[tile] * (UNIT * self._cap) / weights
            model[tile] = model[tile] - rate * mean

    def digest(self) -> bytes:
        """Hash the sum, to 32 bytes."""
        return hashlib.sha256(self._sum.astype("<i8").data).digest()

    def shift(self, units: NDArray[np.int64]) -> None:
        """Add so many of the unit 2^-40 [size] to the sum, as no vector of it."""
        self._sum += units

    def clear(self) -> None:
        """Go back to zero."""
        self.count = self._weight = 0
        self._sum[:] = 0
        if self._weights is not None:
            self._weights[:] = 0

    def _tiles(self) -> list[slice]:
        size = len(self._sum)
        return [slice(start, min(start + _TILE, size)) for start in range(0, size, _TILE)]
