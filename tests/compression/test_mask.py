import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import bitfield, frames, mask
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
    assert data[:1] == b"\x02"
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
    of_each = np.concatenate([np.ones(4, np.bool_), bits, np.zeros(6, np.bool_), bits])
    assert mask.encode(of_each, ((2, 2), (9,), (6,), (3, 3))) == b"\x06\x05\x00\x02\xb1\x80\x04\x00\xb1\x80"


def test_the_bytes_of_a_large_mask_and_of_a_change_stay_as_they_are() -> None:
    places = np.arange(100 * 300 + 70)
    old = (places % 300 * (places // 300) % 31) ** 2 % 7 < 2
    new = old ^ (places % 101 < 3)
    shapes = ((100, 300), (70,))
    coded = mask.encode(old, shapes), mask.encode_change(old, new, shapes)
    assert [hashlib.sha256(data).hexdigest()[:12] for data in coded] == ["2f40827d561e", "53624476c1ee"]


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.01, 0.5]))
def test_masks_and_changes_of_several_tensors_come_back(seed: int, density: float, moves: float) -> None:
    shapes = ((6, 30), (6,), (), (0, 3), (5, 6, 3, 3))
    old, new = random_mask(457, density, seed), random_mask(457, density, seed) ^ random_mask(457, moves, seed + 1)
    assert (mask.decode(mask.encode(old, shapes), 457, shapes) == old).all()
    assert (mask.decode_change(mask.encode_change(old, new, shapes), old, shapes) == new).all()


def test_dense_tensors_cost_a_byte_each() -> None:
    assert len(mask.encode(np.ones(12_000, np.bool_), ((100, 100), (1000,), (10, 100)))) == 4


def test_a_mask_whose_units_and_inputs_differ_costs_less_than_its_entropy_and_than_zstandard() -> None:
    rng = np.random.default_rng(0)
    chances = rng.exponential(0.3, (100, 1)) * rng.exponential(0.3, (1, 2000))
    bits = (rng.random((100, 2000)) < chances).ravel()
    data = mask.encode(bits, ((100, 2000),))
    assert len(data) < 0.9 * entropy_bytes(len(bits), float(bits.mean()))
    assert len(data) < 0.9 * len(frames.pack(np.packbits(bits).tobytes(), thorough=True))


def test_what_grows_from_a_seed_is_free_exact_in_number_and_the_same_for_ever() -> None:
    barred = random_mask(1300, 0.3)
    grown = mask.grow_from_seed(bytes(range(16)), barred, [1000, 300], [500, 7])
    assert [int(grown[:1000].sum()), int(grown[1000:].sum())] == [500, 7]
    assert not (grown & barred).any()
    assert hashlib.sha256(np.packbits(grown)).hexdigest()[:16] == "47b9a1e45634f49e"


def test_growth_reaches_every_place_that_is_not_barred_and_no_other() -> None:
    barred, seen = random_mask(16, 0.4), np.zeros(16, np.bool_)
    for seed in range(200):
        seen |= mask.grow_from_seed(seed.to_bytes(16, "little"), barred, [4, 12], [1, 3])
    assert (seen == ~barred).all()


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.6])
def test_growth_from_a_seed_travels_as_what_is_dropped_only(density: float, again: bool) -> None:
    shapes, seed = ((100, 200), (500,)), bytes(range(16))
    old = random_mask(20_500, density)
    dropped = old & random_mask(20_500, density / 2 if density < 0.5 else 0.5, seed=1)
    data = mask.encode_regrowth(old, dropped, shapes)
    new = mask.decode_change(data, old, shapes, seed, again)
    assert (new == mask.regrow(old, dropped, shapes, seed, again)).all()
    assert (new | dropped)[old].all()
    assert [int(new[:20_000].sum()), int(new[20_000:].sum())] == [int(old[:20_000].sum()), int(old[20_000:].sum())]
    assert again or not (new & dropped).any()
    assert len(data) < len(mask.encode_change(old, new, shapes))


def test_a_regrowth_that_cannot_be_is_refused() -> None:
    old = np.array([1, 1, 1, 0], np.bool_)
    seed = bytes(16)
    for dropped, again in ((~old, True), (old, False)):
        with pytest.raises(DecodeError):
            mask.decode_change(mask.encode_regrowth(old, dropped), old, seed=seed, again=again)
    with pytest.raises(DecodeError):
        mask.decode_change(mask.encode_regrowth(old, old), old)


def test_tensors_that_do_not_add_up_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="12 values in all where there are 9"):
        mask.encode(random_mask(9, 0.5), ((3, 4),))


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


@given(st.integers(0, 7), st.binary(max_size=60), st.integers(0, 500))
def test_random_bytes_raise_nothing_but_a_decode_error(kind: int, data: bytes, size: int) -> None:
    old = np.zeros(size, np.bool_)
    seed = bytes(16)
    for decode in (lambda d: mask.decode(d, size), lambda d: mask.decode_change(d, old, (), seed)):
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
        b"\x02\x01" + bitfield.pack_number(2**34) + bytes(9),
        b"\x02\x01\x02" + bitfield.pack_number(2**34) + bytes(9),
        b"\x02\x01\x02\x09\x02" + bytes([254, *bytes(7)]),
        b"\x06\x06",
        b"\x01" + frames.pack(bytes(10_000_000)),
        b"\x00\xff\xff",
        b"\x07",
        b"",
    ],
    ids=range(8),
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
