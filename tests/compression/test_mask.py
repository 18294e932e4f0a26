import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import frames, mask
from edge_runtime.compression.errors import DecodeError

MASKS = hnp.arrays(np.bool_, st.integers(0, 700))


def random_mask(size: int, density: float, seed: int = 0) -> mask.Bits:
    bits: mask.Bits = np.random.default_rng(seed).random(size) < density
    return bits


def entropy_bytes(size: int, density: float) -> float:
    return size / 8 * -(density * np.log2(density) + (1 - density) * np.log2(1 - density))


@given(MASKS)
def test_a_mask_comes_back(bits: mask.Bits) -> None:
    assert (mask.decode(mask.encode(bits), len(bits)) == bits).all()


@given(st.integers(0, 700), st.data())
def test_a_change_comes_back(size: int, choose: st.DataObject) -> None:
    old, new = (choose.draw(hnp.arrays(np.bool_, size)) for _ in range(2))
    assert (mask.decode_change(mask.encode_change(old, new), old) == new).all()


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.3, 0.5, 0.95, 1.0])
def test_large_masks_of_every_density_come_back(density: float) -> None:
    bits = random_mask(300_000, density)
    assert (mask.decode(mask.encode(bits), len(bits)) == bits).all()


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
def test_a_random_mask_costs_little_more_than_its_entropy(density: float) -> None:
    size = 1_000_000
    assert len(mask.encode(random_mask(size, density))) <= 1.02 * entropy_bytes(size, density)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.01])
def test_a_small_random_mask_costs_its_entropy_and_a_hundred_bytes_at_most(density: float) -> None:
    size = 34_000
    assert len(mask.encode(random_mask(size, density))) <= 1.01 * entropy_bytes(size, density) + 100


def test_a_random_swap_costs_little_more_than_the_choice_of_what_goes_and_what_comes() -> None:
    rng, old = np.random.default_rng(0), mask.from_seed(bytes(16), [1_000_000], [100_000])
    new = old.copy()
    new[rng.choice(np.flatnonzero(old), 5_000, replace=False)] = False
    new[rng.choice(np.flatnonzero(~old), 5_000, replace=False)] = True
    least = entropy_bytes(100_000, 5 / 100) + entropy_bytes(900_000, 5 / 900)
    data = mask.encode_change(old, new)
    assert data[:1] == b"\x03"
    assert len(data) <= 1.03 * least


def test_a_small_change_costs_less_than_a_whole_mask() -> None:
    old = random_mask(100_000, 0.5)
    new = old ^ random_mask(100_000, 0.01, seed=1)
    assert len(mask.encode_change(old, new)) < 0.2 * len(mask.encode(new))


def test_no_change_costs_one_byte() -> None:
    old = random_mask(1000, 0.5)
    assert mask.encode_change(old, old) == b"\x00"


def test_the_bytes_are_those_of_the_specification() -> None:
    bits = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1], np.bool_)
    assert mask.encode(bits) == b"\x00\xb1\x80"
    assert mask.encode_change(bits, ~bits) == b"\x01\x00\x4e\x00"
    gaps = bytes([2, 255, 45])
    data = b"\x02" + struct.pack("<BII", 1, 2, 3) + frames.pack(gaps)
    assert np.flatnonzero(mask.decode(data, 400)).tolist() == [2, 303]


def test_a_seed_gives_every_tensor_its_exact_count_and_the_same_mask_for_ever() -> None:
    bits = mask.from_seed(bytes(range(16)), [1000, 0, 300], [500, 0, 300])
    assert [int(bits[:1000].sum()), int(bits[1000:].sum())] == [500, 300]
    assert hashlib.sha256(np.packbits(bits)).hexdigest()[:16] == "638d83cc0fdc1ca2"
    other = mask.from_seed(bytes(16), [1000, 0, 300], [500, 0, 300])
    assert 200 < int((bits[:1000] ^ other[:1000]).sum()) < 800


def test_every_truncation_is_refused() -> None:
    old = random_mask(3000, 0.1)
    for data in (mask.encode(old), mask.encode(random_mask(3000, 0.5)), mask.encode(np.zeros(9, np.bool_))):
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                mask.decode(data[:end], 3000)


@given(st.integers(0, 3), st.binary(max_size=60), st.integers(0, 500))
def test_random_bytes_raise_nothing_but_a_decode_error(kind: int, data: bytes, size: int) -> None:
    old = np.zeros(size, np.bool_)
    for decode in (lambda d: mask.decode(d, size), lambda d: mask.decode_change(d, old)):
        try:
            assert len(decode(bytes([kind]) + data)) == size
        except DecodeError:
            continue


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_raises_nothing_but_a_decode_error(place: int, change: int) -> None:
    old = random_mask(2000, 0.1)
    data = bytearray(mask.encode_change(old, random_mask(2000, 0.1, seed=1)))
    data[place % len(data)] ^= change
    try:
        assert len(mask.decode_change(bytes(data), old)) == 2000
    except DecodeError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"\x02" + struct.pack("<BII", 1, 2**32 - 1, 2**32 - 1) + frames.pack(b"\xff"),
        b"\x02" + struct.pack("<BII", 1, 5, 2**32 - 1) + frames.pack(b"\xff"),
        b"\x02" + struct.pack("<BII", 1, 1, 1) + frames.pack(b"\xfe"),
        b"\x02" + struct.pack("<BII", 1, 0, 2) + frames.pack(b"\xff\xff"),
        b"\x02" + struct.pack("<BII", 1, 5, 5) + frames.pack(bytes(5)),
        b"\x01" + frames.pack(bytes(10_000_000)),
        b"\x00\xff\xff",
        b"\x07",
        b"",
    ],
    ids=range(9),
)
def test_a_claim_that_does_not_hold_costs_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            mask.decode(data, 9)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_seed_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        mask.from_seed(b"short", [1], [1])
