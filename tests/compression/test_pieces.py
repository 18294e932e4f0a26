import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import pieces, tokens


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(pieces.SMALLEST, pieces.WHOLE))
def test_pieces_are_never_empty_nor_longer_than_asked_and_end_where_tensors_end(sizes: list[int], b: int) -> None:
    lengths = pieces.lengths(sizes, b)
    assert ((lengths > 0) & (lengths <= 1 << b)).all()
    ends = set(np.cumsum(lengths).tolist())
    assert {int(end) for end in np.cumsum(sizes) if end} <= ends
    assert sum(sizes) == lengths.sum()
    assert len(lengths) == sum(-(-size >> b) for size in sizes)


def classes_of(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int32)
    return pieces.classify(values, tokens.split(values)[0], pieces.lengths([len(values)], 5)).of_pieces


def test_pieces_of_another_magnitude_or_another_sign_have_classes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    still, loud = rng.normal(0, 0.5, 6400), rng.normal(0, 20, 6400)
    up = np.abs(rng.normal(0, 20, 6400))
    classes = classes_of(np.rint(np.concatenate([still, loud, up, -up])))
    of_parts = [np.bincount(part).argmax() for part in np.split(classes, 4)]
    assert len(set(of_parts)) == 4


def test_pieces_that_are_all_alike_have_one_class() -> None:
    assert not classes_of(np.rint(np.random.default_rng(0).normal(0, 4, 20_000))).any()


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 1000))
def test_classes_are_read_as_they_were_sent(count: int, k: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).geometric(0.3, count) % k
    of_pieces = np.unique(drawn, return_inverse=True)[1].astype(np.uint8)
    classes = pieces.Classes(of_pieces, 0)
    assert np.array_equal(pieces.decode(pieces.encode(classes), count, classes.count), of_pieces)


def test_classes_that_follow_each_other_cost_less_than_their_entropy() -> None:
    of_pieces = np.repeat(np.random.default_rng(0).integers(0, 8, 500), 10).astype(np.uint8)
    assert len(pieces.encode(pieces.Classes(of_pieces, 0))) < 0.4 * 3 * len(of_pieces) / 8
