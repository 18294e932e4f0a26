"""A model's parameters as one flat vector, and the names and shapes that cut it into tensors.

Everything that travels, is summed or is masked is a flat float32 vector of `Layout.size` values in the order of the
layout; a backend sees the same memory as a mapping of named tensors. Names and shapes travel once, at the handshake;
afterwards `Layout.digest()` stands for them. Where only some tensors travel, they do as a `Part`.
"""

import fnmatch
import hashlib
import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, DecodeError

Flat = NDArray[np.float32]
Tree = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """Some tensors of a layout."""

    tensors: bytes
    """Which: one bit per tensor of the layout, from the lowest bit of the first byte on."""
    values: Flat
    """Their values end to end, in the layout's order [values]."""


Shared = Annotated[Flat, "shared"]
"""In a Down: values of the shared model."""
SharedPart = Annotated[Part, "shared"]
Change = Annotated[Flat, "change"]
"""In an Up: how training changed those values."""
ChangePart = Annotated[Part, "change"]
Posteriors = Annotated[Flat, "posteriors"]
"""Rows of probabilities of classes, end to end."""


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

    def only(self, names: Collection[str]) -> "Layout":
        """Give the layout of the tensors in `names`, in this one's order."""
        kept = [pair for pair in zip(self.names, self.shapes, strict=True) if pair[0] in names]
        return Layout(tuple(name for name, _ in kept), tuple(shape for _, shape in kept))

    def cut(self, flat: Flat, names: Collection[str]) -> Part:
        """Copy the tensors in `names` out of `flat` [size]; the inverse of `paste`."""
        kept = [flat[where] for name, where in zip(self.names, self.slices, strict=True) if name in names]
        return Part(self.bits(names), np.concatenate(kept) if kept else np.empty(0, np.float32))

    def bits(self, names: Collection[str]) -> bytes:
        """Mark the tensors in `names`, as `Part.tensors` does."""
        return np.packbits([name in names for name in self.names], bitorder="little").tobytes()

    def paste(self, flat: Flat, part: Part) -> None:
        """Write the tensors of a checked `part` into `flat` [size], in place."""
        start = 0
        names = self.names_of(part)
        for name, where, size in zip(self.names, self.slices, self.sizes, strict=True):
            if name in names:
                flat[where] = part.values[start : start + size]
                start += size

    def names_of(self, part: Part) -> tuple[str, ...]:
        """Check a part against this layout, and name its tensors.

        Raises:
            DecodeError: its bits are not one per tensor, or its values not those of the tensors.
        """
        bits = np.unpackbits(np.frombuffer(part.tensors, np.uint8), bitorder="little")
        count = len(self.names)
        if len(part.tensors) != -(-count // 8) or bits[count:].any():
            raise DecodeError(f"part: {len(part.tensors)} bytes do not say which of {count} tensors it holds")
        wanted = sum(size for size, on in zip(self.sizes, bits, strict=False) if on)
        if len(part.values) != wanted:
            raise DecodeError(f"part: {len(part.values)} values where its tensors have {wanted}")
        return tuple(name for name, on in zip(self.names, bits, strict=False) if on)

    def matching(self, patterns: str) -> tuple[str, ...]:
        """List the tensors that fit comma-separated patterns (`head.*, *.bias`); `auto`: those of the last layer.

        Raises:
            ConfigError: a pattern fits no tensor.
        """
        if patterns == "auto":
            layer, dot, _ = self.names[-1].rpartition(".")
            return tuple(name for name in self.names if name.startswith(layer + dot)) if dot else self.names[-1:]
        wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
        for pattern in wanted:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in self.names):
                raise ConfigError(f"private: {pattern!r} fits no tensor (there are {', '.join(self.names)})")
        return tuple(name for name in self.names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted))
