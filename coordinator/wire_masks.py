"""The masks of `bench wire`: whole, at random, and what changes in them."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from edge_runtime.compression import bitfield, bitplanes, frames, gaps
from edge_runtime.compression import mask as masks
from edge_runtime.coordinator.wire_material import Shapes, active, shapes, sizes
from edge_runtime.coordinator.wire_subjects import Array, Coding, Subject, entropy_bytes, general
from edge_runtime.coordinator.wire_tensors import STRUCTURES, structures, tables
from edge_runtime.coordinator.wire_train import Sample

_STRUCTURED = 3
_FORMS = ("bitmap", "zstd", "gaps", "", "zeros", "ones")
"""Of `bitplanes.py`, by their number."""
_CHANGES = {0: "nothing", 1: "new mask", 2: "places in context"}
"""What `mask.encode_change` may write."""
_SEED = bytes(masks.SEED_BYTES)


def subjects(model: str, setting: str, sample: Sample) -> Iterator[Subject]:
    """Give a sparse sample's masks."""
    yield _mask(model, setting, sample)
    yield _random_mask(model, setting, sample)
    yield _change(model, setting, sample)
    yield _regrowth(model, setting, sample)


def _subject(model: str, what: str, setting: str, found: Array, entropy: float, codings: list[Coding]) -> Subject:
    return Subject(
        model,
        what,
        setting,
        count=len(found),
        dense_bytes=4 * len(found),
        plain_bytes=-(-len(found) // 8),
        entropy_bytes=entropy,
        same=partial(np.array_equal, found),
        codings=codings,
    )


def _unpacked(data: bytes, size: int) -> Array:
    return np.unpackbits(np.frombuffer(data, np.uint8))[:size].astype(np.bool_)


def _mask(model: str, setting: str, sample: Sample) -> Subject:
    bits: Array = sample["mask"]
    dims, size, back = shapes(sample), len(bits), partial(_unpacked, size=len(bits))
    plain = np.packbits(bits).tobytes()
    codings = [
        Coding("bitmap", "ours", lambda: np.packbits(bits).tobytes(), back),
        Coding("zstd", "ours", lambda: frames.pack(plain), lambda data: back(frames.unpack(data, len(plain)))),
        Coding("gaps", "ours", partial(_gaps, bits), partial(_from_gaps, size=size)),
        tables(bits, 2, sizes(sample), lambda symbols: symbols.astype(np.bool_)),
        *structures(bits.view(np.uint8), dims, 2, lambda symbols: symbols.astype(np.bool_)),
        Coding(
            "selected",
            "sent",
            lambda: masks.encode(bits, dims),
            lambda data: masks.decode(data, size, dims),
            lambda data: _largest(bits, dims),
        ),
        *general(plain, back),
    ]
    return _subject(model, "mask", setting, bits, entropy_bytes(bits, sizes(sample)), codings)


def _gaps(bits: Array) -> bytes:
    places = np.flatnonzero(bits)
    return bitfield.pack_number(len(places)) + gaps.encode([places])


def _from_gaps(data: bytes, size: int) -> Array:
    reader = bitfield.Reader(data)
    bits = np.zeros(size, np.bool_)
    bits[gaps.decode(reader, [reader.take_number()], [size])[0]] = True
    return bits


def _largest(bits: Array, dims: Shapes) -> str:
    """Name the coding that the largest tensor takes."""
    ends = np.cumsum([math.prod(shape) for shape in dims])[:-1]
    part, shape = max(zip(np.split(bits, ends), dims, strict=True), key=lambda pair: len(pair[0]))
    data = bitplanes.encode(part, shape)
    return STRUCTURES[data[1]] if data[0] == _STRUCTURED else _FORMS[data[0]]


def _random_mask(model: str, setting: str, sample: Sample) -> Subject:
    cut, counts = sizes(sample), active(sample)
    bits = masks.from_seed(_SEED, cut, counts)
    codings = [
        Coding("seed", "sent", lambda: _SEED, lambda data: masks.from_seed(data, cut, counts)),
        *general(np.packbits(bits).tobytes(), partial(_unpacked, size=len(bits))),
    ]
    return _subject(model, "random mask", setting, bits, entropy_bytes(bits, cut), codings)


def _change(model: str, setting: str, sample: Sample) -> Subject:
    """Give a mask's change; its entropy is that of two sets, as both sides know the old mask."""
    dims, old, new = shapes(sample), sample["mask"], sample["next"]
    changed: Array = old ^ new
    size = len(old)
    codings = [
        Coding("new mask", "ours", lambda: masks.encode(new, dims), lambda data: masks.decode(data, size, dims)),
        Coding("XOR", "ours", lambda: masks.encode(changed, dims), lambda data: old ^ masks.decode(data, size, dims)),
        Coding(
            "selected",
            "sent",
            lambda: masks.encode_change(old, new, dims),
            lambda data: masks.decode_change(data, old, dims),
            lambda data: _CHANGES[data[0]],
        ),
        *general(np.packbits(changed).tobytes(), lambda data: old ^ _unpacked(data, size)),
    ]
    return _subject(model, "mask change", setting, new, _two_sets(changed, old), codings)


def _two_sets(changed: Array, old: Array) -> float:
    return sum(entropy_bytes(part, [len(part)]) for part in (changed[old], changed[~old]))


def _regrowth(model: str, setting: str, sample: Sample) -> Subject:
    """Give what is dropped where a seed says what grows in its place: of the active places only."""
    dims, old = shapes(sample), sample["mask"]
    dropped: Array = old & ~sample["next"]
    among = dropped[old]
    new = masks.regrow(old, dropped, dims, _SEED)

    def grown(data: bytes) -> Array:
        found = np.zeros(len(old), np.bool_)
        found[old] = _unpacked(data, len(among))
        return masks.regrow(old, found, dims, _SEED)

    codings = [
        Coding(
            "places in context",
            "sent",
            lambda: masks.encode_regrowth(old, dropped, dims),
            lambda data: masks.decode_change(data, old, dims, _SEED),
        ),
        *general(np.packbits(among).tobytes(), grown),
    ]
    return _subject(model, "mask change, grown from a seed", setting, new, entropy_bytes(among, [len(among)]), codings)
