import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import bitfield, bitplanes, frames, gaps
from edge_runtime.compression.errors import DecodeError

SHAPES = st.sampled_from([(0,), (1,), (300,), (4, 9), (3, 2, 3, 3), (9, 0)])


@given(SHAPES, st.data())
def test_bits_come_back(shape: tuple[int, ...], choose: st.DataObject) -> None:
    bits = choose.draw(hnp.arrays(np.bool_, math.prod(shape)))
    assert (bitplanes.decode(bitplanes.encode(bits, shape), shape) == bits).all()


@pytest.mark.parametrize("density", [0.001, 0.03, 0.3, 0.5, 0.9, 0.999])
def test_random_bits_cost_their_entropy(density: float) -> None:
    bits = np.random.default_rng(0).random(200_000) < density
    data = bitplanes.encode(bits, (400, 500))
    assert (bitplanes.decode(data, (400, 500)) == bits).all()
    entropy = 200_000 / 8 * -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
    assert len(data) <= 1.03 * entropy + 60


def test_a_tensor_of_one_value_costs_a_byte() -> None:
    assert bitplanes.encode(np.zeros(10**6, np.bool_), (1000, 1000)) == b"\x04"
    assert bitplanes.encode(np.ones(10**6, np.bool_), (1000, 1000)) == b"\x05"


def test_each_coding_is_taken_where_it_is_the_smallest() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[int, Any, tuple[int, ...]]] = [
        (0, rng.random(3000) < 0.5, (3000,)),
        (1, np.tile(rng.random(500) < 0.5, 6), (3000,)),
        (2, rng.random(30_000) < 0.02, (30_000,)),
        (3, (rng.random((100, 300)) < np.linspace(0, 1, 100)[:, None]).ravel(), (100, 300)),
    ]
    for coding, bits, shape in cases:
        data = bitplanes.encode(bits, shape)
        assert data[0] == coding
        assert (bitplanes.decode(data, shape) == bits).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x06",
        b"\x04\x00",
        b"\x00\xff\xff",
        b"\x00\xff",
        b"\x01" + frames.pack(bytes(10_000_000)),
        b"\x02\x02\x01" + gaps.encode([np.array([1])]),
        b"\x02\x01\x03" + gaps.encode([np.array([1, 2, 3])]),
        b"\x02\x01\x02" + gaps.encode([np.array([1, 9])]),
        b"\x02\x01" + bitfield.pack_number(2**34) + bytes(9),
        b"\x02\x01\x01" + gaps.encode([np.array([1])]) + b"\x00",
        b"\x03\x00\x00",
    ],
    ids=range(12),
)
def test_what_is_no_tensor_of_nine_bits_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        bitplanes.decode(data, (9,))
