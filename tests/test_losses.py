import numpy as np
import pytest

from edge_runtime.losses import accuracy, cross_entropy


def test_cross_entropy_is_the_mean_negative_log_likelihood() -> None:
    outputs = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]], np.float32)) + np.float32(5)
    value, gradient = cross_entropy(outputs, np.array([0, 2]))
    assert value == pytest.approx(-(np.log(0.7) + np.log(0.25)) / 2, rel=1e-6)
    np.testing.assert_allclose(gradient, np.array([[-0.3, 0.2, 0.1], [0.25, 0.5, -0.75]]) / 2, atol=1e-7)
    assert gradient.dtype == np.float32


def test_its_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(0, 2, (5, 4)), rng.integers(0, 4, 5)
    _, gradient = cross_entropy(outputs, labels)  # type: ignore[arg-type]  # float64, for the differences
    for place in np.ndindex(outputs.shape):
        shift = np.zeros_like(outputs)
        shift[place] = 1e-5
        high, low = cross_entropy(outputs + shift, labels)[0], cross_entropy(outputs - shift, labels)[0]
        assert gradient[place] == pytest.approx((high - low) / 2e-5, abs=1e-8)  # the differences' own error


def test_huge_outputs_overflow_nothing() -> None:
    value, gradient = cross_entropy(np.array([[1e30, -1e30], [3e4, 0]], np.float32), np.array([0, 1]))
    assert value == pytest.approx(1.5e4)
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, -0.5]], atol=1e-7)


def test_accuracy_counts_the_rows_whose_largest_output_is_the_label() -> None:
    assert accuracy(np.array([[1, 2], [3, 0], [0, 1], [5, 6]], np.float32), np.array([1, 0, 0, 1])) == 0.75
