import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import quantize
from edge_runtime.compression.errors import DecodeError
from edge_runtime.compression.quantize import Form

THREE = np.array([-1.0, 0.0, 1.0])
X = np.array([-2.0, -0.5, 0.2, 0.5, 0.9])
NUMBERS = st.floats(-5, 5, width=32)
WEIGHTS = hnp.arrays(np.float32, st.integers(1, 60), elements=NUMBERS)
CENTRES = hnp.arrays(np.float32, st.integers(2, 16), elements=NUMBERS).map(np.sort)


def numeric(function: Any, at: Any, step: float = 1e-6) -> Any:
    """Differentiate function(at) [n], summed, by every entry of `at`."""
    moves = np.eye(len(at)) * step
    return np.array([(function(at + move) - function(at - move)).sum() / (2 * step) for move in moves])


def test_the_soft_quantiser_has_the_golden_values() -> None:
    golden = [-0.99999969, -0.49995460, 0.04651482, 0.49995460, 0.98201296]
    assert quantize.soften(X, THREE, 10.0) == pytest.approx(golden, abs=1e-8)
    assert quantize.soften(X, THREE, 1000.0) == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=1e-12)


def test_its_derivative_by_the_values_is_the_golden_one() -> None:
    to_values, _ = quantize.pull_back(X, THREE, 10.0, np.ones(5))
    assert to_values == pytest.approx([3.06e-6, 2.50045396, 0.46086881, 2.50045396, 0.17663538], abs=5e-9)


def test_its_derivative_by_the_centres_is_the_golden_one() -> None:
    _, to_centres = quantize.pull_back(X[2:3], THREE, 10.0, np.ones(1))
    assert to_centres == pytest.approx([-0.00364005, 0.72122867, -0.17845743], abs=1e-8)


def test_near_the_middle_of_two_centres_a_centres_derivative_has_a_spike() -> None:
    _, to_centres = quantize.pull_back(X[3:4], THREE, 10.0, np.ones(1))
    assert to_centres[2] == pytest.approx(0.5 - 10 / 2 / 4)  # -0.75
    assert to_centres[1] == pytest.approx(1 - 0.5 - 10 / 2 / 4, abs=2e-3)  # and a little of the next middle's


@pytest.mark.parametrize("steepness", [0.5, 7.0, 40.0])
def test_the_derivatives_are_those_of_finite_differences(steepness: float) -> None:
    rng = np.random.default_rng(0)
    x, centres, slope = rng.normal(0, 1, 9), np.sort(rng.normal(0, 1, 5)), rng.normal(0, 1, 9)
    to_values, to_centres = quantize.pull_back(x, centres, steepness, slope)
    by_x = numeric(lambda at: slope * quantize.soften(at, centres, steepness), x)
    by_c = numeric(lambda at: slope * quantize.soften(x, at, steepness), centres)
    assert to_values == pytest.approx(by_x, abs=1e-7)
    assert to_centres == pytest.approx(by_c, abs=1e-7)


