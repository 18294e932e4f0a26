"""Every backend against torch on every built-in model: outputs, gradients, packed values, growth, a trajectory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_runtime import backends, models, packed, sgd
from edge_runtime.algorithm import Batch, Model
from edge_runtime.compute import NAMES, Compute
from edge_runtime.mask import Mask
from edge_runtime.models import ModelSpec

pytest.importorskip("torch")
BACKENDS = [name for name in NAMES if name not in ("auto", "ort_training")]  # which has an environment of its own
TRIES = 4
"""Where two values are equal but for rounding a maximum may go the other way: the best of so many batches counts."""


def difference(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def draw(rng: np.random.Generator, spec: ModelSpec, batch: int = 5) -> Batch:
    x = rng.normal(size=(batch, *spec.input_shape)).astype(np.float32)
    return Batch(x, rng.integers(0, spec.classes, batch))


def half(spec: ModelSpec) -> Mask:
    """Make half of every weight active, and all biases."""
    rng = np.random.default_rng(2)
    pairs = zip(spec.layout.shapes, spec.layout.sizes, strict=True)
    draws = (np.flatnonzero(rng.random(n) < 0.5).astype(np.int32) if len(s) > 1 else None for s, n in pairs)
    return Mask(spec.layout, tuple(draws))


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_are_those_of_torch(backend: str, name: str) -> None:
    spec, rng = models.find(name), np.random.default_rng(0)
    flat = models.initial(spec, 0)
    ours, theirs = backends.load(Compute(backend), name), backends.load(Compute("torch"), name)
    found = []
    for _ in range(TRIES):
        batch = draw(rng, spec)
        ends = []
        for model in (ours, theirs):
            outputs, pullback = model.oracle.vjp(model.layout.views(flat), batch.x)
            slope = np.linspace(-1, 1, outputs.size, dtype=np.float32).reshape(outputs.shape)
            ends.append((outputs, model.layout.views(model.layout.join(pullback(slope)))))
        (outputs, grads), (wanted, gradients) = ends
        errors = [difference(grads[key], gradients[key]) for key in gradients]
        found.append(max(difference(outputs, wanted), *errors))
    assert min(found) < 1e-4


@pytest.mark.parametrize("name", ["linear", "lenet", "watch-cnn", "cnn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_is_masked_dense_and_grows_where_the_dense_gradient_is_largest(backend: str, name: str) -> None:
    spec, rng = models.find(name), np.random.default_rng(1)
    mask, model = half(spec), backends.load(Compute(backend), name)
    flat, batch = models.initial(spec, 0), draw(rng, spec)
    short = packed.of(model, mask)
    assert isinstance(short.oracle, packed.DenseInside) == (backend == "numpy")
    values = mask.pack(flat)
    dense = sgd.gradient(model, mask.unpack(values), batch)
    assert difference(sgd.gradient(short, values, batch), mask.pack(dense)) < 1e-6
    numbers = [0 if at is None else 7 for at in mask.places]
    found = sgd.steepest(short, values, batch, mask, numbers)
    parts = zip(spec.layout.slices, mask.places, numbers, found, strict=True)
    for where, at, number, places in parts:
        assert len(places) == number
        if number:
            size = np.abs(dense[where])
            size[at] = -1
            assert np.allclose(np.sort(size[places]), np.sort(size)[-number:], rtol=1e-5)


class Draws:
    """A round of random batches."""

    def __init__(self, spec: ModelSpec) -> None:
        self.rng, self._spec = np.random.default_rng(3), spec

    def __len__(self) -> int:
        return 16

    def sample(self, batch_size: int) -> Batch:
        return draw(self.rng, self._spec, batch_size)

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        yield self.sample(batch_size)


@pytest.mark.parametrize("name", ["lenet", "watch-cnn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_steps_end_where_those_of_torch_end_dense_and_packed(backend: str, name: str) -> None:
    spec = models.find(name)
    mask, start = half(spec), models.initial(spec, 0)
    settings = sgd.Sgd(lr=0.01, momentum=0.9, local_steps=20, batch_size=16)

    def train(model: Model) -> tuple[Any, Any]:
        short = packed.of(model, mask)
        sparse = sgd.descend(short, mask.pack(start), Draws(spec), settings, 0)
        return sgd.descend(model, start, Draws(spec), settings, 0), sparse

    ours, theirs = (train(backends.load(Compute(one), name)) for one in (backend, "torch"))
    for found, expected in zip(ours, theirs, strict=True):
        assert difference(found, expected) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_all_values_active_packed_is_dense_bit_for_bit(backend: str) -> None:
    spec, model = models.find("lenet"), backends.load(Compute(backend), "lenet")
    full = Mask(spec.layout, (None,) * len(spec.layout.names))
    flat, batch = models.initial(spec, 0), draw(np.random.default_rng(0), spec)
    assert np.array_equal(sgd.gradient(packed.of(model, full), flat, batch), sgd.gradient(model, flat, batch))
