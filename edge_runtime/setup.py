"""What a device must know of a run beside its tasks: one small JSON blob, fetched once per run.

It is hostile input to a device: `decode` checks every field and bounds the model's size before anything is allocated.
"""

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

from edge_runtime.coding import WIRE_VERSION
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Layout

MAX_VALUES = 1 << 30
_KINDS = (str, int, float, bool)


@dataclass(frozen=True)
class ModelCard:
    """What a device must know of a model to have it."""

    name: str
    layout: Layout
    bundle: bytes = b""
    """The model's graphs (`bundle.pack`), for one that is not built in or a part. Empty: the device has the model."""
    cut: bytes = b""
    """Which channels of the model called `name` this one has (`compression/submodel.py`). Empty: all."""

    @property
    def drawn(self) -> bool:
        """Say whether it begins as `models.initial` draws it from the run's seed, so that nobody need be told how."""
        return ":" not in self.name and (not self.bundle or bool(self.cut))


@dataclass(frozen=True)
class Setup:
    """A run as one of its devices sees it."""

    algorithm: str
    config: dict[str, str | int | float | bool]
    """The algorithm's configuration, kebab-case keys."""
    model: ModelCard
    """The model that all share."""
    seed: int
    private: tuple[str, ...] = ()
    """Tensors of that model that never leave a device (`wire.encode_up`)."""
    own: ModelCard | None = None
    """The device's own model, where it is another one."""
    seed_set: bytes = b""
    """Samples that all devices are to know (`seed_set.encode`). Empty: none."""
    up: str = "lossless"
    """How updates travel (`coding.py`)."""
    error_feedback: bool = True
    """Whether a device keeps what that loses, and adds it to its next update."""
    rounding: str = "nearest"
    """Or `stochastic`."""
    collect: bool = False
    """Whether a device hands over its personal model when the run is evaluated."""
    wire: int = WIRE_VERSION
    """Version of all that is coded."""


def encode(setup: Setup) -> bytes:
    """Encode to JSON; the inverse of `decode`."""
    record = {**vars(setup), "model": card_record(setup.model), "own": setup.own and card_record(setup.own)}
    record["seed_set"] = base64.b64encode(setup.seed_set).decode()
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def card_record(card: ModelCard) -> dict[str, Any]:
    """Write a card as plain values; the inverse of `card`."""
    bundle, cut = (base64.b64encode(data).decode() for data in (card.bundle, card.cut))
    return {"name": card.name, "names": card.layout.names, "shapes": card.layout.shapes, "bundle": bundle, "cut": cut}


def decode(data: bytes) -> Setup:
    """Decode hostile bytes.

    Raises:
        DecodeError: malformed, or a model of more than 2^30 values.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"setup: not JSON: {error}") from error
    if isinstance(record, dict) and record.get("wire", 0) != WIRE_VERSION:
        theirs = str(record.get("wire", 0))[:20]
        raise DecodeError(f"setup: the run speaks version {theirs} of the wire, this device {WIRE_VERSION}: update it")
    if not isinstance(record, dict) or set(record) != set(Setup.__dataclass_fields__):
        raise DecodeError("setup: its fields are not those of a setup")
    if not isinstance(record["algorithm"], str):
        raise DecodeError("setup: algorithm must be a string")
    config = record["config"]
    if not isinstance(config, dict) or not all(type(value) in _KINDS for value in config.values()):
        raise DecodeError("setup: config must hold plain values")
    if type(record["seed"]) is not int or not 0 <= record["seed"] < 2**63:
        raise DecodeError("setup: seed must be a whole number from 0 to 2^63")
    own = None if record["own"] is None else card(record["own"])
    model, private = card(record["model"]), record["private"]
    if not isinstance(private, list) or not all(name in model.layout.names for name in private):
        raise DecodeError("setup: private must be a list of the model's names")
    for name, kind in (("up", str), ("error_feedback", bool), ("rounding", str), ("collect", bool)):
        if type(record[name]) is not kind:
            raise DecodeError(f"setup: {name} must be a {kind.__name__}")
    seeds = _bytes(record, "seed_set")
    how = (record["up"], record["error_feedback"], record["rounding"], record["collect"])
    return Setup(record["algorithm"], config, model, record["seed"], tuple(private), own, seeds, *how)


def card(record: Any) -> ModelCard:
    """Read hostile plain values as a card.

    Raises:
        DecodeError: they are not one, or of a model of more than 2^30 values.
    """
    if not isinstance(record, dict) or set(record) != {"name", "names", "shapes", "bundle", "cut"}:
        raise DecodeError("setup: the fields of a model are not those of one")
    if not isinstance(record["name"], str):
        raise DecodeError("setup: a model's name must be a string")
    layout = _layout(record["names"], record["shapes"])
    return ModelCard(record["name"], layout, _bytes(record, "bundle"), _bytes(record, "cut"))


def _bytes(record: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(record[name], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DecodeError(f"setup: {name} is not base64") from error


def _layout(names: Any, shapes: Any) -> Layout:
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
    return Layout(tuple(names), tuple(tuple(shape) for shape in shapes))
