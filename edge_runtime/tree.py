"""A model's parameters as one flat vector, and the names and shapes that cut it into tensors.

Everything that travels, is summed or is masked is a flat float32 vector of `Layout.size` values in the order of the
layout; a backend sees the same memory as a mapping of named tensors. Names and shapes travel once, at the handshake;
afterwards `Layout.digest()` stands for them.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.float32]
Tree = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's parameters, in the order in which they lie in a flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Count the values of every tensor (in Python integers, which do not overflow)."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Say where every tensor lies in the flat vector."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + size)
        return tuple(slice(start, end) for start, end in itertools.pairwise(ends))

    @cached_property
    def size(self) -> int:
        """Count all values: the length of a flat vector."""
        return sum(self.sizes)

    def views(self, flat: Flat) -> dict[str, Flat]:
        """Cut `flat` [size] into named tensors that share its memory."""
        return {
            name: flat[where].reshape(shape)
            for name, where, shape in zip(self.names, self.slices, self.shapes, strict=True)
        }

    def join(self, tree: Tree) -> Flat:
        """Lay named tensors end to end, the inverse of `views`; without a copy where they already lie so."""
        base = tree[self.names[0]].base
        if isinstance(base, np.ndarray) and base.dtype == np.float32 and base.shape == (self.size,):
            views = self.views(base)
            if all(tree[name].__array_interface__ == view.__array_interface__ for name, view in views.items()):
                return base
        return np.concatenate([np.asarray(tree[name], np.float32).ravel() for name in self.names])

    def digest(self) -> bytes:
        """Hash names and shapes to the 32 bytes that stand for them on the wire."""
        return hashlib.sha256(json.dumps([self.names, self.shapes]).encode()).digest()
