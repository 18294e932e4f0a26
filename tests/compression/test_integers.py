import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import bitfield, frames, integers
from edge_runtime.compression.errors import DecodeError

BOUNDS = st.sampled_from([0, 1, 7, 40, 1000, 2**30, 2**31 - 1])
SIZES = st.lists(st.integers(0, 80), max_size=6)


@st.composite
def vectors(draw: Any) -> tuple[np.ndarray, list[int]]:
    sizes = draw(SIZES)
    parts = [
        draw(hnp.arrays(np.int32, size, elements=st.integers(-bound - 1, bound)))
        for size, bound in ((size, draw(BOUNDS)) for size in sizes)
    ]
    return np.concatenate([np.zeros(0, np.int32), *parts]), sizes


def laplacian(count: int, scale: float, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).laplace(0, scale, count)).astype(np.int32)


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(values))).sum() / 8)


@given(vectors())
def test_values_come_back(vector: tuple[np.ndarray, list[int]]) -> None:
    values, sizes = vector
    assert (integers.decode(integers.encode(values, sizes), sizes) == values).all()


LONG = [
    np.concatenate([laplacian(40_000, 0.3), laplacian(40_000, 5)]),
    laplacian(70_000, 2.0**24),
    np.tile(laplacian(500, 1000), 20),
    np.random.default_rng(0).integers(-(2**31), 2**31, 5000).astype(np.int32),
    np.full(5000, -(2**31), np.int32),
]


@pytest.mark.parametrize("values", LONG, ids=["small", "wide", "repeated", "noise", "constant"])
def test_long_vectors_come_back_and_are_never_larger_than_raw(values: np.ndarray) -> None:
    sizes = [1, 0, len(values) - 11, 10]
    data = integers.encode(values, sizes)
    back = integers.decode(data, sizes)
    assert back.dtype == np.int32
    assert (back == values).all()
    assert len(data) <= 6 + 4 * len(values)


def test_every_coding_is_taken_where_it_is_the_smallest() -> None:
    kinds = [integers.encode(values, [len(values)])[0] for values in (np.zeros(9, np.int32), LONG[3], LONG[2], LONG[0])]
    assert kinds == [0, 1, 2, 3]


def test_small_values_cost_their_entropy_and_one_in_a_hundred_more() -> None:
    values = laplacian(100_000, 3)
    assert len(integers.encode(values, [len(values)])) < 1.01 * entropy_bytes(values) + 100


def test_what_changes_along_a_tensor_costs_less_than_the_entropy_of_all_values() -> None:
    rng = np.random.default_rng(0)
    scales = np.repeat(rng.lognormal(0.5, 1, 400), 300)
    values = np.rint(rng.laplace(0, scales)).astype(np.int32)
    assert len(integers.encode(values, [len(values)])) < 0.93 * entropy_bytes(values)


def test_a_sign_that_stays_for_a_while_costs_less_than_a_bit() -> None:
    rng = np.random.default_rng(0)
    signs = np.repeat(rng.choice([-1, 1], 500), 200)
    values = (signs * (1 + rng.geometric(0.3, 100_000))).astype(np.int32)
    assert len(integers.encode(values, [len(values)])) < 0.8 * entropy_bytes(values)


def test_tensors_of_ten_values_share_their_tables() -> None:
    values = laplacian(1000, 3)
    assert len(integers.encode(values, [10] * 100)) < len(integers.encode(values, [1000])) + 10


def test_no_values_and_zeros_take_one_byte() -> None:
    assert integers.encode(np.zeros(0, np.int32), []) == b"\x00"
    assert integers.encode(np.zeros(10**6, np.int32), [10**6]) == b"\x00"


def test_the_bytes_are_those_of_the_specification() -> None:
    values = np.array([3, -2, 5], np.int32)
    assert integers.encode(values, [2, 1]).hex() == "01 feffffff 03 a0 20 a0".replace(" ", "")  # above -2: 5, 0, 7
    by_bytes = b"\x02" + struct.pack("<iB", -2, 1) + frames.pack(bytes([5, 0, 7]))
    assert (integers.decode(by_bytes, [3]) == values).all()
    same = b"\x03" + bytes([4, 1, 63, 0, 3]) + b"\x00\x04\x00"  # of one class there is nothing to say; all are 4
    assert integers.decode(same, [2, 1]).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros(3, np.int64), np.zeros((1, 3), np.int32), np.zeros(2, np.int32)]
)
def test_what_is_not_the_vector_of_these_sizes_is_not_encoded(values: Any) -> None:
    with pytest.raises(TypeError):
        integers.encode(values, [3])


def whole(kind: int) -> tuple[bytes, list[int]]:
    """Give short bytes of a coding, and the sizes."""
    values = {0: np.zeros(9, np.int32), 1: LONG[3][:56] >> 22, 2: LONG[2][:2000], 3: LONG[0][39_000:41_000]}[kind]
    data = integers.encode(values, [10, len(values) - 10] if len(values) > 10 else [9])
    assert data[0] == kind
    return data, [10, len(values) - 10] if len(values) > 10 else [9]


@pytest.mark.parametrize("kind", range(4))
def test_every_truncation_and_every_extension_is_refused(kind: int) -> None:
    data, sizes = whole(kind)
    for bad in [data[:end] for end in range(len(data))] + [data + b"\x00"]:
        with pytest.raises(DecodeError):
            integers.decode(bad, sizes)


@given(st.integers(0, 3), st.data())
def test_changed_bytes_raise_nothing_but_a_decode_error(kind: int, draw: Any) -> None:
    data, sizes = whole(kind)
    bad = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        bad[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        values = integers.decode(bytes(bad), sizes)
    except DecodeError:
        return
    assert values.shape == (sum(sizes),)


@given(st.integers(0, 4), st.binary(max_size=200), SIZES)
def test_random_bytes_raise_nothing_but_a_decode_error(kind: int, data: bytes, sizes: list[int]) -> None:
    try:
        integers.decode(bytes([kind]) + data, sizes)
    except DecodeError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"\x01" + struct.pack("<iB", 0, 33),
        b"\x01" + struct.pack("<iB", 2**31 - 1, 1) + b"\x80",
        b"\x02" + struct.pack("<iB", 0, 5) + frames.pack(bytes(5)),
        b"\x03" + bytes([3, 1, 1]),
        b"\x03" + bytes([32, 1, 1]),
        b"\x03" + bytes([5, 0, 1]),
        b"\x03" + bytes([5, 1, 169]),
        b"\x03" + bytes([5, 1, 1]) + bitfield.pack_number(2**34) + bitfield.pack_number(0),
    ],
)
def test_a_head_that_claims_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        integers.decode(data, [1])


@pytest.mark.parametrize("values", [LONG[0], LONG[1], LONG[3]], ids=["small", "wide", "noise"])
def test_decoding_holds_little_more_than_twice_what_it_gives(values: np.ndarray) -> None:
    values = np.tile(values, 600_000 // len(values) + 1)[:600_000]
    values = np.random.default_rng(0).permutation(values)
    data = integers.encode(values, [len(values)])
    tracemalloc.start()
    try:
        integers.decode(data, [len(values)])
        assert tracemalloc.get_traced_memory()[1] < 2.5 * values.nbytes + 10_000_000
    finally:
        tracemalloc.stop()
