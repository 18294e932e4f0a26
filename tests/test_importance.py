"""What every unit of channels is worth to a device: closed forms, and bytes that are not believed."""

import json

import numpy as np
import pytest

from edge_runtime import importance, models, narrow
from edge_runtime.backends import load
from edge_runtime.compression import codec, submodel
from edge_runtime.compute import Compute
from edge_runtime.data import Split
from edge_runtime.errors import DecodeError

SPEC = models.find("watch-cnn")
STRUCTURE = narrow.structure(SPEC)
HALF = submodel.nested(STRUCTURE, 0.5)
VALUES = models.initial(SPEC, 0)
UNITS = [group.units for group in STRUCTURE.groups]


def split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, *SPEC.input_shape)).astype(np.float32)
    return Split(x, y := rng.integers(0, 7, count), x, y, 7, ())


def test_a_score_is_the_square_of_what_the_loss_changes_without_the_parameter_to_first_order() -> None:
    model, data = load(Compute("numpy"), "watch-cnn"), split(importance.BATCH, 1)
    scores = importance.taylor(model, VALUES, data)

    def loss(values: np.ndarray) -> float:
        outputs = model.oracle.vjp(model.layout.views(values), data.x_train)[0].astype(np.float64)
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(shifted)), data.y_train]))

    for at in np.argsort(scores)[[-1, -10, -300]]:
        some = VALUES.copy()
        some[at] *= 0.98
        other = VALUES.copy()
        other[at] *= 1.02
        assert ((loss(some) - loss(other)) / 0.04) ** 2 == pytest.approx(scores[at], rel=0.05)


def test_the_same_samples_give_the_same_scores_and_others_give_others() -> None:
    model = load(Compute("numpy"), "watch-cnn")
    first, again, other = (importance.taylor(model, VALUES, split(20, seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 0.1 * first.max()


def test_what_is_asked_and_what_is_answered_come_back() -> None:
    structure, values = importance.decode_task(importance.encode_task(HALF, VALUES), SPEC.layout)
    assert structure == STRUCTURE
    assert values.tobytes() == VALUES.tobytes()
    scores = VALUES**2
    worth = importance.decode_scores(importance.encode_scores(STRUCTURE, scores), STRUCTURE)
    assert [len(part) for part in worth] == UNITS
    for group, part in zip(STRUCTURE.groups, worth, strict=True):
        np.testing.assert_allclose(part, submodel.units_of(STRUCTURE, group, scores), rtol=1e-6)


def test_channels_are_chosen_by_worth_and_as_many_as_before() -> None:
    worth = [np.arange(units, dtype=np.float32) for units in UNITS]
    found = submodel.rechosen(HALF, worth)
    assert found.shapes == HALF.shapes
    for kept, units in zip(found.kept, UNITS, strict=True):
        assert kept.tolist() == [False] * (units - kept.sum()) + [True] * kept.sum()
    equal = submodel.rechosen(HALF, [np.zeros(units, np.float32) for units in UNITS])
    assert submodel.encode(equal) == submodel.encode(HALF)


RECORD = json.dumps(submodel.record(HALF)).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "container"),
        (codec.encode([RECORD]), "not a structure"),
        (codec.encode([RECORD, VALUES[:-1]]), "not a structure"),
        (codec.encode([RECORD, np.full_like(VALUES, np.inf)]), "not a structure"),
        (codec.encode([b"{", VALUES]), "malformed"),
        (codec.encode([b"[" * 100_000, VALUES]), "malformed"),
        (codec.encode([b"{}", VALUES]), "no cut is written there"),
        (codec.encode([RECORD.replace(b"[32, 6, 11]", b"[32, 6, 9]"), VALUES]), "part of another model"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        importance.decode_task(data, SPEC.layout)


@pytest.mark.parametrize(
    "values",
    [np.ones(sum(UNITS) - 1), np.ones(sum(UNITS) + 1), np.full(sum(UNITS), np.nan), -np.ones(sum(UNITS))],
)
def test_scores_that_make_no_sense_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DecodeError):
        importance.decode_scores(codec.encode([values.astype(np.float32)]), STRUCTURE)
