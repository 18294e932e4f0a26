import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import floats
from edge_runtime.compression.errors import DecodeError

CODINGS = [
    (floats.encode_lossless, floats.decode_lossless),
    (floats.encode_bf16, floats.decode_bf16),
]


@st.composite
def vectors(draw: Any) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(0, 60), max_size=5))
    count = sum(sizes)
    of_any_bits = hnp.arrays(np.uint32, count).map(lambda bits: bits.view(np.float32))
    usual = hnp.arrays(np.float32, count, elements=st.floats(-4, 4, width=32))
    return draw(st.one_of(of_any_bits, usual)), sizes


def weights(count: int) -> np.ndarray:
    return np.random.default_rng(0).laplace(0, 0.01, count).astype(np.float32)


@given(vectors())
def test_without_loss_every_bit_comes_back(vector: tuple[np.ndarray, list[int]]) -> None:
    values, sizes = vector
    back = floats.decode_lossless(floats.encode_lossless(values, sizes), sizes)
    assert back.dtype == np.float32
    assert back.tobytes() == values.tobytes()


@given(vectors())
def test_bfloat16_comes_back_as_it_was_rounded(vector: tuple[np.ndarray, list[int]]) -> None:
    values, sizes = vector
    back = floats.decode_bf16(floats.encode_bf16(values, sizes), sizes)
    assert back.tobytes() == floats.round_to_bf16(values).tobytes()


@given(vectors())
def test_rounding_gives_the_nearest_of_the_two_neighbours_and_half_way_the_even_one(
    vector: tuple[np.ndarray, list[int]],
) -> None:
    values = vector[0][np.isfinite(vector[0])]
    rounded = floats.round_to_bf16(values)
    assert not (rounded.view(np.uint32) & 0xFFFF).any()
    below = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)  # the neighbour towards zero
    above = (below.view(np.uint32) + np.uint32(0x10000)).view(np.float32)  # infinity, above the largest
    finite = np.isfinite(above)
    wide = [part[finite].astype(np.float64) for part in (values, rounded, below, above)]
    off, to_below, to_above = (np.abs(wide[0] - other) for other in wide[1:])
    assert (off == np.minimum(to_below, to_above)).all()
    half_way = to_below == to_above
    assert not (rounded[finite][half_way].view(np.uint32) & 0x10000).any()


def test_special_values_keep_what_they_are_in_bfloat16() -> None:
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38], np.float32)
    signalling = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    rounded = floats.round_to_bf16(np.concatenate([values, signalling]))
    assert rounded[:2].tobytes() == values[:2].tobytes()
    assert rounded[2:4].tolist() == [np.inf, -np.inf]
    assert np.isnan(rounded[[4, 7, 8]]).all()
    assert rounded[5:7].tolist() == [np.inf, -np.inf]


def test_the_exponents_cost_their_entropy_and_the_rest_a_byte_each() -> None:
    values = weights(50_000)
    counts = np.unique(values.view(np.uint32) >> 23 & 255, return_counts=True)[1]
    entropy = float(-(counts * np.log2(counts / 50_000)).sum() / 8)
    assert len(floats.encode_bf16(values, [50_000])) < 50_000 + 1.01 * entropy + 60
    assert len(floats.encode_lossless(values, [50_000])) < 150_000 + 1.01 * entropy + 70


def test_zeros_among_the_values_cost_less_than_their_mantissas() -> None:
    values = weights(50_000)
    values[np.random.default_rng(1).random(50_000) < 0.5] = 0
    assert len(floats.encode_lossless(values, [50_000])) < 25_500 * 3 + 25_000


@pytest.mark.parametrize("number", [0.0, 1.5, 2.0**-140, np.nan])
def test_values_that_are_all_equal_cost_next_to_nothing(number: float) -> None:
    values = np.full(100_000, number, np.float32)
    data = floats.encode_lossless(values, [100_000])
    assert floats.decode_lossless(data, [100_000]).tobytes() == values.tobytes()
    assert len(data) < 60


