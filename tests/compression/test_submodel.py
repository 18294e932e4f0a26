"""What is kept of a model, and that nobody can be talked into another part of it."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import submodel
from edge_runtime.compression.errors import DecodeError
from edge_runtime.compression.submodel import Cut, Group, Side, Structure

# Two inputs to 6 channels, whose 3 places each are flattened, to 4 channels, to 5 outputs.
SHAPES = ((6, 2, 3), (6,), (4, 18), (4,), (5, 4))
FIRST = Group("first", 6, 2, (Side(0, 0), Side(1, 0), Side(2, 1, 3)))
SECOND = Group("second", 4, 1, (Side(2, 0), Side(3, 0), Side(4, 1)))
MODEL = Structure(SHAPES, (FIRST, SECOND))
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)


def test_what_is_kept_of_each_tensor_is_a_tensor_and_lies_at_the_bits() -> None:
    cut = Cut(MODEL, (np.array([True, False, True]), np.array([False, True, True, False])))
    assert cut.shapes == ((4, 2, 3), (4,), (2, 12), (2,), (5, 2))
    flat = np.arange(SIZE)
    tensors = [part.reshape(shape) for part, shape in zip(np.split(flat, [36, 42, 114, 118]), SHAPES, strict=True)]
    first, second = [0, 1, 4, 5], [1, 2]
    wanted = (
        tensors[0][first],
        tensors[1][first],
        tensors[2].reshape(4, 6, 3)[second][:, first],
        tensors[3][second],
        tensors[4][:, second],
    )
    assert flat[cut.bits].tolist() == np.concatenate([part.ravel() for part in wanted]).tolist()


def test_narrower_parts_lie_within_wider_ones() -> None:
    cuts = [submodel.nested(MODEL, width) for width in (0.01, 0.4, 0.7, 1.0)]
    assert [cut.shapes[2] for cut in cuts] == [(1, 6), (2, 6), (3, 12), (4, 18)]
    assert all((wider.bits | ~narrower.bits).all() for narrower, wider in itertools.pairwise(cuts))
    assert [bool(cut.bits.all()) for cut in cuts] == [False, False, False, True]


def test_the_units_that_matter_most_are_chosen_and_of_equals_the_first() -> None:
    importance = np.zeros(SIZE)
    importance[42:114].reshape(4, 18)[:, 12:] = 1.0  # what the second layer takes of channels 4 and 5 of the first
    importance[114:118] = 1.0, 3.0, 1.0, 2.0
    cut = submodel.chosen(MODEL, 0.5, importance)
    assert [kept.tolist() for kept in cut.kept] == [[True, False, True], [False, True, False, True]]


@pytest.mark.parametrize("width", [0.0, -1.0, 1.01, float("nan")])
def test_a_width_that_is_none_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width must be above 0 and at most 1"):
        submodel.nested(MODEL, width)


def test_groups_that_are_concatenated_share_an_axis() -> None:
    joined = Structure(((5, 3),), (Group("a", 2, 1, (Side(0, 0),)), Group("b", 3, 1, (Side(0, 0, start=2),))))
    cut = Cut(joined, (np.array([False, True]), np.array([True, False, True])))
    assert np.arange(15).reshape(5, 3)[[1, 2, 4]].ravel().tolist() == np.flatnonzero(cut.bits).tolist()
    assert cut.shapes == ((3, 3),)


@given(st.integers(1, 7), st.integers(1, 15))
def test_a_cut_comes_back(first: int, second: int) -> None:
    kept = (np.array([first >> i & 1 for i in range(3)], np.bool_), np.array([second >> i & 1 for i in range(4)], bool))
    data = submodel.encode(Cut(MODEL, kept))
    assert len(data) <= 10
    assert [part.tolist() for part in submodel.decode(data, MODEL).kept] == [part.tolist() for part in kept]


def test_a_model_without_channels_to_take_away_is_whole() -> None:
    plain = Structure(((3, 4),), ())
    assert submodel.decode(submodel.encode(submodel.nested(plain, 0.5)), plain).bits.all()


PERMUTED = Structure(SHAPES, (Group("first", 6, 2, (Side(0, 0), Side(1, 0), Side(2, 1, 3))[::-1]), SECOND))


@pytest.mark.parametrize(
    "other",
    [Structure(SHAPES, (SECOND, FIRST)), PERMUTED, Structure((*SHAPES, (1,)), (FIRST, SECOND))],
    ids=["groups in another order", "sides in another order", "one tensor more"],
)
def test_a_cut_of_another_model_is_refused(other: Structure) -> None:
    data = submodel.encode(submodel.nested(MODEL, 0.5))
    with pytest.raises(DecodeError, match="cut out of another model"):
        submodel.decode(data, other)


def test_a_cut_that_leaves_nothing_of_a_layer_is_refused() -> None:
    data = submodel.encode(Cut(MODEL, (np.zeros(3, np.bool_), np.ones(4, np.bool_))))
    with pytest.raises(DecodeError, match="nothing is left of 'first'"):
        submodel.decode(data, MODEL)


@given(st.binary(max_size=40))
def test_hostile_bytes_are_refused_or_a_cut(data: bytes) -> None:
    for some in (data, MODEL.digest + data):
        try:
            cut = submodel.decode(some, MODEL)
        except DecodeError:
            continue
        assert all(kept.any() for kept in cut.kept)


def test_a_part_that_is_written_down_is_read_and_anything_else_refused() -> None:
    cut = submodel.nested(MODEL, 0.5)
    written = json.loads(json.dumps(submodel.record(cut)))
    found = submodel.read(written, SHAPES)
    assert (found.structure, found.shapes) == (cut.structure, cut.shapes)
    with pytest.raises(DecodeError, match="a part of another model"):
        submodel.read(written, SHAPES[1:])
    for key, value in (("groups", [["first", math.inf, 2, []]]), ("groups", [[1]]), ("cut", "zz"), ("cut", "00")):
        with pytest.raises(DecodeError, match="submodel: "):
            submodel.read({**written, key: value}, SHAPES)


@pytest.mark.parametrize(
    "groups",
    [
        (Group("wide", 7, 1, (Side(0, 0),)),),
        (Group("uneven", 6, 4, (Side(0, 0),)),),
        (Group("twice", 6, 1, (Side(0, 0), Side(0, 0))),),
        (FIRST, Group("again", 6, 1, (Side(1, 0),))),
        (Group("late", 4, 1, (Side(0, 0, start=3),)),),
        (Group("early", 4, 1, (Side(0, 0, start=-1),)),),
        (Group("no tensor", 6, 1, (Side(-5, 0),)),),
        (Group("no axis", 6, 1, (Side(0, 3),)),),
        (Group("no place", 6, 1, (Side(0, 0, repeat=0),)),),
    ],
    ids=lambda groups: groups[-1].name,
)
def test_a_structure_that_does_not_fit_its_tensors_is_refused(groups: tuple[Group, ...]) -> None:
    with pytest.raises(ValueError, match="submodel: "):
        Structure(SHAPES, groups)
