"""What a device must know of a run beside its tasks: one small JSON blob, fetched once per run.

It is hostile input to a device: `decode` checks every field and bounds the model's size before anything is allocated.
"""

import base64
import binascii
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge_runtime.errors import DecodeError

MAX_VALUES = 1 << 30
_KINDS = (str, int, float, bool)


@dataclass(frozen=True)
class Setup:
    """A run as its devices see it."""

    algorithm: str
    config: dict[str, str | int | float | bool]
    """The algorithm's configuration, kebab-case keys."""
    model: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    bundle: bytes = b""
    """The model's graphs (`bundle.pack`), for one that is not built in. Empty: the device has the model."""


def encode(setup: Setup) -> bytes:
    """Encode to JSON; the inverse of `decode`."""
    record = {**asdict(replace(setup, bundle=b"")), "bundle": base64.b64encode(setup.bundle).decode()}
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes) -> Setup:
    """Decode hostile bytes.

    Raises:
        DecodeError: malformed, or a model of more than 2^30 values.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"setup: not JSON: {error}") from error
    if not isinstance(record, dict) or set(record) != set(Setup.__dataclass_fields__):
        raise DecodeError("setup: its fields are not those of a setup")
    if not isinstance(record["algorithm"], str) or not isinstance(record["model"], str):
        raise DecodeError("setup: algorithm and model must be strings")
    config = record["config"]
    if not isinstance(config, dict) or not all(type(value) in _KINDS for value in config.values()):
        raise DecodeError("setup: config must hold plain values")
    if type(record["seed"]) is not int or not 0 <= record["seed"] < 2**63:
        raise DecodeError("setup: seed must be a whole number from 0 to 2^63")
    try:
        bundle = base64.b64decode(record["bundle"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DecodeError("setup: bundle is not base64") from error
    names, shapes = _layout(record["names"], record["shapes"])
    return Setup(record["algorithm"], config, record["model"], names, shapes, record["seed"], bundle)


def _layout(names: Any, shapes: Any) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    if not isinstance(names, list) or not isinstance(shapes, list) or len(names) != len(shapes):
        raise DecodeError("setup: names and shapes do not fit together")
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DecodeError("setup: names must be different strings")
    for shape in shapes:
        if (
            not isinstance(shape, list)
            or len(shape) > 8
            or not all(type(n) is int and 0 < n <= MAX_VALUES for n in shape)
        ):
            raise DecodeError("setup: a shape is not a list of at most 8 positive numbers")
    if sum(math.prod(shape) for shape in shapes) > MAX_VALUES:
        raise DecodeError("setup: the model is too large")
    return tuple(names), tuple(tuple(shape) for shape in shapes)
