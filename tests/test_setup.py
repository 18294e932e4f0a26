import json

import pytest

from edge_runtime import setup
from edge_runtime.errors import DecodeError

SETUP = setup.Setup("fedspa", {"density": 0.5, "mode": "dst"}, "watch-cnn", ("w", "b"), ((3, 4), (4,)), 7, b"graphs")


def test_a_setup_survives_the_wire() -> None:
    assert setup.decode(setup.encode(SETUP)) == SETUP


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
        {"config": {"density": [1]}},
        {"config": None},
        {"seed": -1},
        {"seed": 1.0},
        {"model": 3},
        {"bundle": "?"},
        {"bundle": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_setup_with_a_wrong_field_is_refused_before_anything_is_allocated(change: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        setup.decode(json.dumps({**json.loads(setup.encode(SETUP)), **change}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"[" * 100_000, b"\xff"])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        setup.decode(data)
