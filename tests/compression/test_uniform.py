from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import uniform
from edge_runtime.compression.errors import DecodeError

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
STEPS = st.floats(0.01, 4)


@st.composite
def vectors(draw: Any) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(0, 40), max_size=5))
    return draw(hnp.arrays(np.float32, sum(sizes), elements=FINITE)), sizes


def laplacian(count: int) -> np.ndarray:
    return np.random.default_rng(0).laplace(0, 1, count).astype(np.float32)


def within(values: np.ndarray, back: np.ndarray, bound: np.ndarray) -> bool:
    """Compare in float64, and allow for the float32 rounding of a product, half a unit in the last of 24 digits."""
    allowed = bound + np.abs(back.astype(np.float64)) * 2.0**-24
    return bool((np.abs(values.astype(np.float64) - back) <= allowed).all())


@given(vectors(), STEPS)
def test_a_value_is_off_by_half_a_step_at_most(vector: tuple[np.ndarray, list[int]], step: float) -> None:
    values, sizes = vector
    steps, codes = uniform.quantise(values, sizes, step)
    back = uniform.dequantise(steps, codes, sizes)
    assert back.dtype == np.float32
    assert within(values, back, np.repeat(steps.astype(np.float64), sizes) / 2)


@given(vectors(), STEPS, st.integers(0, 2**32))
def test_at_random_a_value_is_off_by_less_than_a_step(
    vector: tuple[np.ndarray, list[int]], step: float, seed: int
) -> None:
    values, sizes = vector
    steps, codes = uniform.quantise(values, sizes, step, np.random.default_rng(seed))
    assert within(values, uniform.dequantise(steps, codes, sizes), np.repeat(steps.astype(np.float64), sizes))


@given(vectors(), STEPS)
def test_a_step_is_the_one_asked_for_to_8_digits(vector: tuple[np.ndarray, list[int]], step: float) -> None:
    values, sizes = vector
    steps, _ = uniform.quantise(values, sizes, step)
    for part, got in zip(np.split(values, np.cumsum(sizes)[:-1]) if sizes else [], steps, strict=True):
        wanted = step * np.sqrt(np.mean(part.astype(np.float64) ** 2)) if part.any() else 0.0
        assert got == pytest.approx(wanted, rel=2.0**-8, abs=2.0**-126)


def test_half_way_goes_to_the_even_code() -> None:
    values = np.array([0.5, 1.5, -0.5, -2.5, 3.0, -3.0], np.float32)
    rms = float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
    steps, codes = uniform.quantise(values, [6], 1 / rms)
    assert steps.tolist() == [1.0]
    assert codes.tolist() == [0, 2, 0, -2, 3, -3]


def test_rounding_at_random_has_the_right_mean() -> None:
    values = laplacian(50)
    rng = np.random.default_rng(1)
    runs = [uniform.dequantise(*uniform.quantise(values, [50], 1.0, rng), [50]) for _ in range(2000)]
    step = float(uniform.quantise(values, [50], 1.0)[0][0])
    # an error has a standard deviation of at most step / 2; 5 of those of the mean of 2000
    assert np.abs(np.mean(runs, axis=0) - values).max() < 5 * step / 2 / np.sqrt(2000)
    assert np.std(runs, axis=0).max() > step / 4  # so that it is random at all


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_at_random_have_the_right_mean(bits: int) -> None:
    values = laplacian(50)
    rng = np.random.default_rng(1)
    runs = [uniform.dequantise(*uniform.quantise_bits(values, [50], bits, rng), [50]) for _ in range(2000)]
    step = float(np.abs(values).max()) / (1 if bits == 1 else 2 ** (bits - 1) - 1)
    deviation = step if bits == 1 else step / 2  # of -step and step, and of neighbours
    assert np.abs(np.mean(runs, axis=0) - values).max() < 5.1 * deviation / np.sqrt(2000)


