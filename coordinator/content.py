"""What a message of an algorithm holds, as one digest: equal messages need to be encoded only once."""

import dataclasses
import hashlib
from typing import Any

import numpy as np


def digest(value: Any) -> bytes:
    """Compute the SHA-256 of a value made of dataclasses, sequences, mappings, arrays, bytes and plain values.

    Two values of one digest are equal in every bit and type; equal ones may differ in it, where a plain value is
    written in two ways.
    """
    match value:
        case np.ndarray():
            parts = [f"{value.dtype.str}{value.shape}".encode(), value.tobytes()]
        case bytes():
            parts = [value]
        case tuple() | list():
            parts = [digest(item) for item in value]
        case dict():
            parts = [digest(item) for pair in value.items() for item in pair]
        case _ if dataclasses.is_dataclass(value):
            parts = [digest(getattr(value, field.name)) for field in dataclasses.fields(value)]
        case bool() | int() | float() | str() | None | np.generic():
            parts = [repr(value).encode()]
        case _:
            raise TypeError(f"no digest of a {type(value).__name__}")
    found = hashlib.sha256(f"{type(value).__name__}/{len(parts)}/".encode())
    for part in parts:
        found.update(part)
    return found.digest()
