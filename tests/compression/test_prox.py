from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import prox, quantize

HALVES = np.array([-0.5, 0.5])
Y = np.array([0.9, 0.55, 0.45, 0.02, -0.3, -0.58])
SEEDS = st.integers(0, 2**32)


def draw_l1(y: Any, centres: Any, threshold: float) -> Any:
    return prox.weights_l1(y, centres[quantize.assign(y, centres)], threshold)


@pytest.mark.parametrize(
    ("threshold", "golden"),
    [(0.1, [0.8, 0.5, 0.5, 0.12, -0.4, -0.5]), (0.05, [0.85, 0.5, 0.5, 0.07, -0.35, -0.53])],
)
def test_weights_are_drawn_to_the_golden_values(threshold: float, golden: list[float]) -> None:
    assert draw_l1(Y, HALVES, threshold) == pytest.approx(golden, abs=1e-12)


def test_what_reaches_its_centre_is_the_centre_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    y, centres = rng.normal(0, 1, 1000).astype(np.float32), np.sort(rng.normal(0, 1, 8)).astype(np.float32)
    near = centres[quantize.assign(y, centres)]
    drawn = prox.weights_l1(y, near, 0.2)
    held = np.abs(y - near) <= 0.2
    assert held.any()
    assert not held.all()
    assert (drawn[held] == near[held]).all()
    assert drawn.dtype == np.float32


@given(SEEDS, st.floats(0.001, 3))
def test_no_grid_point_beats_the_l1_map_of_a_weight(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    y, centres = rng.normal(0, 2), np.sort(rng.normal(0, 1, 4))

    def objective(z: Any) -> Any:
        return (z - y) ** 2 / 2 + threshold * np.abs(z[:, None] - centres).min(axis=1)

    grid = np.concatenate([np.linspace(-6, 6, 1001), centres, y + threshold * np.array([-1, 0, 1])])
    assert objective(draw_l1(np.array([y]), centres, threshold)) <= objective(grid).min() + 1e-12


@given(SEEDS, st.floats(0.001, 10))
def test_no_grid_point_beats_the_l2_map_of_a_weight(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    y, centres = rng.normal(0, 2, 1), np.sort(rng.normal(0, 1, 4))

    def objective(z: Any) -> Any:
        return (z - y) ** 2 / 2 + strength * np.abs(z[:, None] - centres).min(axis=1) ** 2

    near = centres[quantize.assign(y, centres)]
    drawn = prox.weights_l2(y, near, strength)
    assert drawn == pytest.approx((y + 2 * strength * near) / (1 + 2 * strength))
    assert objective(drawn) <= objective(np.linspace(-6, 6, 1001)).min() + 1e-9


@given(SEEDS, st.floats(1e-4, 2), st.integers(0, 9))
def test_no_candidate_beats_the_l1_map_of_a_centre(seed: int, threshold: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, mu = np.round(rng.normal(0, 1, count), 1), float(rng.normal())  # rounded, so that some are equal
    drawn = prox.centres_l1(np.array([mu]), x, np.zeros(count, np.uint8), threshold)

    def objective(c: Any) -> Any:
        return (c - mu) ** 2 / 2 + threshold * np.abs(x - c[:, None]).sum(axis=1)

    roots = [mu - threshold * (np.sum(x < at) - np.sum(x > at)) for at in [*x, -9, 9, *(x + 1e-9), *(x - 1e-9)]]
    assert objective(drawn) <= objective(np.array([*x, *roots, *np.linspace(-4, 4, 401)])).min() + 1e-9


def test_a_strong_l1_map_brings_a_centre_to_the_median_of_its_members() -> None:
    x = np.array([-9.0, 1.0, 2.0, 7.0, 100.0])
    drawn = prox.centres_l1(np.array([50.0, 3.0]), x, np.zeros(5, np.uint8), 1e3)
    assert drawn.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("draw", [prox.centres_l1, prox.centres_l2, prox.centres_first_order])
def test_trap_7_a_centre_without_members_stays(draw: Any) -> None:
    mu, x = np.array([-1, 0.25, 3], np.float32), np.array([-2, 4], np.float32)
    drawn = draw(mu, x, np.array([0, 2], np.uint8), 0.1)
    assert drawn[1] == np.float32(0.25)
    assert (drawn[[0, 2]] != mu[[0, 2]]).all()
    assert drawn.dtype == np.float32


def test_the_l2_map_of_the_centres_is_where_its_slope_is_zero() -> None:
    rng = np.random.default_rng(0)
    x, codes, mu, strength = rng.normal(0, 1, 50), rng.integers(0, 4, 50).astype(np.uint8), rng.normal(0, 1, 4), 0.3
    drawn = prox.centres_l2(mu, x, codes, strength)
    slopes = [c - m + 2 * strength * (c - x[codes == r]).sum() for r, (c, m) in enumerate(zip(drawn, mu, strict=True))]
    assert slopes == pytest.approx([0] * 4, abs=1e-12)


def test_trap_1_a_step_of_first_order_brings_centres_closer_to_their_members() -> None:
    x, codes, mu = np.array([1.0, 2.0, 3.0, -1.0]), np.array([0, 0, 0, 0], np.uint8), np.array([0.5])
    drawn = prox.centres_first_order(mu, x, codes, 0.01)
    assert drawn == pytest.approx([0.5 + 0.01 * (3 - 1)])
    assert np.abs(x - drawn).sum() < np.abs(x - mu).sum()


def test_the_step_of_first_order_is_the_exact_map_until_it_meets_a_member() -> None:
    x, codes, mu = np.array([-2.0, 1.0, 2.0, 3.0]), np.zeros(4, np.uint8), np.array([0.5])
    assert prox.centres_first_order(mu, x, codes, 0.1) == pytest.approx(prox.centres_l1(mu, x, codes, 0.1))
    assert prox.centres_first_order(mu, x, codes, 5.0) == pytest.approx([10.5])  # too far
    assert prox.centres_l1(mu, x, codes, 5.0) == pytest.approx([1.0])  # a median of -2, 1, 2, 3


def test_two_centres_at_plus_and_minus_one_give_proxquant() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(0, 1.5, 1000)
    threshold, sign = 0.2, np.where(y >= 0, 1.0, -1.0)
    binary = sign + np.sign(y - sign) * np.maximum(np.abs(y - sign) - threshold, 0)  # Bai et al. (2019), section 3
    assert draw_l1(y, np.array([-1.0, 1.0]), threshold) == pytest.approx(binary, abs=1e-12)


def test_an_infinitely_strong_map_is_the_hard_quantiser() -> None:
    near = HALVES[quantize.assign(Y, HALVES)]
    assert (draw_l1(Y, HALVES, 1e30) == near).all()
    assert prox.weights_l2(Y, near, 1e30) == pytest.approx(near)


def test_a_map_of_no_strength_changes_nothing() -> None:
    near = HALVES[quantize.assign(Y, HALVES)]
    codes = quantize.assign(Y, HALVES)
    assert (prox.weights_l1(Y, near, 0.0) == Y).all()
    assert (prox.weights_l2(Y, near, 0.0) == Y).all()
    for draw in (prox.centres_l1, prox.centres_l2, prox.centres_first_order):
        assert (draw(HALVES, Y, codes, 0.0) == HALVES).all()
