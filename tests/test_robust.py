import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from edge_runtime import robust


def column(*values: float) -> Any:
    return np.array(values, np.float64)[:, None]


def middle(points: Any) -> Any:
    return robust.geometric_median(points) @ points


def distances(rows: Any) -> Any:
    """Square the distances between rows, one by one."""
    return ((rows[:, None] - rows) ** 2).sum(axis=2)


def tiles(rows: Any, width: int) -> Any:
    return (rows[:, start : start + width] for start in range(0, rows.shape[1], width))


def medians_of_buckets(values: Any, bucket: int) -> Counter[float]:
    """Count the medians over all orders in which the values can be drawn."""
    orders = map(np.array, itertools.permutations(range(len(values))))
    return Counter(float(robust.median(robust.bucketing(order, bucket) @ values)[0]) for order in orders)


def test_buckets_of_which_half_may_be_spoiled_break_the_median() -> None:
    values = column(1, 1, 1, 1, -10, -10)
    found = medians_of_buckets(values, 2)
    parts = {median: Fraction(count, math.factorial(6)) for median, count in found.items()}
    assert parts == {1.0: Fraction(1, 5), -4.5: Fraction(4, 5)}
    assert robust.median(values)[0] == 1


@pytest.mark.parametrize("honest", [5, 4])
def test_one_liar_spoils_one_bucket_and_the_median_stands(honest: int) -> None:
    assert set(medians_of_buckets(column(*[1] * honest, -10), 2)) == {1.0}


def test_buckets_of_two_halve_the_mean_squared_distance() -> None:
    def spread(rows: Any) -> float:
        return float(np.mean([(a - b) ** 2 for a, b in itertools.permutations(rows[:, 0], 2)]))

    values = column(0, 1, 2, 3, 4, 5)
    orders = map(np.array, itertools.permutations(range(6)))
    means = [spread(robust.bucketing(order, 2) @ values) for order in orders]
    assert spread(values) == 7.0
    assert np.mean(means) == pytest.approx(3.5, rel=1e-12)


def test_the_last_bucket_is_divided_by_its_own_size() -> None:
    mix = robust.bucketing(np.array([4, 0, 3, 1, 2]), 2)
    assert mix.tolist() == [[0.5, 0, 0, 0, 0.5], [0, 0.5, 0, 0.5, 0], [0, 0, 1, 0, 0]]


def test_one_bucket_of_all_is_the_mean_under_every_aggregator_that_takes_one_row() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5))
    one = robust.bucketing(np.arange(7)[::-1], 7) @ rows
    for outcome in (robust.median(one), robust.trimmed_mean(one, 0), middle(one)):
        np.testing.assert_allclose(outcome, rows.mean(0), rtol=0, atol=1e-15)


def test_the_median_of_an_even_number_is_the_middle_of_the_two_in_the_middle() -> None:
    assert robust.median(column(9, 1, 2, 4))[0] == 3
    assert robust.median(np.array([[1.0, 5], [3, 4], [2, 6]])).tolist() == [2, 5]


def test_a_trimmed_mean_leaves_out_the_ends_of_every_coordinate() -> None:
    rows = np.array([[1.0, 900], [2, 3], [-900, 4], [4, 5], [900, -900]])
    assert robust.trimmed_mean(rows, 1).tolist() == [7 / 3, 4]
    assert robust.trimmed_mean(rows, 2).tolist() == robust.median(rows).tolist()
    assert robust.trimmed_mean(rows, 0).tolist() == rows.mean(0).tolist()


def test_krum_scores_squared_distances_and_not_their_squares() -> None:
    values = (3.0, -2.0, 4.0, -1.0, -4.0, 1.0, 4.0)

    def picked(power: int) -> float:  # by the definition: the 7 - 1 - 2 nearest others
        scores = []
        for i, x in enumerate(values):
            others = sorted(abs(x - y) ** power for j, y in enumerate(values) if j != i)
            scores.append(sum(others[:4]))
        return values[scores.index(min(scores))]

    weights = robust.krum(distances(column(*values)), 1)
    assert weights @ values == picked(2) == 3
    assert picked(4) == 1


def test_multi_krum_averages_the_best_and_of_equals_the_first() -> None:
    assert robust.krum(distances(column(0, 1, 2, 3, 4, 100, -90)), 2, 3).tolist() == [0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0]
    assert robust.krum(distances(column(5, 5, 5, 5, 5)), 1).tolist() == [1, 0, 0, 0, 0]


def test_nearest_mixing_takes_the_mean_of_the_nearest() -> None:
    rows = np.random.default_rng(1).normal(size=(9, 4))
    mixed = robust.nearest_mixing(distances(rows), 3) @ rows
    for row, outcome in zip(rows, mixed, strict=True):
        nearest = sorted(rows, key=lambda other, row=row: np.linalg.norm(other - row))[:6]
        np.testing.assert_allclose(outcome, np.mean(nearest, axis=0), rtol=0, atol=1e-15)


def test_nearest_mixing_leaves_a_lone_liar_out_of_every_honest_row() -> None:
    mix = robust.nearest_mixing(distances(column(0, 1, 2, 3, 500)), 1)
    assert mix[:4].tolist() == [[0.25, 0.25, 0.25, 0.25, 0]] * 4


def test_the_median_stalls_where_every_device_sees_another_coordinate_and_the_geometric_median_does_not() -> None:
    seen = np.eye(3)
    assert robust.median(seen).tolist() == [0, 0, 0]
    np.testing.assert_allclose(robust.geometric_median(seen), 1 / 3, rtol=0, atol=1e-12)
    mixed = robust.bucketing(np.arange(3), 2) @ seen
    assert robust.median(mixed).tolist() == [0.25, 0.25, 0.5]


