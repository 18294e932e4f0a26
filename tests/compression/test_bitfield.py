"""Fields of bits come back, whatever their widths, and what fills up the last byte is checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import bitfield
from edge_runtime.compression.errors import DecodeError


def as_text(fields: list[int], widths: list[int]) -> bytes:
    """Pack bit by bit."""
    bits = "".join(f"{field:0{width}b}"[::-1] for field, width in zip(fields, widths, strict=True) if width)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


@given(st.lists(st.integers(0, 56).flatmap(lambda w: st.tuples(st.integers(0, (1 << w) - 1), st.just(w))), max_size=60))
def test_fields_are_packed_bit_after_bit_and_come_back(drawn: list[tuple[int, int]]) -> None:
    fields, widths = ([pair[i] for pair in drawn] for i in (0, 1))
    data = bitfield.pack(np.array(fields, np.int64), np.array(widths, np.int64))
    assert data == as_text(fields, widths)
    reader = bitfield.Reader(data)
    assert reader.take_fields(np.array(widths, np.int64)).tolist() == fields
    reader.finish()


@pytest.mark.parametrize("width", [1, 3, 8, 31])
def test_many_fields_come_back(width: int) -> None:
    fields = np.random.default_rng(0).integers(0, 1 << width, 100_001)
    data = bitfield.pack(fields, np.broadcast_to(width, len(fields)))
    assert len(data) == -(-width * len(fields) // 8)
    assert (bitfield.Reader(data).take_fields(np.broadcast_to(width, len(fields))) == fields).all()


def test_a_byte_that_is_not_filled_up_with_zeros_and_too_few_bytes_are_refused() -> None:
    with pytest.raises(DecodeError, match="filled up with other than zeros"):
        bitfield.Reader(b"\xff").take_fields(np.array([3, 4]))
    with pytest.raises(DecodeError, match="2 bytes are announced where 1 are left"):
        bitfield.Reader(b"\xff").take_fields(np.array([3, 6]))
