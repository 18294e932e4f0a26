import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import tokens
from edge_runtime.compression.errors import DecodeError

WIDE = hnp.arrays(np.int32, st.integers(0, 200))


@given(WIDE)
def test_tokens_and_what_they_leave_make_the_values_again(values: np.ndarray) -> None:
    found, rest = tokens.split(values)
    assert found.max(initial=0) < tokens.MOST
    assert (tokens.join(found.astype(np.uint16), rest) == values).all()


def test_the_tokens_are_those_of_the_specification() -> None:
    values = np.array([0, -1, 1, 31, -32, 32, -33, -41, 2**31 - 1, -(2**31)], np.int32)
    found, rest = tokens.split(values)
    assert found.tolist() == [0, 1, 2, 62, 63, 64, 64, 65, 167, 167]
    # u less the smallest of its token: 0, 1 and 1 (4 bits each), 2^29 - 2 and 2^29 - 1 (29 bits each)
    assert rest.hex() == "68181818" + "c0" * 25


def test_more_values_than_are_held_at_a_time_come_back() -> None:
    values = np.random.default_rng(0).integers(-500, 500, 150_000).astype(np.int32)
    found, rest = tokens.split(values)
    assert (tokens.join(found.astype(np.uint16), rest) == values).all()


def test_another_rest_than_the_tokens_leave_is_refused() -> None:
    found, rest = tokens.split(np.array([100, 5, -100], np.int32))
    for bad in (rest + b"\x00", rest[:-1], b"", rest[:-1] + b"\xff"):
        with pytest.raises(DecodeError):
            tokens.join(found.astype(np.uint16), bad)
