"""Sub-models: what is left of a model when channels of its layers are taken away. Channels in, bytes out, and back.

A `Structure` says which channels of a model can go: each `Group` is a row of channels that go together, since what one
layer gives the next one takes. A `Side` is where a group shows in a tensor: along one axis, on which channel k has the
`repeat` places from start + k * repeat on (a flattened picture has many for each channel, and what is concatenated has
several groups on an axis). Channels go in units: those of a normalisation group stay together.

A `Cut` says which units of each group are kept. What is kept of a tensor is a tensor again, and in the model's flat
vector its values are those at `Cut.bits`, in their order: there is no index map that could be in another order.

On the wire a cut is the first 8 bytes of the structure's SHA-256, and then the units of all groups as a bit vector
(`mask.py`), 1 for a unit that is kept. No group is without one.

Diao, Ding and Tarokh, "HeteroFL" (ICLR 2021, arXiv 2010.01264), section 3, takes the first channels of every layer
(`nested`), so that the parts that devices have lie within each other; `chosen` takes those that matter most.
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import mask
from edge_runtime.compression.errors import DecodeError

Bits = NDArray[np.bool_]
Shapes = tuple[tuple[int, ...], ...]

_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Side:
    """Where the channels of a group lie in a tensor."""

    tensor: int
    axis: int
    repeat: int = 1
    """Places of each channel on that axis, one after the other."""
    start: int = 0
    """The first of them."""


@dataclass(frozen=True)
class Group:
    """Channels that go together."""

    name: str
    channels: int
    unit: int
    """Channels that stay together, from a multiple of this on."""
    sides: tuple[Side, ...]

    @property
    def units(self) -> int:
        """Count the units."""
        return self.channels // self.unit


@dataclass(frozen=True)
class Structure:
    """The tensors of a model, and which of their channels can be taken away."""

    shapes: Shapes
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        """Check that every side fits its tensor, and that no two lie on each other."""
        taken = [[np.zeros(size, np.bool_) for size in shape] for shape in self.shapes]
        for group in self.groups:
            if group.unit < 1 or group.channels < 1 or group.channels % group.unit:
                raise ValueError(f"submodel: {group.channels} channels of {group.name!r} in units of {group.unit}")
            for side in group.sides:
                if not 0 <= side.tensor < len(taken) or not 0 <= side.axis < len(taken[side.tensor]) or side.repeat < 1:
                    raise ValueError(f"submodel: no axis {side.axis} of a tensor {side.tensor} for {group.name!r}")
                places = taken[side.tensor][side.axis][_places(group, side)]
                if side.start < 0 or len(places) != group.channels * side.repeat or places.any():
                    raise ValueError(
                        f"submodel: axis {side.axis} of tensor {side.tensor} has no room for {group.name!r}"
                    )
                places[:] = True

    @functools.cached_property
    def digest(self) -> bytes:
        """Stand for the structure on the wire."""
        groups = [
            (group.name, group.channels, group.unit, [vars(side) for side in group.sides]) for group in self.groups
        ]
        text = json.dumps([self.shapes, groups], sort_keys=True)
        return hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]


@dataclass(frozen=True, eq=False)
class Cut:
    """The units that are kept."""

    structure: Structure
    kept: tuple[Bits, ...]
    """Of each group [units]."""

    @functools.cached_property
    def axes(self) -> tuple[tuple[Bits, ...], ...]:
        """Say of each tensor, along each axis, which places are kept."""
        found = [[np.ones(size, np.bool_) for size in shape] for shape in self.structure.shapes]
        for group, kept in zip(self.structure.groups, self.kept, strict=True):
            for side in group.sides:
                found[side.tensor][side.axis][_places(group, side)] = np.repeat(kept, group.unit * side.repeat)
        return tuple(tuple(axes) for axes in found)

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Give the shapes of what is kept of each tensor."""
        return tuple(tuple(int(np.count_nonzero(axis)) for axis in axes) for axes in self.axes)

    @functools.cached_property
    def bits(self) -> Bits:
        """Say which values of the model's flat vector [size] are kept."""
        return np.concatenate([_product(axes).ravel() for axes in self.axes])


def _places(group: Group, side: Side) -> slice:
    return slice(side.start, side.start + group.channels * side.repeat)


def _product(axes: Sequence[Bits]) -> Bits:
    found = np.ones((), np.bool_)
    for axis in axes:
        found = found[..., None] & axis
    return found


def nested(structure: Structure, width: float) -> Cut:
    """Keep the first units of every group, `width` of them, at least one.

    Raises:
        ValueError: `width` is not above 0 and at most 1.
    """
    return _cut(structure, width, [np.arange(group.units, 0, -1) for group in structure.groups])