def test_the_geometric_median_of_a_triangle_sees_every_side_under_120_degrees() -> None:
    corners = np.array([[0.0, 0], [4, 0], [1, 3]])
    apart = corners - middle(corners)
    units = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    for one, other in itertools.combinations(units, 2):
        assert one @ other == pytest.approx(-0.5, abs=1e-9)


def test_the_geometric_median_of_a_triangle_with_a_very_wide_corner_is_that_corner() -> None:
    assert middle(np.array([[-5.0, 1], [5, 1], [0, 0]])).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_at_the_geometric_median_the_directions_to_all_points_cancel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(20, 6)) * 10.0 ** rng.integers(-2, 3, (20, 1))
    weights = robust.geometric_median(points)
    apart = points - weights @ points
    lengths = np.linalg.norm(apart, axis=1)
    assert lengths.min() > 0
    np.testing.assert_allclose((apart / lengths[:, None]).sum(0), 0, rtol=0, atol=1e-9)  # convex: so it is the least
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_the_geometric_median_is_the_least_that_a_search_finds() -> None:
    points = np.random.default_rng(2).normal(size=(7, 2))

    def cost(at: Any) -> float:
        return float(np.linalg.norm(points - at, axis=1).sum())

    best, reach = points.mean(0), 1.0
    while reach > 1e-9:
        near = [best + reach * np.array(way) for way in itertools.product((-1, 0, 1), repeat=2)]
        least = min(near, key=cost)
        reach = reach / 2 if cost(least) >= cost(best) else reach
        best = least if cost(least) < cost(best) else best
    np.testing.assert_allclose(middle(points), best, rtol=0, atol=1e-7)


def test_where_more_than_half_agree_the_geometric_median_is_what_they_say_exactly() -> None:
    agreed = np.array([0.1, -0.7, 3.0])
    points = np.vstack([[400.0, -400, 1], agreed, agreed, [0, 500, 500], agreed])
    assert middle(points).tolist() == agreed.tolist()


def test_the_geometric_median_stays_as_near_to_a_narrow_majority_as_that_is_narrow() -> None:
    rng = np.random.default_rng(3)
    honest = 1e-9 * rng.normal(size=(7, 40))
    rows = np.vstack([honest, np.full((3, 40), 500.0)])
    points = robust.coordinates(tiles(rows, 16))
    assert np.linalg.norm(robust.geometric_median(points) @ rows) < 3 * np.linalg.norm(honest, axis=1).max()


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 100.0), (250.0, -7.0)])
def test_the_geometric_median_moves_and_grows_with_the_points(scale: float, shift: float) -> None:
    points = np.random.default_rng(4).normal(size=(12, 5))
    np.testing.assert_allclose(
        middle(scale * points + shift), scale * middle(points) + shift, rtol=1e-9, atol=1e-9 * scale
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_clipping_moves_the_centre_by_the_mean_of_clipped_differences(steps: int) -> None:
    rng = np.random.default_rng(5)
    rows, centre, radius = rng.normal(size=(8, 6)) * 3, rng.normal(size=6), 4.0
    moved = centre.copy()
    for _ in range(steps):
        apart = rows - moved
        moved = moved + np.mean([a * min(1, radius / np.linalg.norm(a)) for a in apart], axis=0)
    points = np.vstack([rows, centre])
    np.testing.assert_allclose(robust.clipping(points, radius, steps) @ points, moved, rtol=0, atol=1e-14)


def test_clipping_about_zero_bounds_the_pull_of_a_device() -> None:
    points = np.array([[3.0, 4], [300, 400], [0, 0], [0, 0]])  # the last is the centre
    np.testing.assert_allclose(robust.clipping(points, 5.0) @ points, [2, 8 / 3], rtol=1e-15)


def test_coordinates_keep_all_distances_whatever_the_tiles() -> None:
    rows = np.random.default_rng(6).normal(3, 1, (6, 50))
    wanted = np.linalg.norm(rows[:, None] - rows, axis=2)
    for width in (1, 4, 7, 50):
        points = robust.coordinates(tiles(rows, width))
        assert points.shape == (6, 6)
        np.testing.assert_allclose(np.linalg.norm(points[:, None] - points, axis=2), wanted, rtol=0, atol=1e-13)


def test_by_coordinates_or_by_the_rows_themselves_the_geometric_median_is_the_same() -> None:
    rows = np.random.default_rng(7).normal(size=(11, 30))
    found = robust.geometric_median(robust.coordinates(tiles(rows, 8)))
    np.testing.assert_allclose(found, robust.geometric_median(rows), rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [1, 8, 30])
def test_squared_distances_are_right_to_the_norms_of_the_two_however_far_a_third_is(width: int) -> None:
    rows = np.random.default_rng(7).normal(size=(11, 30))
    rows[10] *= 1e7
    wanted, found = distances(rows), robust.squared_distances(tiles(rows, width))
    np.testing.assert_allclose(found[:10, :10], wanted[:10, :10], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert not found.diagonal().any()
    assert (found == found.T).all()


def test_devices_that_agree_to_the_last_digit_are_nearest_and_never_further_than_nothing() -> None:
    rows = np.vstack([np.full((4, 30), 1 / 3), np.random.default_rng(8).normal(size=(3, 30))])
    found = robust.squared_distances(tiles(rows, 7))
    assert (found >= 0).all()
    assert set(np.flatnonzero(robust.nearest_mixing(found, 3)[0])) == {0, 1, 2, 3}
