import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import structured
from edge_runtime.compression.errors import DecodeError

SHAPES = st.sampled_from([(4, 9), (9, 4), (5, 5), (3, 2, 3, 3), (2, 300), (8, 8, 1, 1), (2, 2, 9)])
TO_IMAGES = (24, 8 * 64)


def clumpy(shape: tuple[int, ...], alphabet: int, seed: int = 0) -> Any:
    """Draw numbers whose spread depends on the row and on a smooth function of the column."""
    rng = np.random.default_rng(seed)
    rows = rng.exponential(1, (shape[0], 1))
    columns = np.sin(np.arange(int(np.prod(shape[1:]))) * 2 * np.pi / 8) + 1.2
    drawn = rng.laplace(0, 1, (shape[0], columns.size)) * rows * columns
    if alphabet == 2:
        return (np.abs(drawn) > 2).astype(np.uint8).ravel()
    return np.clip(np.rint(drawn + alphabet / 2), 0, alphabet - 1).astype(np.uint8).ravel()


def order_0_bytes(symbols: Any) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * -np.log2(counts / counts.sum())).sum() / 8)


@given(SHAPES, st.sampled_from([2, 3, 4, 16]), st.data())
def test_a_tensor_comes_back(shape: tuple[int, ...], alphabet: int, choose: st.DataObject) -> None:
    size = int(np.prod(shape))
    symbols = choose.draw(hnp.arrays(np.uint8, size, elements=st.integers(0, alphabet - 1)))
    data = structured.encode(symbols, shape, alphabet)
    assert data is not None
    assert (structured.decode(data, shape, alphabet) == symbols).all()


@pytest.mark.parametrize("alphabet", [2, 4, 16])
@pytest.mark.parametrize("shape", [(64, 1000), (1000, 64), TO_IMAGES, (32, 16, 5, 5)])
def test_clumpy_tensors_come_back_below_their_order_0_entropy(shape: tuple[int, ...], alphabet: int) -> None:
    symbols = clumpy(shape, alphabet)
    data = structured.encode(symbols, shape, alphabet)
    assert data is not None
    assert (structured.decode(data, shape, alphabet) == symbols).all()
    assert len(data) < 0.95 * order_0_bytes(symbols)


def test_neighbours_that_are_alike_are_coded_in_runs_and_units_that_differ_by_row() -> None:
    blocks = np.repeat(np.random.default_rng(0).random(3000) < 0.3, 9).astype(np.uint8)
    units = (np.random.default_rng(0).random((100, 500)) < np.linspace(0, 1, 100)[:, None]).astype(np.uint8)
    in_runs, by_row = structured.encode(blocks, (100, 30, 3, 3), 2), structured.encode(units.ravel(), (100, 500), 2)
    assert in_runs is not None
    assert by_row is not None
    assert (in_runs[0], by_row[0]) == (1, 0)


def test_a_dense_layer_that_looks_at_images_shows_how_wide_they_are() -> None:
    blocks = np.kron(np.random.default_rng(0).random((32, 8, 4, 4)), np.ones((2, 2)))
    bits = (blocks < 0.3 + 0.2 * np.sin(np.arange(8))).astype(np.uint8)
    data = structured.encode(bits.ravel(), (32, 512), 2)
    assert data is not None
    assert data[:3] == bytes([1, 64, 8])


@pytest.mark.parametrize("shape", [(), (7,), (1, 9), (9, 1), (0, 5)])
def test_what_is_no_matrix_has_no_structure(shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    assert structured.encode(np.zeros(size, np.uint8), shape, 2) is None
    for model in (b"\0", b"\1"):
        with pytest.raises(DecodeError):
            structured.decode(model + bytes(20), shape, 2)


def test_the_bytes_stay_as_they_are() -> None:
    places = np.arange(24 * 160)
    symbols = (places % 160 * (places // 160) % 23 < 4).astype(np.uint8)
    by_row = structured.encode(symbols, (24, 160), 2)
    in_runs = structured.encode(np.sort(symbols.reshape(-1, 10)).ravel(), (24, 16, 10), 2)
    assert by_row is not None
    assert in_runs is not None
    assert [hashlib.sha256(data).hexdigest()[:12] for data in (by_row, in_runs)] == ["64fb6b252f6a", "e53422250a6c"]


@given(st.integers(0, 10**6), st.integers(1, 255), st.sampled_from([(24, 120), (12, 6, 3, 3)]), st.sampled_from([2, 8]))
def test_a_flipped_byte_gives_a_decode_error_or_another_tensor(
    place: int, change: int, shape: tuple[int, ...], alphabet: int
) -> None:
    coded = structured.encode(clumpy(shape, alphabet), shape, alphabet)
    assert coded is not None
    data = bytearray(coded)
    data[place % len(data)] ^= change
    try:
        symbols = structured.decode(bytes(data), shape, alphabet)
    except DecodeError:
        return
    assert symbols.shape == (np.prod(shape),)
    assert symbols.max() < alphabet


@given(st.integers(0, 1), st.binary(max_size=60), SHAPES, st.sampled_from([2, 16]))
def test_random_bytes_raise_nothing_but_a_decode_error(
    model: int, data: bytes, shape: tuple[int, ...], alphabet: int
) -> None:
    try:
        symbols = structured.decode(bytes([model]) + data, shape, alphabet)
    except DecodeError:
        return
    assert len(symbols) == np.prod(shape)


def test_every_truncation_is_refused() -> None:
    for shape in [(24, 120), (12, 6, 3, 3)]:
        data = structured.encode(clumpy(shape, 4), shape, 4)
        assert data is not None
        for end in range(0, len(data), 3):
            with pytest.raises(DecodeError):
                structured.decode(data[:end], shape, 4)
