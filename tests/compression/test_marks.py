import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import marks
from edge_runtime.compression.errors import DecodeError

SHAPES = ((20, 30), (40,), (6, 5, 3, 3))
SIZE = 600 + 40 + 270


def drawn(seed: int, density: float) -> Any:
    return np.random.default_rng(seed).random(SIZE) < density


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 0.05, 0.15]), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_marks_come_back(seed: int, density: float, of_mask: float) -> None:
    mask, marked = drawn(seed, of_mask), drawn(seed + 1, density)
    assert (marks.decode(marks.encode(marked, mask, SHAPES), mask, SHAPES) == marked).all()


def test_marks_where_the_mask_is_dense_cost_less_than_as_many_anywhere() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat([0.6, 0.01], 200)[:, None]
    mask = (rng.random((400, 800)) < rows).ravel()
    there = (rng.random((400, 800)) < rows / 20).ravel()
    anywhere = rng.permutation(there)
    shapes = ((400, 800),)
    assert len(marks.encode(there, mask, shapes)) < 0.9 * len(marks.encode(anywhere, mask, shapes))


def test_no_marks_cost_a_few_bytes() -> None:
    assert len(marks.encode(drawn(0, 0.0), drawn(1, 0.5), SHAPES)) < 10


def test_the_bytes_stay_as_they_are() -> None:
    places = np.arange(SIZE)
    data = marks.encode(places % 17 == 3, places % 5 < 2, SHAPES)
    assert hashlib.sha256(data).hexdigest()[:12] == "9cf74902e264"


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_gives_a_decode_error_or_other_marks(place: int, change: int) -> None:
    mask = drawn(0, 0.2)
    data = bytearray(marks.encode(drawn(1, 0.1), mask, SHAPES))
    data[place % len(data)] ^= change
    try:
        assert len(marks.decode(bytes(data), mask, SHAPES)) == SIZE
    except DecodeError:
        return


@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_but_a_decode_error(data: bytes) -> None:
    try:
        assert len(marks.decode(data, drawn(0, 0.2), SHAPES)) == SIZE
    except DecodeError:
        return


def test_every_truncation_and_every_byte_too_many_is_refused() -> None:
    mask = drawn(0, 0.2)
    data = marks.encode(drawn(1, 0.1), mask, SHAPES)
    for wrong in (*(data[:end] for end in range(len(data))), data + b"\0"):
        with pytest.raises(DecodeError):
            marks.decode(wrong, mask, SHAPES)
