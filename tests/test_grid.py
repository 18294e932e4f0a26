"""The grid: what both sides hold of a shared model is the same to the bit, and differences of it are exact."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime import grid
from edge_runtime.errors import DecodeError
from edge_runtime.grid import Grid
from edge_runtime.tree import Flat, Layout

LAYOUT = Layout(("w", "b", "v"), ((20, 30), (30,), (40, 5)))


def a_model(seed: int, scale: float = 1.0) -> Flat:
    return np.random.default_rng(seed).normal(0, scale, LAYOUT.size).astype(np.float32)


def beginning(held: NDArray[np.bool_] | None) -> Flat:
    return a_model(100) if held is None else a_model(100)[held]


def some(seed: int, density: float) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(LAYOUT.size) < density


def told(model: Flat, round_: int, change: Flat | None = None, finer: int = 0) -> Grid:
    return grid.snap(model, LAYOUT, round_, grid.exponents(change, model, LAYOUT, None), finer)


def same(one: Grid, other: Grid) -> bool:
    return one.round == other.round and all(
        np.array_equal(a, b) for a, b in ((one.exponents, other.exponents), (one.values, other.values))
    )


def test_a_value_is_at_most_half_a_step_away() -> None:
    model = a_model(0)
    found = told(model, 0)
    steps = np.repeat(2.0**found.exponents, LAYOUT.sizes)
    assert (np.abs(found.floats(LAYOUT) - model) <= steps / 2).all()


def test_the_step_is_the_power_of_two_nearest_to_the_size_of_the_last_change() -> None:
    change = np.concatenate([np.full(size, value) for size, value in zip(LAYOUT.sizes, (0.26, 1.0, 3.1), strict=True)])
    assert grid.exponents(change.astype(np.float32), a_model(0), LAYOUT, None).tolist() == [-2, 0, 2]
    assert told(a_model(0), 0, change.astype(np.float32), finer=-3).exponents.tolist() == [-5, -3, -1]


@pytest.mark.parametrize(("rms", "exponent"), [(0.5, 0), (1.9, 0), (2.9, 2), (0.3, -2), (0.0, 0)])
def test_a_step_changes_only_with_a_change_of_another_order(rms: float, exponent: int) -> None:
    before = np.zeros(3, np.int8)
    change = np.full(LAYOUT.size, rms, np.float32)
    assert grid.exponents(change, a_model(0), LAYOUT, before).tolist() == [exponent] * 3


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-9, 1e-3, 0.1, 30.0]),
    densities=st.tuples(*[st.sampled_from([0.0, 0.1, 0.9, 1.0])] * 2),
    finer=st.tuples(*[st.integers(-6, 4)] * 2),
)
def test_a_difference_gives_exactly_what_the_whole_would(
    seed: int, scale: float, densities: tuple[float, float], finer: tuple[int, int]
) -> None:
    change = a_model(seed + 1, scale)
    model = a_model(seed)
    before, now = told(model, 3, change, finer[0]), told(model + change, 4, change, finer[1])
    old, new = (None if density == 1 else some(seed + i, density) for i, density in enumerate(densities))
    base, wanted = grid.part(before, old), grid.part(now, new)
    for held, start in itertools.product((base, None), (beginning, None)):
        data = grid.encode(wanted, LAYOUT, held, start)
        assert same(grid.decode(data, LAYOUT, new, held, start), wanted)


def test_a_model_that_stays_close_to_its_beginning_costs_little_where_that_is_known() -> None:
    now = told(beginning(None) + a_model(1, 0.001), 7, a_model(2, 0.001))
    assert len(grid.encode(now, LAYOUT, None, beginning)) < len(grid.encode(now, LAYOUT, None)) / 3
    here = grid.part(now, some(0, 0.5))
    assert len(grid.encode(here, LAYOUT, None, beginning)) < len(grid.encode(here, LAYOUT, None)) / 3


def test_a_beginning_that_is_another_or_unknown_is_refused() -> None:
    data = grid.encode(told(a_model(0), 0), LAYOUT, None, beginning)
    with pytest.raises(DecodeError, match="from another beginning than this device draws"):
        grid.decode(data, LAYOUT, None, None, lambda held: beginning(held) + np.float32(1))
    with pytest.raises(DecodeError, match="from a beginning that this device does not know"):
        grid.decode(data, LAYOUT, None, None)


def test_what_changes_little_costs_little() -> None:
    model, change = a_model(0), a_model(1, 0.001)
    steps = grid.exponents(change, model, LAYOUT, None)
    before, now = (grid.snap(values, LAYOUT, t, steps, -1) for t, values in enumerate((model, model + change)))
    assert len(grid.encode(now, LAYOUT, before)) < len(grid.encode(now, LAYOUT, None)) / 2


def test_a_model_of_huge_values_takes_steps_that_float32_can_hold() -> None:
    model = a_model(0, 1e30)
    found = told(model, 0, a_model(1, 1e-9))
    assert np.abs(found.values).max() <= 1 << 23
    assert np.allclose(found.floats(LAYOUT), model, rtol=1e-5, atol=1e24)


def test_a_difference_from_a_grid_that_is_not_held_is_refused_and_says_so() -> None:
    data = grid.encode(told(a_model(1), 5), LAYOUT, told(a_model(0), 4))
    with pytest.raises(DecodeError, match="from that of round 4, and this device holds none"):
        grid.decode(data, LAYOUT, None, None)
    with pytest.raises(DecodeError, match="holds that of round 3"):
        grid.decode(data, LAYOUT, None, told(a_model(0), 3))
    with pytest.raises(DecodeError, match="from another grid of round 4 than"):
        grid.decode(data, LAYOUT, None, told(a_model(0), 4, finer=1))


@given(st.data())
def test_hostile_bytes_are_refused_or_read(data: st.DataObject) -> None:
    base = told(a_model(0), 4)
    held, start = data.draw(st.sampled_from([None, base])), data.draw(st.sampled_from([None, beginning]))
    sent = bytearray(grid.encode(told(a_model(1), 5), LAYOUT, held, start))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sent)))
    try:
        found = grid.decode(bytes(sent[:cut]), LAYOUT, None, base, beginning)
    except DecodeError:
        return
    assert np.isfinite(found.floats(LAYOUT)).all()


def test_what_is_written_down_is_read_again_and_of_another_length_refused() -> None:
    held = some(0, 0.4)
    one = grid.part(told(a_model(0), 7), held)
    assert same(grid.unpack(grid.pack(one), LAYOUT, held), one)
    with pytest.raises(DecodeError, match="do not hold"):
        grid.unpack(grid.pack(one), LAYOUT, None)
