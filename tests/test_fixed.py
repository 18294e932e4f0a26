from itertools import permutations
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.fixed import LIMIT, MOST, Total, cap_of


def mean(total: Total, size: int) -> Any:
    model = np.zeros(size, np.float32)
    total.step(model)
    return -model


def test_a_mean_is_that_of_exact_arithmetic_whatever_the_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    vectors = [(rng.normal(0, 10.0**power, 1000)).astype(np.float32) for power in (-6, -3, 0, 2)]
    outcomes = []
    for order in permutations(vectors):
        total = Total(1000)
        for vector in order:
            total.add(vector)
        outcomes.append(mean(total, 1000))
    assert len({outcome.tobytes() for outcome in outcomes}) == 1
    exact = np.sum([vector.astype(np.float64) for vector in vectors], axis=0) / 4
    np.testing.assert_allclose(outcomes[0], exact, rtol=6e-8, atol=1e-12)


def test_a_value_is_rounded_to_the_nearest_unit() -> None:
    total = Total(3)
    total.add(np.array([0.75, -0.75, 0.25], np.float32) * np.float32(2.0**-40))
    assert (mean(total, 3) * 2.0**40).tolist() == [1, -1, 0]


def test_vectors_longer_than_a_tile_are_added_whole_with_and_without_a_mask() -> None:
    rng = np.random.default_rng(1)
    size = 150_001
    dense, where = rng.normal(0, 1, size).astype(np.float32), rng.random(size) < 0.3
    total = Total(size)
    total.add(dense)
    total.add(dense[where], where)
    np.testing.assert_allclose(mean(total, size), np.where(where, dense, dense / 2), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("owners", "moved"), [(False, [0.8, 0.9333333, 1.1333333, 1.0]), (True, [0.8, 0.8, 1.4, 1.0])], ids=["S", "owners"]
)
def test_masked_updates_are_divided_by_their_number_or_by_the_owners(owners: bool, moved: list[float]) -> None:
    total = Total(4, owners=owners)  # golden vector E8 of FedSpa's specification
    for mask, update in [("1100", [0.3, 0.2]), ("1010", [0.6, -0.4]), ("1000", [-0.3])]:
        total.add(np.array(update, np.float32), np.array([bit == "1" for bit in mask]))
    model = np.ones(4, np.float32)
    total.step(model)
    np.testing.assert_allclose(model, moved, rtol=0, atol=1e-6)


def test_weights_are_clamped_to_the_cap() -> None:
    total = Total(1, cap=10)
    for value, weight in [(1.0, 10**12), (0.0, -5), (0.0, 9)]:
        total.add(np.array([value], np.float32), weight=weight)
    assert mean(total, 1)[0] == np.float32(10 / 20)


def test_with_a_cap_of_one_all_weigh_the_same() -> None:
    total = Total(1)
    total.add(np.array([1.0], np.float32), weight=1000)
    total.add(np.array([0.0], np.float32), weight=1)
    assert mean(total, 1)[0] == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, LIMIT, -LIMIT, 3e38])
def test_a_value_that_could_overflow_is_refused_and_nothing_changes(bad: float) -> None:
    total = Total(3)
    total.add(np.array([1, 2, 3], np.float32))
    with pytest.raises(DecodeError, match="not finite or not below 512"):
        total.add(np.array([5, bad, 5], np.float32))
    assert mean(total, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_values_is_refused(count: int) -> None:
    with pytest.raises(DecodeError, match="where 3 are expected"):
        Total(3).add(np.ones(count, np.float32))
    with pytest.raises(DecodeError, match="where 3 are expected"):
        Total(5).add(np.ones(count, np.float32), np.array([1, 0, 1, 0, 1], np.bool_))


def test_as_many_of_the_largest_values_as_are_let_in_do_not_overflow() -> None:
    total, largest = Total(1), np.array([np.nextafter(np.float32(LIMIT), np.float32(0))])
    for _ in range(MOST):
        total.add(largest)
    assert mean(total, 1) == largest
    with pytest.raises(DecodeError, match="16384 updates at most"):
        total.add(largest)


def test_what_nobody_owns_keeps_its_bits() -> None:
    model = np.array([-0.0, 1e-45, 3.3], np.float32)
    before = model.tobytes()
    total = Total(3, owners=True)
    total.step(model)
    total.add(np.empty(0, np.float32), np.zeros(3, np.bool_))
    total.step(model)
    assert model.tobytes() == before


def test_a_cleared_sum_starts_again_at_zero() -> None:
    total = Total(2, owners=True)
    total.add(np.ones(2, np.float32))
    total.clear()
    total.add(np.array([3, 4], np.float32))
    assert mean(total, 2).tolist() == [3, 4]


def test_weights_by_name() -> None:
    assert cap_of("uniform", 500) == 1
    assert cap_of("samples", 500) == 500
    for weights, cap in [("sample", 5), ("samples", 0)]:
        with pytest.raises(ConfigError, match="algorithm: "):
            cap_of(weights, cap)
