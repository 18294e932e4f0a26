"""A seed set: labelled samples that every device of a run knows, so that devices can compare what they say about them.

Knowing it means that its samples are public: whoever gives samples to a seed set has disclosed them.

An identity stands for it in every message (`SeedSet.identity`), little-endian:

    offset  size  content
    0       4     u32 number of samples
    4       4     u32 number of classes
    8       8     start of the SHA-256 over the class names in their order
    16      32    SHA-256 over class names, type and shape of the samples, labels and samples, all in their order
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import codec
from edge_runtime.errors import DecodeError

_IDENTITY = struct.Struct("<II8s32s")
_MAX_VALUES = 1 << 26
_MAX_CLASSES = 1 << 16


@dataclass(frozen=True)
class SeedSet:
    """Samples [samples, ...] (float32, or int64 if they are whole), class indices [samples], names of the classes."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    class_names: tuple[str, ...]

    @cached_property
    def identity(self) -> bytes:
        """Give the 48 bytes that stand for it."""
        names = json.dumps(self.class_names).encode()
        whole = hashlib.sha256(names + json.dumps([_kind(self.x), self.x.shape]).encode())
        whole.update(self.y.astype("<i8").tobytes())
        whole.update(self.x.astype(_kind(self.x), copy=False).tobytes())
        order = hashlib.sha256(names).digest()[:8]
        return _IDENTITY.pack(len(self.y), len(self.class_names), order, whole.digest())


def encode(seeds: SeedSet) -> bytes:
    """Encode to a container of names (JSON), sample shape (JSON), labels (u32) and samples; the inverse of `decode`."""
    flat = np.ascontiguousarray(seeds.x, _kind(seeds.x)).ravel()
    samples = flat if flat.dtype == np.float32 else flat.tobytes()
    labels = seeds.y.astype("<u4").tobytes()
    return codec.encode(
        [json.dumps(seeds.class_names).encode(), json.dumps(seeds.x.shape[1:]).encode(), labels, samples]
    )


def decode(data: bytes) -> SeedSet:
    """Decode hostile bytes.

    Raises:
        DecodeError: malformed, too large, a label without a class, or a sample that is not finite.
    """
    parts = codec.decode(data, max_values=_MAX_VALUES, max_sections=4)
    if len(parts) != 4 or not all(isinstance(part, bytes) for part in parts[:3]):
        raise DecodeError("seed set: not names, shape, labels and samples")
    names, shape = (_plain(part) for part in parts[:2])
    if not isinstance(names, list) or not 0 < len(names) <= _MAX_CLASSES or not all(type(n) is str for n in names):
        raise DecodeError("seed set: its class names are not a list of texts")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise DecodeError("seed set: the shape of a sample is not a list of at most 8 positive numbers")
    y = _array(parts[2], "<u4", "labels").astype(np.int64)
    x = parts[3] if isinstance(parts[3], np.ndarray) else _array(parts[3], "<i8", "samples")
    if not len(y) or len(x) != len(y) * math.prod(shape):
        raise DecodeError(f"seed set: {len(x)} values do not make {len(y)} samples of shape {tuple(shape)}")
    if y.max() >= len(names) or not np.isfinite(x).all():
        raise DecodeError("seed set: a label without a class, or a value that is not finite")
    return SeedSet(x.reshape(-1, *shape), y, tuple(names))


def sizes(identity: bytes) -> tuple[int, int]:
    """Read from an identity how many samples and classes a seed set has.

    Raises:
        DecodeError: it is none, or of a set that is empty or too large.
    """
    if len(identity) != _IDENTITY.size:
        raise DecodeError(f"seed set: an identity has {_IDENTITY.size} bytes, not {len(identity)}")
    samples, classes, _, _ = _IDENTITY.unpack(identity)
    if not samples or not classes or samples * classes > _MAX_VALUES:
        raise DecodeError(f"seed set: {samples} samples of {classes} classes")
    return samples, classes


def difference(mine: bytes, theirs: bytes) -> str:
    """Say what differs between the seed sets that two identities stand for, mine first; empty: nothing."""
    if mine == theirs:
        return ""
    if len(theirs) != _IDENTITY.size:
        return f"{len(theirs)} bytes are no identity of a seed set"
    here, there = _IDENTITY.unpack(mine), _IDENTITY.unpack(theirs)
    if here[1] != there[1]:
        return f"number of classes: {here[1]} here, {there[1]} there"
    if here[2] != there[2]:
        return "names or order of the classes"
    if here[0] != there[0]:
        return f"number of samples: {here[0]} here, {there[0]} there"
    return f"samples, labels or their order: SHA-256 {here[3].hex()[:8]}... here, {there[3].hex()[:8]}... there"


def class_difference(seeds: tuple[str, ...], own: tuple[str, ...]) -> str:
    """Say how the classes of a seed set differ from those of a device's data; empty: not at all."""
    if len(seeds) != len(own):
        return f"number of classes: {len(seeds)} in the seed set, {len(own)} in this device's data"
    for place, (wanted, found) in enumerate(zip(seeds, own, strict=True)):
        if wanted != found:
            return f"order of the classes: class {place} is {wanted!r} in the seed set, {found!r} in this device's data"
    return ""


def _kind(x: NDArray[Any]) -> str:
    return "<f4" if x.dtype.kind == "f" else "<i8"


def _plain(data: Any) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"seed set: not JSON: {error}") from error


def _array(data: Any, kind: str, what: str) -> NDArray[Any]:
    if not isinstance(data, bytes) or len(data) % np.dtype(kind).itemsize:
        raise DecodeError(f"seed set: its {what} are cut off")
    return np.frombuffer(data, kind)