def chosen(structure: Structure, width: float, importance: NDArray[np.floating]) -> Cut:
    """Keep those `width` of the units of every group that matter most, of equals the first.

    Args:
        structure: of the model.
        width: above 0, at most 1.
        importance: of each value of the model's flat vector [size]: its square (magnitude), or how much the loss would
            change without it (Taylor: the square of gradient times value, Molchanov et al., CVPR 2019). A unit's is
            the sum over all of its values.
    """
    return _cut(structure, width, [units_of(structure, group, importance) for group in structure.groups])


def rechosen(cut: Cut, worth: Sequence[NDArray[np.floating]]) -> Cut:
    """Keep as many units of every group as a cut does, those worth most [units], of equals the first.

    What is left has the shapes of what the cut leaves, and the same graphs compute it.
    """
    kept = [_best(rank, int(np.count_nonzero(held))) for rank, held in zip(worth, cut.kept, strict=True)]
    return Cut(cut.structure, tuple(kept))


def units_of(structure: Structure, group: Group, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum values [size] of the model over those that belong to each unit of a group [units]."""
    sums = np.zeros(group.units)
    ends = np.cumsum([math.prod(shape) for shape in structure.shapes])
    for side in group.sides:
        shape, end = structure.shapes[side.tensor], int(ends[side.tensor])
        tensor = values[end - math.prod(shape) : end].reshape(shape)
        others = tuple(axis for axis in range(len(shape)) if axis != side.axis)
        by_place = tensor.sum(axis=others, dtype=np.float64)[_places(group, side)]
        sums += by_place.reshape(group.units, -1).sum(axis=1)
    return sums


def _cut(structure: Structure, width: float, ranks: Sequence[NDArray[np.generic]]) -> Cut:
    if not 0 < width <= 1:
        raise ValueError(f"width must be above 0 and at most 1, not {width:g}")
    pairs = zip(structure.groups, ranks, strict=True)
    return Cut(structure, tuple(_best(rank, max(1, round(width * group.units))) for group, rank in pairs))


def _best(rank: NDArray[np.generic], number: int) -> Bits:
    best = np.zeros(len(rank), np.bool_)
    best[np.argsort(-rank.astype(np.float64), kind="stable")[:number]] = True
    return best


def within(bits: Bits, some: Bits) -> Bits:
    """Say which values [size] are those `some` of the ones that are on in `bits` [size]; one bool for each of these."""
    found = bits.copy()
    found[bits] = some
    return found


def record(cut: Cut) -> dict[str, Any]:
    """Write down a cut and the structure that it is of, as plain values; the inverse of `read`."""
    groups = [
        [group.name, group.channels, group.unit, [list(vars(side).values()) for side in group.sides]]
        for group in cut.structure.groups
    ]
    return {"shapes": [list(shape) for shape in cut.structure.shapes], "groups": groups, "cut": encode(cut).hex()}


def read(written: Any, shapes: Shapes) -> Cut:
    """Read what `record` wrote of a model of these shapes.

    Raises:
        DecodeError: it is something else, or of another model.
    """
    try:
        if written["shapes"] != [list(shape) for shape in shapes]:
            raise DecodeError("submodel: it is a part of another model")
        groups = tuple(
            Group(str(name), int(channels), int(unit), tuple(Side(*map(int, side)) for side in sides))
            for name, channels, unit, sides in written["groups"]
        )
        return decode(bytes.fromhex(written["cut"]), Structure(shapes, groups))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"submodel: no cut is written there ({error})") from error


def encode(cut: Cut) -> bytes:
    """Encode a cut; the inverse of `decode`."""
    return cut.structure.digest + (mask.encode(np.concatenate(cut.kept)) if cut.kept else b"")


def decode(data: bytes, structure: Structure) -> Cut:
    """Decode hostile bytes into a cut of a model that is known.

    Raises:
        DecodeError: they are none, or of another model.
    """
    if data[:_DIGEST_BYTES] != structure.digest:
        raise DecodeError("submodel: it was cut out of another model than this one; install the same version on both")
    units = [group.units for group in structure.groups]
    if not units:
        if len(data) > _DIGEST_BYTES:
            raise DecodeError("submodel: this model has no channels to take away")
        return Cut(structure, ())
    kept = mask.decode(data[_DIGEST_BYTES:], sum(units))
    parts = tuple(np.split(kept, np.cumsum(units)[:-1]))
    for group, part in zip(structure.groups, parts, strict=True):
        if not part.any():
            raise DecodeError(f"submodel: nothing is left of {group.name!r}")
    return Cut(structure, parts)
