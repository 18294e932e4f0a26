from typing import Any

import numpy as np
import pytest

from edge_runtime.losses import accuracy, cross_entropy, cross_entropy_bend, distillation, distillation_teacher, softmax


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


def numeric(function: Any, at: Any, step: float = 1e-3) -> Any:
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        move = np.zeros_like(at)
        move[place] = step
        gradient[place] = (function(at + move) - function(at - move)) / (2 * step)
    return gradient


def test_distillation_is_the_golden_kl() -> None:
    zero, two = np.zeros((1, 2), np.float32), np.array([[2, 0]], np.float32)
    assert distillation(zero, softmax(two))[0] == pytest.approx(0.32781333, abs=1e-6)
    student = np.array([[1, 0]], np.float32)
    assert distillation(student, softmax(two, 3.0), 3.0)[0] == pytest.approx(0.11568850, abs=1e-6)
    assert distillation(two, softmax(two, 3.0), 3.0)[0] == pytest.approx(0, abs=1e-6)


def test_distillation_goes_from_teacher_to_student() -> None:
    teacher = np.array([[0.9, 0.1]], np.float32)
    value, gradient = distillation(np.zeros((1, 2), np.float32), teacher)
    assert value == pytest.approx(0.368064, abs=1e-6)
    assert gradient == pytest.approx(np.array([[-0.4, 0.4]]), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_both_gradients_of_distillation_are_those_of_its_value(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 3, 4))
    gradient = distillation(student, softmax(teacher, temperature), temperature)[1]
    wanted = numeric(lambda z: distillation(z, softmax(teacher, temperature), temperature)[0], student)
    assert gradient == pytest.approx(wanted, abs=1e-5)
    gradient = distillation_teacher(student, teacher, temperature)
    wanted = numeric(lambda z: distillation(student, softmax(z, temperature), temperature)[0], teacher)
    assert gradient == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("temperature", "slope"), [(1.0, 0.611856), (2.0, 0.176759), (4.0, 0.046159)], ids=["1", "2", "4"]
)
def test_the_golden_gradients_at_a_temperature(temperature: float, slope: float) -> None:
    student, teacher = np.array([[2, 0]], np.float32), np.array([[0, 1]], np.float32)
    gradient = distillation(student, softmax(teacher, temperature), temperature)[1]
    assert gradient[0, 0] == pytest.approx(slope * temperature**2, abs=2e-5)


def test_the_gradients_change_along_a_direction_is_its_finite_difference() -> None:
    rng = np.random.default_rng(5)
    outputs, change, labels = rng.normal(0, 3, (4, 5)), rng.normal(0, 1, (4, 5)), rng.integers(0, 5, 4)
    gradient, bent = cross_entropy_bend(outputs, change, labels)
    ends = [cross_entropy(outputs + sign * 1e-5 * change, labels)[1] for sign in (1, -1)]
    assert gradient.tobytes() == cross_entropy(outputs, labels)[1].tobytes()
    np.testing.assert_allclose(bent, (ends[0] - ends[1]) / 2e-5, atol=1e-9)