@pytest.mark.parametrize(("bits", "most"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_bits_have_no_more_levels_than_they_can_tell(bits: int, most: int) -> None:
    values = laplacian(10_000)
    for rng in (None, np.random.default_rng(0)):
        codes = uniform.quantise_bits(values, [9000, 1000], bits, rng)[1]
        assert -most <= codes.min() < codes.max() <= most


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    values = np.array([1, -2, 0, 5, 0, 0], np.float32)
    steps, codes = uniform.quantise_bits(values, [4, 2], 1)
    assert steps.tolist() == [2.0, 0.0]
    assert codes.tolist() == [1, -1, 1, 1, 0, 0]


# The least mean squared error of 3 and of 15 even steps for a Laplacian of unit variance, by integrals on a fine grid,
# is .264 and .0274; a candidate is 13 % from the next, and a sample is not the distribution.
@pytest.mark.parametrize(("bits", "least"), [(2, 0.264), (4, 0.0274)])
def test_the_step_of_few_bits_is_near_the_best(bits: int, least: float) -> None:
    values = laplacian(200_000) / np.float32(np.sqrt(2))
    back = uniform.dequantise(*uniform.quantise_bits(values, [len(values)], bits), [len(values)])
    assert float(np.mean((values - back) ** 2)) == pytest.approx(least, rel=0.05)


def test_zeros_and_nothing_have_a_step_of_zero() -> None:
    values = np.zeros(5, np.float32)
    for steps, codes in (
        uniform.quantise(values, [0, 5], 0.25),
        uniform.quantise(values, [0, 5], 0.25, np.random.default_rng(0)),
        uniform.quantise_bits(values, [0, 5], 1),
        uniform.quantise_bits(values, [0, 5], 4, np.random.default_rng(0)),
    ):
        assert not steps.any()
        assert not codes.any()


@pytest.mark.parametrize("value", [2.0**-149, -(2.0**-130), 2.0**-126, 1.0, -3e38])
def test_a_single_value_is_kept_to_half_a_step(value: float) -> None:
    values = np.array([value], np.float32)
    steps, codes = uniform.quantise(values, [1], 0.25)
    assert steps[0] >= 2.0**-126
    assert within(values, uniform.dequantise(steps, codes, [1]), steps.astype(np.float64) / 2)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.array([1, bad], np.float32)
    with pytest.raises(ValueError, match="finite"):
        uniform.quantise(values, [2], 0.25)
    with pytest.raises(ValueError, match="finite"):
        uniform.quantise_bits(values, [2], 4)


def test_a_code_beyond_24_bits_and_a_value_beyond_float32_are_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        uniform.quantise(np.ones(2, np.float32), [2], 2.0**-25)
    with pytest.raises(ValueError, match="too large"):
        uniform.quantise(np.array([3.4e38, 2e38], np.float32), [2], 0.8)


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan])
def test_a_step_that_is_none_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        uniform.quantise(np.ones(2, np.float32), [2], step)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        uniform.quantise_bits(np.ones(2, np.float32), [2], bits)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((1, 3), np.float32), np.zeros(2, np.float32)])
def test_what_is_not_the_vector_of_these_sizes_is_refused(values: Any) -> None:
    with pytest.raises(TypeError):
        uniform.quantise(values, [3], 0.25)


def test_a_tensor_of_many_tiles_is_quantised_as_one() -> None:
    values = laplacian(150_000)
    steps, codes = uniform.quantise(values, [150_000], 0.25)
    assert (codes == np.rint(values / np.float64(steps[0]))).all()


@given(vectors(), STEPS)
def test_steps_come_back_from_two_bytes_each(vector: tuple[np.ndarray, list[int]], step: float) -> None:
    steps, _ = uniform.quantise(*vector, step)
    data = uniform.pack_steps(steps)
    assert len(data) == 2 * len(steps)
    assert uniform.unpack_steps(data, len(steps)).tobytes() == steps.tobytes()


def test_the_bytes_of_steps_are_those_of_the_specification() -> None:
    assert uniform.pack_steps(np.array([1.5, 0, 2.0**-126], np.float32)).hex() == "c03f00008000"


@pytest.mark.parametrize("data", [b"", b"\x00" * 3, b"\x80\x7f", b"\xc0\x7f", b"\x80\xbf", b"\x00\x80", b"\x7f\x00"])
def test_bytes_that_are_no_step_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        uniform.unpack_steps(data, 1)


@given(st.binary(min_size=6, max_size=6), hnp.arrays(np.int32, 9))
def test_hostile_steps_and_codes_give_finite_values_or_a_decode_error(data: bytes, codes: np.ndarray) -> None:
    try:
        values = uniform.dequantise(uniform.unpack_steps(data, 3), codes, [2, 3, 4])
    except DecodeError:
        return
    assert np.isfinite(values).all()


def test_codes_beyond_24_bits_are_refused_from_the_wire() -> None:
    steps = np.ones(1, np.float32)
    assert uniform.dequantise(steps, np.array([-(1 << 24)], np.int32), [1]).tolist() == [-(2.0**24)]
    for code in ((1 << 24) + 1, -(1 << 24) - 1, -(2**31)):
        with pytest.raises(DecodeError):
            uniform.dequantise(steps, np.array([code], np.int32), [1])
