import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import bitfield, gaps
from edge_runtime.compression.errors import DecodeError

LISTS = st.lists(st.sets(st.integers(0, 2**30), max_size=30).map(sorted), min_size=1, max_size=4)


@given(LISTS)
def test_lists_of_places_come_back(lists: list[list[int]]) -> None:
    places = [np.array(some, np.int64) for some in lists]
    decoded = gaps.decode(bitfield.Reader(gaps.encode(places)), [len(some) for some in lists], [2**30 + 1] * len(lists))
    assert [some.tolist() for some in decoded] == lists


def test_every_gap_up_to_a_few_thousand_and_around_each_power_of_two_comes_back() -> None:
    some = np.concatenate([np.arange(3000), *(2**e + np.arange(-2, 3) for e in range(12, 31))])
    places = np.cumsum(some + 1) - 1
    decoded = gaps.decode(bitfield.Reader(gaps.encode([places])), [len(places)], [2**40])
    assert (decoded[0] == places).all()


def test_places_at_random_cost_their_entropy() -> None:
    bits = np.random.default_rng(0).random(500_000) < 0.04
    entropy = 500_000 / 8 * -(0.04 * np.log2(0.04) + 0.96 * np.log2(0.96))
    assert len(gaps.encode([np.flatnonzero(bits)])) <= 1.01 * entropy + 150


def test_a_gap_beyond_the_end_is_refused() -> None:
    data = gaps.encode([np.array([3, 9])])
    assert gaps.decode(bitfield.Reader(data), [2], [10])[0].tolist() == [3, 9]
    with pytest.raises(DecodeError, match="beyond"):
        gaps.decode(bitfield.Reader(data), [2], [9])
