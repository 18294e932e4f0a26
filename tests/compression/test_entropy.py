import hashlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import entropy
from edge_runtime.compression.errors import DecodeError

ALPHABETS = st.sampled_from([1, 2, 3, 17, 256, 300, 4096, 65536])


def laplace(count: int, width: float, alphabet: int = 65, seed: int = 0) -> Any:
    drawn = np.rint(np.random.default_rng(seed).laplace(alphabet // 2, width, count))
    return np.clip(drawn, 0, alphabet - 1).astype(np.uint8)


def order_0_bytes(symbols: Any) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * -np.log2(counts / counts.sum())).sum() / 8)


@given(ALPHABETS, st.integers(0, 400), st.booleans(), st.data())
def test_symbols_come_back(alphabet: int, count: int, with_contexts: bool, choose: st.DataObject) -> None:
    symbols = choose.draw(hnp.arrays(np.uint16, count, elements=st.integers(0, alphabet - 1)))
    contexts = choose.draw(hnp.arrays(np.uint8, count)) if with_contexts else None
    data = entropy.encode(symbols, alphabet, contexts)
    assert (entropy.decode(data, count, alphabet, contexts) == symbols).all()


@pytest.mark.parametrize("count", [1, 7, 255, 3000, 60_000, 400_001])
@pytest.mark.parametrize("width", [0.2, 0.4, 3.0, 30.0])
def test_a_source_of_any_size_and_skew_comes_back_at_its_entropy(count: int, width: float) -> None:
    symbols = laplace(count, width)
    data = entropy.encode(symbols, 65)
    assert (entropy.decode(data, count, 65) == symbols).all()
    assert len(data) <= 1.02 * order_0_bytes(symbols) + 80


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_bits_in_contexts_cost_the_entropy_within_these(density: float) -> None:
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 40, 300_000).astype(np.uint8)
    bits = (rng.random(300_000) < density * (1 + contexts) / 41).astype(np.uint8)
    data = entropy.encode(bits, 2, contexts)
    assert (entropy.decode(data, len(bits), 2, contexts) == bits).all()
    assert len(data) <= 1.01 * sum(order_0_bytes(bits[contexts == c]) for c in range(40)) + 150


def test_a_context_that_says_all_costs_next_to_nothing() -> None:
    contexts = np.random.default_rng(0).integers(0, 8, 100_000).astype(np.uint8)
    assert len(entropy.encode(contexts // 2, 4, contexts)) < 300


def test_degenerate_symbols_cost_a_few_bytes() -> None:
    assert entropy.encode(np.zeros(0, np.uint8), 256) == b""
    assert entropy.encode(np.zeros(1000, np.uint8), 1) == b""
    assert entropy.encode(np.full(1_000_000, 300, np.uint16), 301) == b"\x00\x2c\x01"
    assert len(entropy.encode(np.arange(12, dtype=np.uint8), 16)) == 1 + 6


def test_the_bytes_are_those_of_the_specification() -> None:
    symbols = np.tile(np.array([2, 0, 2, 1, 2, 2], np.uint8), 40)
    contexts = np.tile(np.array([1, 0, 0], np.uint8), 80)
    golden = bytes.fromhex(
        "020e03020100000004000030000000040001772f017079c56380bc35d4ae1f9dd8a2a644f4b1dbde35bb358ba400a0"
    )
    assert entropy.encode(symbols, 3, contexts) == golden
    assert (entropy.decode(golden, len(symbols), 3, contexts) == symbols).all()


def test_the_bytes_of_a_large_source_stay_as_they_are() -> None:
    symbols = (np.arange(20_000) ** 2 % 251 % 7).astype(np.uint8)
    data = entropy.encode(symbols, 7)
    assert hashlib.sha256(data).hexdigest()[:16] == "f23e0d5909731b9a"


def test_every_truncation_and_every_byte_too_many_is_refused() -> None:
    for count in (50, 3000):
        symbols = laplace(count, 2.0)
        data = entropy.encode(symbols, 65)
        for wrong in (*(data[:end] for end in range(0, len(data), 1 + count // 300)), data + b"\0", data + b"\0\0"):
            with pytest.raises(DecodeError):
                entropy.decode(wrong, count, 65)


@given(st.integers(0, 10**6), st.integers(1, 255), st.sampled_from([(40, 2), (900, 65), (20_000, 65)]))
def test_a_flipped_byte_gives_a_decode_error_or_other_symbols(place: int, change: int, kind: tuple[int, int]) -> None:
    count, alphabet = kind
    data = bytearray(entropy.encode(laplace(count, 1.0, alphabet), alphabet))
    data[place % len(data)] ^= change
    try:
        symbols = entropy.decode(bytes(data), count, alphabet)
    except DecodeError:
        return
    assert len(symbols) == count
    assert symbols.max() < alphabet


@given(st.integers(0, 3), st.binary(max_size=80), ALPHABETS, st.integers(0, 300))
def test_random_bytes_raise_nothing_but_a_decode_error(form: int, data: bytes, alphabet: int, count: int) -> None:
    for contexts in (None, np.arange(count, dtype=np.uint8) % 5):
        try:
            assert len(entropy.decode(bytes([form]) + data, count, alphabet, contexts)) == count
        except DecodeError:
            continue


def test_damage_in_the_middle_is_noticed() -> None:
    symbols = laplace(50_000, 2.0)
    data = bytearray(entropy.encode(symbols, 65))
    data[len(data) // 2] ^= 1
    with pytest.raises(DecodeError):
        entropy.decode(bytes(data), len(symbols), 65)


def test_coding_takes_a_few_times_the_memory_of_the_symbols() -> None:
    symbols = laplace(1_000_000, 2.0)
    tracemalloc.start()
    try:
        data = entropy.encode(symbols, 65)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.reset_peak()
        entropy.decode(data, len(symbols), 65)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
