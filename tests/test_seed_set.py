import dataclasses
import hashlib
import json

import numpy as np
import pytest

from edge_runtime import seed_set
from edge_runtime.compression import codec
from edge_runtime.errors import DecodeError
from edge_runtime.seed_set import SeedSet

SEEDS = SeedSet(np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.array([2, 0, 1, 2]), ("cat", "dog", "Kuh"))


def parts(**change: object) -> bytes:
    """Encode a seed set of which some parts are wrong."""
    values = dict(zip(("names", "shape", "labels", "samples"), codec.decode(seed_set.encode(SEEDS), 24), strict=True))
    return codec.encode(list({**values, **change}.values()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_seed_set_survives_the_wire(kind: type) -> None:
    seeds = dataclasses.replace(SEEDS, x=(SEEDS.x * 2**20).astype(kind))

    again = seed_set.decode(seed_set.encode(seeds))

    assert again.x.dtype == kind
    assert np.array_equal(again.x, seeds.x)
    assert (again.y.tolist(), again.y.dtype, again.class_names) == ([2, 0, 1, 2], np.int64, seeds.class_names)
    assert again.identity == seeds.identity


def test_an_identity_is_of_contents_and_not_of_how_they_lie_in_memory() -> None:
    turned = dataclasses.replace(SEEDS, x=np.asfortranarray(SEEDS.x), y=SEEDS.y.astype(np.int32))

    assert turned.identity == SEEDS.identity
    assert seed_set.sizes(SEEDS.identity) == (4, 3)


def test_an_identity_has_the_literal_bytes_that_its_layout_says() -> None:
    seeds = SeedSet(np.ones((1, 1), np.float32), np.zeros(1, np.int64), ("a",))

    start = bytes.fromhex("0100000001000000")
    order = hashlib.sha256(b'["a"]')
    whole = hashlib.sha256(b'["a"]["<f4", [1, 1]]' + bytes(8) + bytes.fromhex("0000803f"))
    assert seeds.identity == start + order.digest()[:8] + whole.digest()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        codec.encode([b"[]", b"[]", b""]),
        parts(names=b"[]"),
        parts(names=b"{}"),
        parts(names=b"[1, 2, 3]"),
        parts(names=b"\xff"),
        parts(names=b"[" * 100_000),
        parts(names=b'["cat", "dog"]'),
        parts(names=3),
        parts(shape=b"[2, 4]"),
        parts(shape=b"[2.0, 3]"),
        parts(shape=b"[true, 6]"),
        parts(shape=b"[-2, -3]"),
        parts(shape=b"[0]"),
        parts(shape=b"[1,1,1,1,1,1,1,2,3]"),
        parts(shape=json.dumps([2**31 - 1] * 8).encode()),
        parts(labels=b""),
        parts(labels=bytes(15)),
        parts(labels=bytes(12)),
        parts(labels=b"\xff" * 16),
        parts(samples=b"1234567"),
        parts(samples=np.full(24, np.nan, np.float32)),
        parts(samples=np.full(24, np.inf, np.float32)),
        parts(samples=2.0),
        parts(labels=b"", samples=np.empty(0, np.float32)),
    ],
    ids=lambda data: data.hex()[:40],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        seed_set.decode(data)


def test_a_flipped_byte_is_refused_or_changes_the_identity() -> None:
    good = seed_set.encode(SEEDS)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x41
        try:
            assert seed_set.decode(bytes(bad)).identity != SEEDS.identity
        except DecodeError:
            continue


@pytest.mark.parametrize("identity", [b"", bytes(48), bytes(47), b"\xff" * 48])
def test_what_is_no_identity_is_refused(identity: bytes) -> None:
    with pytest.raises(DecodeError):
        seed_set.sizes(identity)


def test_nothing_differs_between_a_seed_set_and_itself() -> None:
    assert seed_set.difference(SEEDS.identity, SEEDS.identity) == ""
    assert seed_set.class_difference(SEEDS.class_names, SEEDS.class_names) == ""
    assert "no identity" in seed_set.difference(SEEDS.identity, b"")
