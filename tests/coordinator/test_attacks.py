import math
from typing import Any

import numpy as np
import pytest

from edge_runtime import robust
from edge_runtime.coordinator import attacks

RNG = np.random.default_rng


def good(count: int = 32, size: int = 5) -> Any:
    return RNG(0).normal(1, 0.3, (count, size)).astype(np.float32)


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("liars", [0, 1, 10])
def test_an_attack_gives_a_row_for_every_liar_and_leaves_the_honest_rows(name: str, liars: int) -> None:
    rows = good()
    before = rows.tobytes()
    found = attacks.ATTACKS[name](rows, liars, RNG(1))
    assert (found.shape, found.dtype) == ((liars, 5), np.float32)
    assert np.isfinite(found).all()
    assert rows.tobytes() == before
    assert found.tobytes() == attacks.ATTACKS[name](rows, liars, RNG(1)).tobytes()


@pytest.mark.parametrize(("count", "liars", "z"), [(25, 5, 0.2533), (20, 3, 0.0738)])
def test_a_little_is_the_published_number_of_deviations(count: int, liars: int, z: float) -> None:
    assert attacks.little(count, liars) == pytest.approx(z, abs=5e-5)
    rows = good(count - liars)
    wanted = rows.mean(0) - attacks.little(count, liars) * rows.std(0, ddof=1)
    np.testing.assert_allclose(attacks.a_little_is_enough(rows, liars, RNG(0)), [wanted] * liars, rtol=1e-5)


def test_a_majority_of_liars_has_no_little() -> None:
    with pytest.raises(ValueError, match="p must be"):
        attacks.a_little_is_enough(good(3), 4, RNG(0))


def test_a_sign_flip_only_shrinks_the_mean() -> None:
    rows = np.tile(good(1), (32, 1))
    every = np.vstack([rows, attacks.sign_flip(rows, 10, RNG(0))])
    np.testing.assert_allclose(every.mean(0), rows[0] * 0.524, rtol=1e-3)  # (32 - 10) / 42, by the specification


def test_a_flipped_sign_is_that_of_an_honest_row_drawn_at_random() -> None:
    rows = good()
    found = attacks.sign_flip(rows, 10, RNG(0))
    honest = [row.tobytes() for row in rows]
    places = [honest.index((-row).tobytes()) for row in found]
    assert len(set(places)) > 5


@pytest.mark.parametrize(("epsilon", "sign"), [(3.1, 1), (3.3, -1), (0.0, -1)])
def test_inner_product_manipulation_turns_the_mean_above_good_by_liars_but_not_the_median(
    epsilon: float, sign: int
) -> None:
    rows = good()
    every = np.vstack([rows, attacks.inner_product(rows, 10, RNG(0), epsilon)]).astype(np.float64)
    honest = rows.mean(0, dtype=np.float64)
    assert np.sign(every.mean(0) @ honest) == sign
    for outcome in (robust.median(every), robust.trimmed_mean(every, 10), robust.geometric_median(every) @ every,
                    robust.krum(robust.squared_distances([every]), 10) @ every):  # fmt: skip
        assert outcome @ honest > 0.5 * honest @ honest


def test_without_an_epsilon_the_mean_turns_to_minus_the_honest_part_of_it() -> None:
    rows = good()
    every = np.vstack([rows, attacks.inner_product(rows, 10, RNG(0))])
    np.testing.assert_allclose(every.mean(0), -rows.mean(0) * 32 / 42, rtol=1e-5)


def test_a_large_flip_is_three_times_an_honest_row_turned_round() -> None:
    rows = good()
    honest = [(-3 * row).tobytes() for row in rows]
    assert all(row.tobytes() in honest for row in attacks.large_sign_flip(rows, 10, RNG(0)))


def test_a_small_inner_product_is_minus_half_the_honest_mean() -> None:
    rows = good()
    np.testing.assert_allclose(attacks.small_inner_product(rows, 2, RNG(0)), [-rows.mean(0) / 2] * 2, rtol=1e-5)


def test_min_max_goes_as_far_from_the_mean_as_two_honest_rows_are_apart_and_no_further() -> None:
    rows = good().astype(np.float64)
    (lie,) = attacks.min_max(rows.astype(np.float32), 1, RNG(0)).astype(np.float64)
    reach = max(np.linalg.norm(one - other) for one in rows for other in rows)
    assert np.linalg.norm(rows - lie, axis=1).max() == pytest.approx(reach, rel=1e-3)
    away = (rows.mean(0) - lie) / rows.std(0)
    np.testing.assert_allclose(away, away[0], rtol=1e-3)
    assert away[0] > 0.5


@pytest.mark.parametrize(("shape", "marked"), [((2, 1, 9, 9), 16), ((2, 6, 9), 16), ((2, 30), 4)])
def test_a_mark_is_a_corner_of_every_sample_as_bright_as_anything_and_the_samples_stay(
    shape: tuple[int, ...], marked: int
) -> None:
    x = RNG(0).random(shape)
    before = x.copy()
    made = attacks.marked(x)
    assert (made != x).reshape(2, -1).sum(axis=1).max() <= marked
    assert (made == x.max()).reshape(2, -1).sum(axis=1).min() == marked
    assert (x == before).all()


def test_mimics_all_send_what_one_honest_device_sends() -> None:
    rows = good()
    assert attacks.mimic(rows, 3, RNG(0)).tolist() == [rows[0].tolist()] * 3


def test_noise_is_as_many_times_larger_as_it_is_told_to_be() -> None:
    rows = good(8, 4000)
    found = attacks.gaussian(rows, 5, RNG(0), scale=3.0)
    ratio = math.sqrt(np.mean(found**2) / np.mean(rows**2))
    assert ratio == pytest.approx(3.0, rel=0.02)  # 20,000 draws: a standard error of 0.5 %
    assert abs(found.mean()) < 0.1


def test_flipped_labels_are_mirrored() -> None:
    labels = np.array([0, 1, 9, 4])
    assert attacks.flipped_labels(labels, 10).tolist() == [9, 8, 0, 5]
    assert labels.tolist() == [0, 1, 9, 4]
