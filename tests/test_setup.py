import dataclasses
import json

import pytest

from edge_runtime import setup
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Layout

CARD = setup.ModelCard("watch-cnn", Layout(("w", "b"), ((3, 4), (4,))), b"graphs")
SETUP = setup.Setup("fedspa", {"density": 0.5, "mode": "dst"}, CARD, 7, ("b",), seed_set=b"seeds")
OWN = dataclasses.replace(SETUP, own=setup.ModelCard("mlp", Layout(("w",), ((2,),))))


@pytest.mark.parametrize("made", [SETUP, OWN], ids=["shared", "own"])
def test_a_setup_survives_the_wire(made: setup.Setup) -> None:
    assert setup.decode(setup.encode(made)) == made


def changed(**change: object) -> bytes:
    return json.dumps({**json.loads(setup.encode(OWN)), **change}).encode()


@pytest.mark.parametrize("which", ["model", "own"])
@pytest.mark.parametrize(
    "change",
    [
        {"names": ["w", "w"]},
        {"names": ["w"]},
        {"names": [1, 2]},
        {"shapes": [[3, 4], [0]]},
        {"shapes": [[65536] * 4, [4]]},
        {"shapes": [[1] * 9, [4]]},
        {"shapes": [[3, 4], [True]]},
        {"name": 3},
        {"bundle": "?"},
        {"bundle": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_model_with_a_wrong_field_is_refused_before_anything_is_allocated(
    change: dict[str, object], which: str
) -> None:
    card = json.loads(setup.encode(SETUP))["model"]
    with pytest.raises(DecodeError):
        setup.decode(changed(**{which: {**card, **change}}))


@pytest.mark.parametrize(
    "change",
    [
        {"private": ["c"]},
        {"private": "b"},
        {"private": [["b"]]},
        {"config": {"density": [1]}},
        {"config": None},
        {"seed_set": "?"},
        {"seed": -1},
        {"seed": 1.0},
        {"model": 3},
        {"own": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_a_setup_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        setup.decode(changed(**change))


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"[" * 100_000, b"\xff"])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        setup.decode(data)
