"""The numpy backend against two things to trust: central differences (in float64) and torch."""

import numpy as np
import pytest

from edge_runtime import backends, models
from edge_runtime.backends.numpy import NumpyOracle
from edge_runtime.compute import Compute
from edge_runtime.models import Conv, Flatten, GlobalAveragePool, GroupNorm, Linear, MaxPool, ModelSpec, Relu

SMALL = [
    ModelSpec("conv1d", (Conv(2, 3, (3,), padding=1), Conv(3, 2, (4,), 2, 3), GlobalAveragePool()), (2, 9), 2),
    ModelSpec("conv2d", (Conv(2, 2, (3, 2)), Conv(2, 3, (2, 3), 2, 1), GlobalAveragePool()), (2, 7, 6), 3),
    ModelSpec("norm", (Conv(2, 6, (1,)), GroupNorm(3, 6), Flatten(), Linear(30, 4)), (2, 5), 4),
    ModelSpec("pool", (Conv(1, 2, (2, 2)), MaxPool(2), Relu(), Flatten(), Linear(8, 2)), (1, 6, 6), 2),
]


def _case(spec, dtype, batch=3):
    rng = np.random.default_rng(7)
    flat = rng.normal(size=spec.layout.size).astype(dtype) * dtype(0.5)
    return flat, rng.normal(size=(batch, *spec.input_shape)).astype(dtype), rng


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_gradients_are_those_of_central_differences(spec) -> None:
    flat, x, rng = _case(spec, np.float64)
    oracle = NumpyOracle(spec)
    outputs, pullback = oracle.vjp(spec.layout.views(flat), x)
    direction = rng.normal(size=outputs.shape)

    gradient = np.concatenate([pullback(direction)[name].ravel() for name in spec.layout.names])

    step = 1e-6
    for index in range(len(flat)):
        sides = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            sides.append((oracle.vjp(spec.layout.views(moved), x)[0] * direction).sum())
        # The error of a central difference in float64 is about eps / step + step^2 = 2e-10 of values near 10.
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", models.names())
def test_outputs_and_every_gradient_are_those_of_torch(name: str) -> None:
    pytest.importorskip("torch")
    spec = models.find(name)
    params = spec.layout.views(models.initial(spec, 0))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, *spec.input_shape)).astype(np.float32)
    ours, theirs = backends.load(Compute("numpy"), name), backends.load(Compute("torch"), name)

    (y, pull), (y_torch, pull_torch) = (model.oracle.vjp(params, x) for model in (ours, theirs))
    direction = rng.normal(size=y.shape).astype(np.float32)
    grads, grads_torch = pull(direction), pull_torch(direction)

    # Sums of thousands of float32 products in another order differ by about 1e-6 of the largest.
    assert ours.layout == theirs.layout
    assert y.dtype == y_torch.dtype == np.float32
    np.testing.assert_allclose(y, y_torch, rtol=1e-4, atol=1e-4 * np.abs(y_torch).max())
    assert set(grads) == set(grads_torch) == set(spec.layout.names)
    for key, shape in zip(spec.layout.names, spec.layout.shapes, strict=True):
        assert grads[key].shape == grads_torch[key].shape == shape
        assert grads[key].dtype == grads_torch[key].dtype == np.float32
        np.testing.assert_allclose(
            grads[key], grads_torch[key], rtol=1e-4, atol=1e-4 * np.abs(grads_torch[key]).max(), err_msg=key
        )


def test_of_equal_values_the_first_takes_the_gradient_of_a_maximum() -> None:
    spec = ModelSpec("ties", (Conv(1, 1, (1, 1)), MaxPool(2), Flatten()), (1, 2, 2), 1)
    x = np.ones((1, 1, 2, 2), np.float32)
    params = {"conv1.weight": np.ones((1, 1, 1, 1), np.float32), "conv1.bias": np.zeros(1, np.float32)}

    gradient = NumpyOracle(spec).vjp(params, x)[1](np.ones((1, 1), np.float32))

    assert gradient["conv1.weight"].item() == 1  # 4, if each of the four took it


def test_twenty_steps_of_training_end_where_torch_ends() -> None:
    pytest.importorskip("torch")
    spec = models.find("watch-cnn")
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 16, 6, 100)).astype(np.float32), rng.integers(0, 7, (20, 16))
    ends = []
    for backend in ("numpy", "torch"):
        oracle = backends.load(Compute(backend), "watch-cnn").oracle
        params = spec.layout.views(models.initial(spec, 0))
        for batch, labels in zip(x, y, strict=True):
            outputs, pullback = oracle.vjp(params, batch)
            odds = np.exp(outputs - outputs.max(1, keepdims=True))
            grads = pullback((odds / odds.sum(1, keepdims=True) - np.eye(7, dtype=np.float32)[labels]) / len(labels))
            params = {name: value - np.float32(0.05) * grads[name] for name, value in params.items()}
        ends.append(spec.layout.join(params))

    # Rounding errors grow along the way: each step's change of sign at a ReLU or tie in a pool may differ.
    moved = np.abs(ends[0] - models.initial(spec, 0)).max()
    assert moved > 0.01
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3 * np.abs(ends[1]).max())


def test_the_same_input_gives_the_same_bits() -> None:
    spec = models.find("watch-cnn")
    params = spec.layout.views(models.initial(spec, 0))
    x = np.random.default_rng(0).normal(size=(32, 6, 100)).astype(np.float32)
    direction = np.ones((32, 7), np.float32)

    runs = [backends.load(Compute("numpy"), "watch-cnn").oracle.vjp(params, x)[1](direction) for _ in range(2)]

    assert spec.layout.join(runs[0]).tobytes() == spec.layout.join(runs[1]).tobytes()


def test_parameters_and_inputs_that_are_read_only_are_left_alone() -> None:
    spec = models.find("lenet")
    flat = models.initial(spec, 0)
    x = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
    before = flat.tobytes(), x.tobytes()
    flat.flags.writeable = x.flags.writeable = False

    _, pullback = backends.load(Compute("numpy"), "lenet").oracle.vjp(spec.layout.views(flat), x)
    pullback(np.ones((2, 10), np.float32))

    assert (flat.tobytes(), x.tobytes()) == before
