import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import posteriors
from edge_runtime.compression.errors import DecodeError

BITS = st.integers(2, 8)
ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, -1.0])),
)


def normalised(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


def confident(rows: int, classes: int = 10) -> np.ndarray:
    """Draw logits of a model that mistakes neighbouring classes for one another."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, rows)
    distance = np.abs(np.arange(classes) - truth[:, None])
    return (4 * np.exp(-distance) + rng.normal(0, 1.5, (rows, classes))).astype(np.float32)


def divergence(logits: np.ndarray, back: np.ndarray) -> float:
    probs = normalised(logits)
    return float((probs * (np.log(probs) - np.log(back))).sum(axis=1).mean())


@given(ROWS, BITS, st.booleans())
def test_rows_are_probabilities_again(logits: np.ndarray, bits: int, keep: bool) -> None:
    back = posteriors.decode(posteriors.encode(logits, bits, keep), *logits.shape)
    assert back.dtype == np.float32
    assert (back > 0).all()
    assert back.sum(axis=1, dtype=np.float64) == pytest.approx(np.ones(len(logits)), abs=1e-6)


@given(ROWS, BITS)
def test_the_arg_max_is_kept_where_asked_for(logits: np.ndarray, bits: int) -> None:
    back = posteriors.decode(posteriors.encode(logits, bits, keep_arg_max=True), *logits.shape)
    assert (back.argmax(axis=1) == logits.argmax(axis=1)).all()


@given(ROWS, BITS)
def test_the_square_roots_of_a_row_are_off_by_a_step_each_at_most(logits: np.ndarray, bits: int) -> None:
    back = posteriors.decode(posteriors.encode(logits, bits), *logits.shape)
    # As a vector of length 1 they are off by half a step each, and by as much again when brought back to length 1.
    off = np.linalg.norm(np.sqrt(back) - np.sqrt(normalised(logits)), axis=1)
    assert (off <= np.sqrt(logits.shape[1]) / (2**bits - 1) + 1e-6).all()


@pytest.mark.parametrize(("bits", "most"), [(4, 0.008), (5, 0.002), (6, 0.0005), (8, 0.00004)])
def test_the_divergence_falls_by_four_with_every_bit(bits: int, most: float) -> None:
    logits = confident(2000)
    assert divergence(logits, posteriors.decode(posteriors.encode(logits, bits), 2000, 10)) < most


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_a_uniform_step_of_the_log_costs_more_at_a_larger_divergence(bits: int) -> None:
    logits = confident(2000)
    step = 9 / (2**bits - 1)
    codes = np.minimum(np.rint(-np.log(normalised(logits)) / step), 2**bits - 1)
    counts = np.unique(codes, return_counts=True)[1]
    data = posteriors.encode(logits, bits)
    assert len(data) < 0.9 * -(counts * np.log2(counts / codes.size)).sum() / 8
    back = posteriors.decode(data, 2000, 10)
    assert divergence(logits, back) < divergence(logits, normalised(-codes * step))


def test_keeping_the_arg_max_costs_next_to_nothing() -> None:
    logits = confident(2000)
    assert len(posteriors.encode(logits, 5, keep_arg_max=True)) < 1.01 * len(posteriors.encode(logits, 5))


def test_a_tie_goes_to_the_first_as_before() -> None:
    logits = np.zeros((3, 4), np.float32)
    for bits in (2, 8):
        back = posteriors.decode(posteriors.encode(logits, bits, keep_arg_max=True), 3, 4)
        assert back.argmax(axis=1).tolist() == [0, 0, 0]


def test_log_probabilities_and_logits_give_the_same() -> None:
    logits = confident(50).astype(np.float64)
    assert posteriors.encode(np.log(normalised(logits)), 6) == posteriors.encode(logits, 6)


def test_a_probability_of_zero_is_welcome() -> None:
    logits = np.array([[0.0, -np.inf], [-np.inf, -5.0]], np.float32)
    back = posteriors.decode(posteriors.encode(logits, 5), 2, 2)
    assert back == pytest.approx(np.eye(2), abs=2e-6)  # the least floor is 1/1024 of a level of 1/31, squared


def test_more_classes_than_rows_come_back() -> None:
    logits = confident(20, 300)
    back = posteriors.decode(posteriors.encode(logits, 8), 20, 300)
    assert divergence(logits, back) < 0.01


@pytest.mark.parametrize("shape", [(0, 10), (5, 1), (0, 1)])
def test_nothing_to_tell_comes_back(shape: tuple[int, int]) -> None:
    back = posteriors.decode(posteriors.encode(np.zeros(shape, np.float32), 5, keep_arg_max=True), *shape)
    assert back.shape == shape
    assert (back == 1).all()


def test_the_bytes_are_those_of_the_specification() -> None:
    logits = np.log(np.array([[0.81, 0.18, 0.01], [0.01, 0.81, 0.18]], np.float32))
    # levels of 3 sqrt p: 2.7, 1.27 and .3; floors 1024 * 9 * .01 = 92, none (1) and 92 at level 0
    expected = "02 030303 04 01 5b005b 02 01 04 03 00 0300 00 01 41"
    assert posteriors.encode(logits, 2).hex() == expected.replace(" ", "")


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        posteriors.encode(np.zeros((2, 2), np.float32), bits)


@pytest.mark.parametrize("row", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_a_row_that_is_no_distribution_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="largest"):
        posteriors.encode(np.array([[0.0, 1.0], row]), 5)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 2, 3)])
def test_what_has_no_rows_and_classes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows and classes"):
        posteriors.encode(np.zeros(shape), 5)


WHOLE = posteriors.encode(confident(60), 5)


def test_every_truncation_and_every_extension_is_refused() -> None:
    for bad in [WHOLE[:end] for end in range(len(WHOLE))] + [WHOLE + b"\x00"]:
        with pytest.raises(DecodeError):
            posteriors.decode(bad, 60, 10)


@given(st.data())
def test_changed_bytes_raise_nothing_but_a_decode_error(draw: Any) -> None:
    bad = bytearray(WHOLE)
    for _ in range(draw.draw(st.integers(1, 3))):
        bad[draw.draw(st.integers(0, len(bad) - 1))] = draw.draw(st.integers(0, 255))
    try:
        back = posteriors.decode(bytes(bad), 60, 10)
    except DecodeError:
        return
    assert back.sum(axis=1, dtype=np.float64) == pytest.approx(np.ones(60), abs=1e-6)


@given(BITS, st.binary(max_size=100), st.integers(0, 20), st.integers(1, 20))
def test_random_bytes_raise_nothing_but_a_decode_error(bits: int, data: bytes, rows: int, classes: int) -> None:
    try:
        posteriors.decode(bytes([bits]) + data, rows, classes)
    except DecodeError:
        return


def test_decoding_holds_little_more_than_twice_what_it_gives() -> None:
    data = posteriors.encode(confident(60_000), 5)
    tracemalloc.start()
    try:
        back = posteriors.decode(data, 60_000, 10)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * back.nbytes + 10_000_000
    finally:
        tracemalloc.stop()
