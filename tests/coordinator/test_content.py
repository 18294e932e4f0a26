from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edge_runtime.coordinator import content
from edge_runtime.tree import Part


@dataclass(frozen=True)
class Down:
    round: int
    values: Any


@dataclass(frozen=True)
class Other:
    round: int
    values: Any


VALUES = np.arange(6, dtype=np.float32)


def test_equal_messages_have_one_digest() -> None:
    one, other = Down(1, [VALUES, {"a": b"x"}]), Down(1, [VALUES.copy(), {"a": b"x"}])
    assert content.digest(one) == content.digest(other)
    assert content.digest(Part(("w",), VALUES)) == content.digest(Part(("w",), VALUES[::-1][::-1]))


def test_messages_that_differ_in_anything_have_different_digests() -> None:
    values = [
        *(VALUES, VALUES.reshape(2, 3), VALUES.astype(np.float64), VALUES.view(np.int32), VALUES + 1, VALUES[:5]),
        *(None, 0, 0.0, -0.0, False, "", b"", (), [], {}, "0", b"0", (0,), ("a", "b"), ("ab",), [[0], 1], [0, [1]]),
    ]
    digests = {content.digest(Down(1, value)) for value in values}
    assert len(digests | {content.digest(Down(2, VALUES)), content.digest(Other(1, VALUES))}) == len(values) + 2


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(TypeError, match="no digest of a object"):
        content.digest(Down(1, object()))
