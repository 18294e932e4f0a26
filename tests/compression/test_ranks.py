"""Rank and select against a list of all members."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression.ranks import Members


@given(st.lists(st.booleans(), max_size=100))
def test_rank_and_select_are_each_others_inverse(bits: list[bool]) -> None:
    members = Members(2 * np.array(bits, np.uint8), 2)
    places = np.flatnonzero(bits)
    assert len(members) == len(places)
    assert members.rank(places).tolist() == list(range(len(places)))
    assert members.select(np.arange(len(places))).tolist() == places.tolist()


@pytest.mark.parametrize("density", [0.001, 0.1, 0.999])
def test_some_members_of_many(density: float) -> None:
    rng = np.random.default_rng(0)
    numbers = (rng.random(100_003) < density).astype(np.uint8)
    members, places = Members(numbers, 1), np.flatnonzero(numbers)
    some = np.sort(rng.choice(len(places), 50, replace=False))
    assert members.select(some).tolist() == places[some].tolist()
    assert members.rank(places[some]).tolist() == some.tolist()
