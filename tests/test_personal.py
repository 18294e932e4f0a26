"""A personal model as a file: what is read is what was written, and nothing else is let in."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from edge_runtime import bundle, models, personal
from edge_runtime.algorithm import Fitted, Model, Quantised
from edge_runtime.compression import codec, quantize
from edge_runtime.errors import DecodeError
from edge_runtime.mask import Mask, from_bits
from edge_runtime.personal import Origin
from edge_runtime.setup import ModelCard

SPEC = models.find("watch-cnn")
LAYOUT = SPEC.layout
CARD = ModelCard(SPEC.name, LAYOUT)
ORIGIN = Origin("a" * 32, 7, "gateway-7", "fedspa", ("walk", "run"), 0.875, 64, "c" * 16)
VALUES = models.initial(SPEC, 3)


def fitted(values: np.ndarray, mask: Mask | None = None) -> Fitted:
    return Fitted(Model(LAYOUT, NoOracle()), values, mask)  # type: ignore[arg-type]


class NoOracle:
    """Stands where a model is not evaluated."""

    def vjp(self, params: object, x: object) -> object:
        raise AssertionError


WHOLE = personal.encode(ORIGIN, CARD, fitted(VALUES))


def quantised(bits: int) -> Quantised:
    name = next(name for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True) if len(shape) > 1)
    part = VALUES[LAYOUT.slices[LAYOUT.names.index(name)]]
    centres = quantize.initial(part, bits)[None]
    form = quantize.Form(bits, (len(part),), LAYOUT.size - len(part))
    others = np.delete(VALUES, np.r_[LAYOUT.slices[LAYOUT.names.index(name)]])
    return Quantised(bits, (name,), quantize.encode(form, quantize.assign(part, centres[0]), centres, others))


def sealed(text: bytes, bits: bytes = b"", values: bytes | np.ndarray = VALUES) -> bytes:
    body = codec.encode([text, codec.encode([bits, values])])
    return hashlib.sha256(body).digest() + body


def head(**changes: object) -> bytes:
    text, _ = codec.decode(WHOLE[32:], 0)
    assert isinstance(text, bytes)
    return json.dumps(json.loads(text) | changes).encode()


def test_all_parameters_come_back_bit_for_bit() -> None:
    back = personal.decode(WHOLE)
    assert (back.origin, back.card) == (ORIGIN, CARD)
    assert personal.origin(WHOLE) == ORIGIN
    assert back.values.tobytes() == VALUES.tobytes()
    assert back.active is None
    assert back.quantised is None


def test_of_a_masked_model_only_what_is_active_is_written_and_the_rest_is_zero() -> None:
    bits = np.random.default_rng(0).random(LAYOUT.size) < 0.1
    mask = from_bits(LAYOUT, bits)
    data = personal.encode(ORIGIN, CARD, fitted(mask.pack(VALUES), mask))
    back = personal.decode(data)
    assert back.active is not None
    assert (back.active == bits).all()
    assert back.values.tobytes() == np.where(bits, VALUES, np.float32(0)).tobytes()
    assert len(data) < len(WHOLE) / 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_come_back_as_codes_and_as_the_values_that_they_stand_for(bits: int) -> None:
    codes = quantised(bits)
    dense = personal.dense(codes, LAYOUT)
    back = personal.decode(personal.encode(ORIGIN, CARD, fitted(dense), codes))
    assert back.quantised == codes
    assert back.values.tobytes() == dense.tobytes()
    assert len(np.unique(dense[LAYOUT.slices[LAYOUT.names.index(codes.names[0])]])) <= 1 << bits


def test_a_model_that_is_not_built_in_has_its_graphs_with_it() -> None:
    card = dataclasses.replace(CARD, name="mine:net", bundle=bundle.pack(bundle.built_in("watch-cnn")))
    back = personal.decode(personal.encode(ORIGIN, card, fitted(VALUES)))
    assert bundle.unpack(back.card.bundle).layout == LAYOUT


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_changed_byte_is_told(place: int) -> None:
    data = bytearray(WHOLE)
    data[place] ^= 1
    with pytest.raises(DecodeError, match="damaged"):
        personal.decode(bytes(data))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "another version"),
        ({"bits": 9}, "bits and names"),
        ({"bits": 2, "quantised": ["nothing"]}, "is not what its model has"),
        ({"bits": 2, "quantised": []}, "is not what its model has"),
        ({"class_names": [1]}, "class_names"),
        ({"class_names": "walk"}, "class_names"),
        ({"round": "7"}, "must be numbers"),
        ({"accuracy": 1}, "must be numbers"),
        ({"device": 7}, "must be texts"),
        ({"more": 1}, "malformed"),
        ({"card": {}}, "malformed"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        personal.decode(sealed(head(**changes)))


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{", b"[" * 100_000])
def test_a_head_that_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError, match="personal model"):
        personal.decode(sealed(text))


def test_values_that_do_not_fit_the_model_are_refused() -> None:
    for values in (VALUES[:-1], np.full_like(VALUES, np.nan), b"codes"):
        with pytest.raises(DecodeError, match="finite values"):
            personal.decode(sealed(head(), values=values))


def test_a_model_larger_than_expected_is_refused_before_it_is_made() -> None:
    huge = {"name": "huge", "names": ["w"], "shapes": [[1 << 29]], "bundle": "", "cut": ""}
    with pytest.raises(DecodeError, match="at most 1000 are expected"):
        personal.decode(sealed(head(card=huge), values=np.zeros(1, np.float32)), 1000)


def test_codes_of_another_size_are_refused() -> None:
    codes = quantised(2)
    with pytest.raises(DecodeError, match="bytes where"):
        personal.decode(sealed(head(bits=2, quantised=list(codes.names)), values=codes.data[:-1]))
