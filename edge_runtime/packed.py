"""Sparse models held as their active values only.

A `Mask` says which values of a model there are. Under a mask a flat vector shrinks to the active values, tensor by
tensor, and `of` gives the Model that computes with such vectors: parameters, gradients and whatever an optimizer keeps
are all that short. A backend that can (`Packs`) has each dense tensor only while it uses it; for any other the dense
model is put together for every batch.

`Steep.largest` is what growing a mask needs of the dense gradient: the places where it is largest, tensor by tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.algorithm import Model, Oracle, Pullback
from edge_runtime.mask import Mask, Places
from edge_runtime.tree import Flat, Tree

Slope = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Takes outputs [batch, n] to d loss / d outputs."""


class Steep(Oracle, Protocol):
    """An Oracle on active values that also knows where the dense gradient is steep."""

    def largest(
        self, params: Tree, x: NDArray[Any], slope: Slope, barred: Mask, numbers: Sequence[int]
    ) -> list[Places]:
        """Find the places in each tensor where the dense gradient is largest in absolute value.

        Args:
            params: the active values by name.
            x: inputs [batch, ...].
            slope: takes the outputs for them to d loss / d outputs.
            barred: places that are not asked for.
            numbers: how many to find in each tensor; of equals, those that come first.
        """
        ...


@runtime_checkable
class Packs(Protocol):
    """An Oracle whose backend can compute under a mask without holding the dense model."""

    def packed(self, mask: Mask) -> Steep | None:
        """Give the Oracle on active values; None: not under this mask."""
        ...


@dataclass(frozen=True)
class PackedModel(Model):
    """A Model of active values."""

    oracle: Steep


def of(model: Model, mask: Mask) -> PackedModel:
    """Give the model of a dense model's active values; `mask.packed` is its layout."""
    # A full mask is the dense model, bit for bit: a backend may add up the tiles of its packed one in another order.
    own = model.oracle.packed(mask) if isinstance(model.oracle, Packs) and not mask.full else None
    return PackedModel(mask.packed, own or DenseInside(model.oracle, mask))


class DenseInside:
    """Any Oracle under a mask: the dense model is put together for every batch."""

    def __init__(self, oracle: Oracle, mask: Mask) -> None:
        self._oracle, self._mask = oracle, mask

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        outputs, dense = self._oracle.vjp(self._dense(params), x)
        names, places = self._mask.layout.names, self._mask.places

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            grads = dense(grad)
            pairs = zip(names, places, strict=True)
            return {name: grads[name] if at is None else grads[name].ravel()[at] for name, at in pairs}

        return outputs, pullback

    def largest(
        self, params: Tree, x: NDArray[Any], slope: Slope, barred: Mask, numbers: Sequence[int]
    ) -> list[Places]:
        """Find where the dense gradient is largest; see `Steep`."""
        outputs, pullback = self._oracle.vjp(self._dense(params), x)
        grads = pullback(slope(outputs))
        tensors = zip(self._mask.layout.names, barred.places, numbers, strict=True)
        return [largest(grads[name].ravel(), at, number) for name, at, number in tensors]

    def _dense(self, params: Tree) -> Tree:
        mask = self._mask
        if mask.full:
            return params
        return mask.layout.views(mask.unpack(mask.packed.join(params)))


def largest(gradient: Flat, barred: Places | None, number: int) -> Places:
    """Find the `number` places of one tensor's gradient [n] that are largest in absolute value; none of `barred`."""
    if not number or barred is None:
        return np.empty(0, np.int32)
    size = np.abs(gradient)
    size[barred] = -1
    return np.argsort(-size, kind="stable")[:number].astype(np.int32)