@given(st.floats(0.01, 1e4), st.integers(0, 2**32), st.sampled_from([2, 4, 8]))
def test_shifting_values_and_centres_shifts_the_soft_values(steepness: float, seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    x, centres = rng.normal(0, 1, 7), np.sort(rng.normal(0, 1, size))
    for j in range(7):
        to_values, to_centres = quantize.pull_back(x[j : j + 1], centres, steepness, np.ones(1))
        spike = steepness * (centres[-1] - centres[0])  # its terms cancel to 1, but for their rounding
        assert to_values.sum() + to_centres.sum() == pytest.approx(1, abs=1e-12 * (1 + spike))


@given(st.floats(0.01, 1e3), st.floats(0.1, 10), st.integers(0, 2**32))
def test_the_soft_quantiser_is_bounded_monotone_and_knows_no_scale(steepness: float, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, centres = np.sort(rng.normal(0, 2, 40)), np.sort(rng.normal(0, 1, 4))
    soft = quantize.soften(x, centres, steepness)
    assert (soft >= centres[0] - 1e-12).all()
    assert (soft <= centres[-1] + 1e-12).all()
    assert (np.diff(soft) >= -1e-12).all()
    assert quantize.soften(scale * x, scale * centres, steepness / scale) == pytest.approx(scale * soft, abs=1e-9)


@given(WEIGHTS, CENTRES)
def test_a_code_is_that_of_a_nearest_centre_by_brute_force(x: Any, centres: Any) -> None:
    distances = np.abs(x.astype(np.float64)[:, None] - centres.astype(np.float64))
    codes = quantize.assign(x, centres)
    assert (distances[np.arange(len(x)), codes] == distances.min(axis=1)).all()


@given(WEIGHTS, CENTRES)
def test_quantising_again_changes_nothing(x: Any, centres: Any) -> None:
    once = centres[quantize.assign(x, centres)]
    assert (centres[quantize.assign(once, centres)] == once).all()


def test_neighbouring_floats_as_centres_keep_their_own_values() -> None:
    low = np.float32(1)
    for _ in range(64):
        high = np.nextafter(low, np.float32(2))
        centres = np.array([low, high], np.float32)
        assert quantize.assign(centres, centres).tolist() == [0, 1]
        low = high


def test_half_way_between_two_centres_the_lower_one_is_taken() -> None:
    assert quantize.assign(np.array([-0.5, 0.5, 0.0]), THREE).tolist() == [0, 1, 1]


def test_an_infinite_steepness_is_the_hard_quantiser_and_a_large_one_tends_to_it() -> None:
    x, centres = np.random.default_rng(0).normal(0, 1, 500).astype(np.float32), np.array([-1, 0, 0.5, 2], np.float32)
    hard = quantize.soften(x, centres, math.inf)
    assert (hard == centres[quantize.assign(x, centres)]).all()
    away = np.abs(x[:, None] - (centres[1:] + centres[:-1]) / 2).min(axis=1) > 1e-3
    with np.errstate(all="raise", under="ignore"):
        assert quantize.soften(x, centres, 1e5)[away] == pytest.approx(hard[away], abs=1e-6)
        to_values, _ = quantize.pull_back(x[away], centres, 1e5, np.ones(int(away.sum()), np.float32))
    assert to_values == pytest.approx(0, abs=1e-6)


def test_trap_14_no_steepness_overflows_anything() -> None:
    x = np.array([-1e30, -1, 0, 1e-30, 1, 1e30], np.float32)
    for steepness in (1e3, 1e20, 1e30):
        soft = quantize.soften(x, np.array([-1, 1], np.float32), steepness)
        slopes = quantize.pull_back(x, np.array([-1, 1], np.float32), steepness, np.ones(6, np.float32))
        assert np.isfinite(soft).all()
        assert all(np.isfinite(slope).all() for slope in slopes)
        assert soft[[0, 1, 2, 4, 5]].tolist() == [-1, -1, 0, 1, 1]


def test_centres_have_the_golden_gradient() -> None:
    x, goal = np.array([-0.9, -0.2, 0.3, 0.8]), np.array([-1, -0.4, 0.1, 1.2])
    centres = np.array([-0.5, 0.5])
    for steepness, error in ((math.inf, 1e-15), (100.0, 1e-6)):
        slope = quantize.soften(x, centres, steepness) - goal
        assert quantize.pull_back(x, centres, steepness, slope)[1] == pytest.approx([0.4, -0.3], abs=error)


def test_trap_7_equal_centres_share_no_member_and_an_empty_one_has_none() -> None:
    centres, slope = np.array([-1.0, 0.5, 0.5, 9.0]), np.ones(4)
    x = np.array([-1.0, 0.2, 0.5, 0.9])
    sums = quantize.pull_back(x, centres, math.inf, slope)[1]
    assert sums.tolist() == [1, 2, 1, 0]
    assert sums.sum() == len(x)


def test_trap_8_the_sign_rule_is_not_the_nearest_centre() -> None:
    x, centres = np.array([0.2]), np.array([-0.1, 0.9])
    assert quantize.soften(x, centres, math.inf) == [-0.1]
    assert quantize.soften(x, centres, math.inf, by_sign=True) == [0.9]


def test_first_centres_lie_evenly_or_at_the_means_of_either_sign() -> None:
    x = np.array([-3, -1, 0, 2, 4], np.float32)
    assert quantize.initial(x, 2) == pytest.approx([-3, -2 / 3, 5 / 3, 4])
    assert quantize.initial(x, 1).tolist() == [-2, 2]
    assert quantize.initial(np.array([1, 3], np.float32), 1).tolist() == [1, 2]
    assert quantize.initial(np.array([-1, -3], np.float32), 1).tolist() == [-2, -1]
    assert quantize.initial(x, 3).dtype == np.float32


@given(st.integers(1, 8), st.integers(0, 100), st.integers(0, 2**32))
def test_codes_come_back_from_b_bits_each(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    data = quantize.pack(codes, bits)
    assert len(data) == math.ceil(bits * count / 8)
    assert (quantize.unpack(data, count, bits) == codes).all()


def test_the_bytes_are_those_of_the_specification() -> None:
    assert quantize.pack(np.array([1, 2, 3, 0, 3], np.uint8), 2) == bytes([0b00111001, 0b11])
    form = Form(1, (2, 1), 1)
    data = quantize.encode(
        form,
        np.array([1, 0, 1], np.uint8),
        np.array([[-1, 1], [0, 2]], np.float32),
        np.array([0.5], np.float32),
    )
    assert data == b"\x05" + np.array([-1, 1, 0, 2, 0.5], "<f4").tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_quantised_model_comes_back_bit_for_bit_from_the_bytes_of_the_formula(bits: int) -> None:
    rng = np.random.default_rng(bits)
    form = Form(bits, (333, 1000), 17)
    codes = rng.integers(0, 1 << bits, 1333).astype(np.uint8)
    centres = np.sort(rng.normal(0, 1, (2, 1 << bits)), axis=1).astype(np.float32)
    full = rng.normal(0, 1, 17).astype(np.float32)
    data = quantize.encode(form, codes, centres, full)
    assert len(data) == form.size_bytes == math.ceil(bits * 1333 / 8) + 4 * (2 * 2**bits + 17)
    got = quantize.decode(data, form)
    assert all((one == other).all() for one, other in zip(got, (codes, centres, full), strict=True))


def test_without_bits_a_model_is_its_floats() -> None:
    form, x = Form(0, (), 3), np.array([1, -2, 3], np.float32)
    data = quantize.encode(form, np.empty(0, np.uint8), np.empty((0, 0), np.float32), x)
    assert len(data) == form.size_bytes == 12
    assert (quantize.decode(data, form)[2] == x).all()
    assert quantize.size_bytes(0, (5, 6), 7) == 4 * 18


def spoiled() -> list[bytes]:
    centres = np.array([[-1, 0, 1, 2]], np.float32)
    good = quantize.encode(Form(2, (3,), 1), np.array([0, 1, 2], np.uint8), centres, np.array([7], np.float32))
    padded = bytes([good[0] | 0xC0]) + good[1:]
    swapped = good[:1] + good[5:9] + good[1:5] + good[9:]
    endless = good[:-4] + np.array([np.nan], "<f4").tobytes()
    vast = good[:13] + np.array([np.inf], "<f4").tobytes() + good[17:]
    return [b"", good[:-1], good + b"\0", padded, swapped, endless, vast]


@pytest.mark.parametrize("data", spoiled())
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        quantize.decode(data, Form(2, (3,), 1))


@given(st.binary(max_size=40))
def test_whatever_bytes_come_they_are_refused_or_encode_to_themselves(data: bytes) -> None:
    form = Form(2, (3, 2), 1)
    try:
        codes, centres, full = quantize.decode(data.ljust(form.size_bytes, b"\0"), form)
    except DecodeError:
        return
    assert quantize.encode(form, codes, centres, full)[: len(data)] == data[: form.size_bytes]


@pytest.mark.parametrize(("bits", "kib", "times"), [(1, 42.4, 24.87), (2, 75.1, 14.02), (4, 141.2, 7.46)])
def test_trap_11_a_resnet20_is_as_large_as_codes_codebooks_and_what_is_not_quantised(
    bits: int, kib: float, times: float
) -> None:
    stages = [(16, 16)] * 6 + [(16, 32)] + [(32, 32)] * 5 + [(32, 64)] + [(64, 64)] * 5
    layers = [9 * inputs * outputs for inputs, outputs in stages]
    assert (len(layers), sum(layers)) == (18, 267_264)
    size = quantize.size_bytes(bits, layers, 269_722 - 267_264)
    assert size / 1024 == pytest.approx(kib, abs=0.05)
    assert 4 * 269_722 / size == pytest.approx(times, abs=0.005)


@given(st.integers(1, 8), st.sampled_from([(), (5,), (0, 4), (6, 20), (4, 3, 3, 3)]), st.data())
def test_the_codes_of_a_layer_come_back(bits: int, shape: tuple[int, ...], choose: st.DataObject) -> None:
    codes = choose.draw(hnp.arrays(np.uint8, math.prod(shape), elements=st.integers(0, (1 << bits) - 1)))
    assert (quantize.decode_codes(quantize.encode_codes(codes, bits, shape), bits, shape) == codes).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_cost_a_byte_more_than_they_are_packed_at_most_and_less_where_units_differ(bits: int) -> None:
    rng = np.random.default_rng(0)
    shape, top = (60, 500), (1 << bits) - 1
    even = rng.integers(0, top + 1, 30_000).astype(np.uint8)
    assert len(quantize.encode_codes(even, bits, shape)) == 1 + len(quantize.pack(even, bits))
    spread = rng.exponential(1, (60, 1)) * rng.laplace(0, top / 6, shape) + top * rng.random((60, 1))
    codes = np.clip(np.rint(spread), 0, top).astype(np.uint8).ravel()
    data = quantize.encode_codes(codes, bits, shape)
    assert (quantize.decode_codes(data, bits, shape) == codes).all()
    assert len(data) < 0.95 * order_0_bytes(codes)


def order_0_bytes(codes: Any) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * -np.log2(counts / counts.sum())).sum() / 8)


@given(st.integers(0, 3), st.binary(max_size=60), st.integers(1, 8))
def test_random_bytes_as_codes_raise_nothing_but_a_decode_error(kind: int, data: bytes, bits: int) -> None:
    try:
        assert len(quantize.decode_codes(bytes([kind]) + data, bits, (6, 20))) == 120
    except DecodeError:
        return
