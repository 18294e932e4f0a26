"""How much every parameter of a model matters to a device's own data, for choosing which channels a part of it keeps.

Taylor's score of a parameter is (w dL/dw)^2, to first order the square of what the loss changes without it (Molchanov
et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8), with the gradient of a batch, in the mean
over batches. A unit of channels has the sum over its parameters (`compression/submodel.py`).

In a run with `importance = "gradients"` a device that is to have a part is first given a task of the phase `score`: the
whole model, of which it tells what every unit is worth to it. Small batches and neither momentum nor an update let that
fit where training the whole model does not. Its down-blob is a container (`compression/codec.py`) of the cut that it
would have otherwise, as JSON, which names the units, and the model's values; its up-blob one of the units' scores.
"""

import json

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses
from edge_runtime.algorithm import Model
from edge_runtime.compression import codec, submodel
from edge_runtime.compression.submodel import Cut, Structure
from edge_runtime.data import Split
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat, Layout

BATCH = 8
_SAMPLES = 512
"""More say little more; a fixed choice of them makes the scores the same whenever they are made."""


def taylor(model: Model, values: Flat, split: Split) -> Flat:
    """Score every parameter [size] on a device's training samples."""
    layout, params = model.layout, model.layout.views(values)
    order = np.random.default_rng(0).permutation(len(split.y_train))[:_SAMPLES]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    sums = np.zeros(layout.size, np.float32)
    for some in batches:
        outputs, pullback = model.oracle.vjp(params, split.x_train[some])
        gradient = layout.join(pullback(losses.cross_entropy(outputs, split.y_train[some])[1]))
        sums += (values * gradient) ** 2
    return sums / np.float32(len(batches))


def encode_task(otherwise: Cut, values: Flat) -> bytes:
    """Write what a device must know to score units: the inverse of `decode_task`."""
    return codec.encode([json.dumps(submodel.record(otherwise)).encode(), values])


def decode_task(data: bytes, layout: Layout) -> tuple[Structure, Flat]:
    """Read hostile bytes as a model's structure and its values [size].

    Raises:
        DecodeError: they are not those of a model of this layout.
    """
    match codec.decode(data, layout.size, max_sections=2):
        case [bytes(text), np.ndarray() as values] if len(values) == layout.size and np.isfinite(values).all():
            pass
        case _:
            raise DecodeError("score: not a structure and a model's values")
    try:
        return submodel.read(json.loads(text), layout.shapes).structure, values
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"score: the structure is malformed: {error}") from error


def encode_scores(structure: Structure, scores: Flat) -> bytes:
    """Sum the scores of parameters [size] over units, and write them; the inverse of `decode_scores`."""
    units = [submodel.units_of(structure, group, scores) for group in structure.groups]
    return codec.encode([np.concatenate(units).astype(np.float32)])


def decode_scores(data: bytes, structure: Structure) -> list[NDArray[np.float32]]:
    """Read hostile bytes as the scores of each group's units.

    Raises:
        DecodeError: they are not one number from 0 for each unit.
    """
    sizes = [group.units for group in structure.groups]
    match codec.decode(data, sum(sizes), max_sections=1):
        case [np.ndarray() as scores] if len(scores) == sum(sizes):
            pass
        case _:
            raise DecodeError(f"score: not {sum(sizes)} numbers")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise DecodeError("score: a number is not finite, or below 0")
    return np.split(scores, np.cumsum(sizes)[:-1])
