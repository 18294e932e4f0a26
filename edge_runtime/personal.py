"""A personal model as one file: what a device serves, what a run may collect, what deployable files are made of.

    32 bytes                SHA-256 of what follows
    a container (`compression/codec.py`) of
        head                JSON: whose model it is, of which run and round, how good it was on the device's own data
        a container of
            mask            which parameters are active (`compression/mask.py`); empty: all, or codes
            values          float32 of the active parameters; or the quantised model (`compression/quantize.py`)

It stands for itself: a model that is not built in has its graphs in it. Nothing in it is executable.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import bundle, setup
from edge_runtime.algorithm import Fitted, Quantised
from edge_runtime.compression import codec, mask, quantize
from edge_runtime.errors import DecodeError
from edge_runtime.setup import MAX_VALUES, ModelCard
from edge_runtime.tree import Flat, Layout

_FORMAT = 1
_TEXTS = ("run", "device", "algorithm", "data")
_MAX_CLASSES = 65_536


@dataclass(frozen=True)
class Origin:
    """Where a personal model comes from. It says nothing of the data but how many samples judged it."""

    run: str
    round: int
    """How many rounds of the run it has been through."""
    device: str
    algorithm: str
    class_names: tuple[str, ...]
    """In the order of the outputs; empty: not known."""
    accuracy: float
    """On the samples that the device holds out."""
    samples: int
    """How many those are."""
    data: str
    """Digest of them: accuracies on other samples are not compared."""


@dataclass(frozen=True, eq=False)
class Personal:
    """A personal model."""

    origin: Origin
    card: ModelCard
    values: Flat
    """All parameters [size], as the device uses them: what is masked is 0, what is quantised a centre."""
    active: NDArray[np.bool_] | None = None
    """Which of them are [size]; None: all."""
    quantised: Quantised | None = None
    """The same parameters as the codes that they are; None: they are not."""


def bare(card: ModelCard) -> ModelCard:
    """Leave out of a card what its model began as: a personal model has values of its own."""
    return dataclasses.replace(card, bundle=bundle.bare(card.bundle))


def encode(origin: Origin, card: ModelCard, fitted: Fitted, codes: Quantised | None = None) -> bytes:
    """Write the model that a client half gives, and the codes that it is if it is some; the inverse of `decode`."""
    head = {"format": _FORMAT, **vars(origin), "card": setup.card_record(card)}
    head |= {"bits": codes.bits if codes else 0, "quantised": codes.names if codes else []}
    sparse = codes is None and fitted.mask is not None and not fitted.mask.full
    bits = mask.encode(fitted.mask.bits(), card.layout.shapes) if sparse and fitted.mask else b""
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    body = codec.encode([text, codec.encode([bits, codes.data if codes else fitted.values])])
    return hashlib.sha256(body).digest() + body


def decode(data: bytes, most: int = MAX_VALUES) -> Personal:
    """Read hostile bytes as a personal model of at most `most` parameters.

    Raises:
        DecodeError: they are not one, or damaged.
    """
    text, packed = _open(data)
    about, card, form = _head(text)
    if card.layout.size > most:
        raise DecodeError(f"personal model: {card.layout.size} parameters, at most {most} are expected")
    match codec.decode(packed, card.layout.size, max_sections=2):
        case [bytes(bits), bytes() | np.ndarray() as held]:
            pass
        case _:
            raise DecodeError("personal model: it is not a mask and values")
    if form is not None:
        return _quantised(about, card, held, *form)
    active = mask.decode(bits, card.layout.size, card.layout.shapes) if bits else None
    count = card.layout.size if active is None else int(active.sum())
    if not isinstance(held, np.ndarray) or len(held) != count or not np.isfinite(held).all():
        raise DecodeError(f"personal model: it does not hold {count} finite values")
    if active is None:
        return Personal(about, card, held)
    values = np.zeros(card.layout.size, np.float32)
    values[active] = held
    return Personal(about, card, values, active)


def origin(data: bytes) -> Origin:
    """Read where hostile bytes say that a personal model comes from. Raises DecodeError as `decode`."""
    return _head(_open(data)[0])[0]


def _open(data: bytes) -> tuple[bytes, bytes]:
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise DecodeError("personal model: damaged, or none (its SHA-256 is another)")
    match codec.decode(data[32:], 0, max_sections=2):
        case [bytes(text), bytes(packed)]:
            return text, packed
        case _:
            raise DecodeError("personal model: its parts are not those of one")


def _quantised(about: Origin, card: ModelCard, held: Any, bits: int, names: tuple[str, ...]) -> Personal:
    if not isinstance(held, bytes):
        raise DecodeError("personal model: its codes are missing")
    quantised = Quantised(bits, names, held)
    return Personal(about, card, dense(quantised, card.layout), None, quantised)


def codes(quantised: Quantised, layout: Layout) -> tuple[list[quantize.Codes], NDArray[np.float32], Flat]:
    """Read codes, each tensor's [its size], centres [tensors, 2^bits] and the other values, in the layout's order.

    Raises:
        DecodeError: they are not those of a model of this layout.
    """
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    layers = tuple(sizes[name] for name in quantised.names)
    form = quantize.Form(quantised.bits, layers, layout.size - sum(layers))
    joined, centres, full = quantize.decode(quantised.data, form)
    return np.split(joined, np.cumsum(layers)[:-1]), centres, full


def dense(quantised: Quantised, layout: Layout) -> Flat:
    """Give the parameters [size] that codes stand for.

    Raises:
        DecodeError: they are not those of a model of this layout.
    """
    each, centres, full = codes(quantised, layout)
    values, others = np.empty(layout.size, np.float32), np.ones(layout.size, np.bool_)
    where = dict(zip(layout.names, layout.slices, strict=True))
    for name, part, row in zip(quantised.names, each, centres, strict=True):
        values[where[name]] = row[part]
        others[where[name]] = False
    values[others] = full
    return values


def _head(text: bytes) -> tuple[Origin, ModelCard, tuple[int, tuple[str, ...]] | None]:
    try:
        record = json.loads(text)
        if record.pop("format") != _FORMAT:
            raise DecodeError("personal model: of another version; update this program")
        card = setup.card(record.pop("card"))
        form = _form(record.pop("bits"), record.pop("quantised"), card.layout)
        return _origin(record), card, form
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise DecodeError(f"personal model: its head is malformed: {error}") from error


def _form(bits: Any, names: Any, layout: Layout) -> tuple[int, tuple[str, ...]] | None:
    if type(bits) is not int or not 0 <= bits <= quantize.MAX_BITS or not isinstance(names, list):
        raise ValueError("bits and names of what is quantised")
    if [name for name in layout.names if name in names] != names or bool(names) != bool(bits):
        raise ValueError("what is quantised is not what its model has")
    return (bits, tuple(names)) if bits else None


def _origin(record: dict[str, Any]) -> Origin:
    names = record["class_names"]
    if not isinstance(names, list) or len(names) > _MAX_CLASSES or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names")
    found = Origin(**{**record, "class_names": tuple(names)})
    if not all(isinstance(getattr(found, name), str) for name in _TEXTS):
        raise ValueError(f"{', '.join(_TEXTS)} must be texts")
    if type(found.round) is not int or type(found.samples) is not int or type(found.accuracy) is not float:
        raise ValueError("round, samples and accuracy must be numbers")
    return found


def same_model(one: ModelCard, other: ModelCard) -> bool:
    """Say whether cards are of the same model with the same graphs, whatever it began as."""
    if (one.name, one.layout, one.cut) != (other.name, other.layout, other.cut):
        return False
    if one.bundle == other.bundle or not (one.bundle and other.bundle):
        return one.bundle == other.bundle
    graphs = bundle.unpack(other.bundle).graphs
    return bundle.unpack(one.bundle, max(map(len, graphs.values()))).graphs == graphs