def test_values_that_repeat_cost_less_than_a_byte_each() -> None:
    values = np.tile(weights(200), 500)
    assert len(floats.encode_lossless(values, [100_000])) < 100_000


def test_noise_grows_by_a_few_bytes_only() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32).view(np.float32)
    assert len(floats.encode_lossless(noise, [10_000])) < 40_100


def test_the_bytes_are_those_of_the_specification() -> None:
    values = np.array([1.0, -3.0, 0.0], np.float32)  # 3f800000, c0400000, 0
    exponents = "01 ffffffff 02 80 40"  # integers.py: 0, 1 and -1 as 1, 2 and 0 in two planes
    planes = "00 02 00c0" + "00 01 00" + "00 02 0000 00 01 00" * 2
    expected = "7f 7f 08" + exponents + planes
    assert floats.encode_lossless(values, [3]).hex() == expected.replace(" ", "")


def test_no_values_come_back() -> None:
    for encode, decode in CODINGS:
        assert decode(encode(np.zeros(0, np.float32), [0, 0]), [0, 0]).shape == (0,)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((1, 3), np.float32), np.zeros(2, np.float32)])
def test_what_is_not_the_vector_of_these_sizes_is_not_encoded(values: Any) -> None:
    with pytest.raises(TypeError):
        floats.encode_lossless(values, [3])


def sparse(count: int) -> np.ndarray:
    values = weights(count)
    values[::3] = 0
    return values


WHOLE = [encode(sparse(300), [250, 50]) for encode, _ in CODINGS]


@pytest.mark.parametrize("coding", [0, 1])
def test_every_truncation_and_every_extension_is_refused(coding: int) -> None:
    data, decode = WHOLE[coding], CODINGS[coding][1]
    for bad in [data[:end] for end in range(len(data))] + [data + b"\x00"]:
        with pytest.raises(DecodeError):
            decode(bad, [250, 50])


@given(st.integers(0, 1), st.data())
def test_changed_bytes_raise_nothing_but_a_decode_error(coding: int, draw: Any) -> None:
    bad = bytearray(WHOLE[coding])
    for _ in range(draw.draw(st.integers(1, 3))):
        bad[draw.draw(st.integers(0, len(bad) - 1))] = draw.draw(st.integers(0, 255))
    try:
        values = CODINGS[coding][1](bytes(bad), [250, 50])
    except DecodeError:
        return
    assert values.shape == (300,)


@given(st.integers(0, 1), st.binary(max_size=100), st.lists(st.integers(0, 20), max_size=3))
def test_random_bytes_raise_nothing_but_a_decode_error(coding: int, data: bytes, sizes: list[int]) -> None:
    try:
        CODINGS[coding][1](data, sizes)
    except DecodeError:
        return


def of_exponent(smallest: int, middle: int, exponent: int) -> bytes:
    """Give two equal values as bfloat16; the exponent as `integers.py` codes a vector of equal ones."""
    return bytes([smallest, middle, 6, 1]) + struct.pack("<iB", exponent, 0) + b"\x00\x02\x00\x00" + b"\x00\x00"


def test_an_exponent_that_is_none_is_refused() -> None:
    assert floats.decode_bf16(of_exponent(2, 2, 0), [2]).tolist() == [2.0**-125] * 2
    assert floats.decode_bf16(of_exponent(2, 2, 252), [2]).tolist() == [2.0**127] * 2
    for bad in (of_exponent(2, 2, -2), of_exponent(2, 2, 254), of_exponent(2, 2, 2**31 - 1), of_exponent(0, 2, 0)):
        with pytest.raises(DecodeError, match="an exponent is"):
            floats.decode_bf16(bad, [2])


def test_decoding_holds_little_more_than_twice_what_it_gives() -> None:
    values = sparse(600_000)
    data = floats.encode_lossless(values, [600_000])
    tracemalloc.start()
    try:
        floats.decode_lossless(data, [600_000])
        assert tracemalloc.get_traced_memory()[1] < 3.5 * values.nbytes + 2_000_000
    finally:
        tracemalloc.stop()
