"""What `bench wire` codes, and every way to code it: ours, general compressors, and what they are held against.

A subject is one thing that is sent, with its codings. Of these, one is `sent`: what the project puts on the wire, which
is the smallest of `ours`. A `general` one is a compressor at its strongest, given the same numbers in their plainest
form: masks as bits, codes and whole numbers as bytes, what stays float32 as it is.
"""

import importlib
import importlib.util
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

Array = NDArray[Any]

BARS: dict[tuple[str, str, str], int] = {
    ("cnn-wide", "mask", "density 0.5"): 136_700,
    ("cnn-wide", "mask", "density 0.2"): 97_100,
    ("cnn-wide", "mask", "density 0.1"): 60_600,
    ("cnn-wide", "mask", "density 0.05"): 34_400,
    ("cnn-wide", "random mask", "density 0.1"): 32,
    ("cnn-wide", "values", "density 0.1, step 0.25"): 47_300,
    ("cnn-wide", "codes", "2 bits"): 203_100,
    ("cnn-wide", "codes", "3 bits"): 369_700,
    ("cnn-wide", "codes", "4 bits"): 545_100,
}
"""The most bytes that a subject may take, by model, what and setting: what was reached on data of the same kind."""


@dataclass(frozen=True)
class Coding:
    """A way to code a subject."""

    name: str
    role: str
    """`sent`, `ours` or `general`."""
    encode: Callable[[], bytes]
    decode: Callable[[bytes], Array]
    took: Callable[[bytes], str] = lambda data: ""
    """Says of what is sent which coding it is."""


@dataclass(frozen=True)
class Subject:
    """One thing that is sent."""

    model: str
    what: str
    setting: str
    count: int
    """How many numbers it has."""
    dense_bytes: int
    """Of the model as float32, or of what else it stands for."""
    plain_bytes: int
    """Of the same numbers as a compressor is given them."""
    entropy_bytes: float | None
    same: Callable[[Array], bool]
    """Says whether a decoder has found what it should."""
    codings: Sequence[Coding]
    quality: Callable[[Array], dict[str, float]] = field(default=lambda back: {})
    """Says what a coding that loses something has lost."""

    @property
    def title(self) -> str:
        """Name it."""
        return f"{self.model}, {self.what}, {self.setting}"

    @property
    def bar_bytes(self) -> int | None:
        """Say how many bytes it may have at most; None: nothing is asked of it."""
        return BARS.get((self.model, self.what, self.setting))


def entropy_bytes(symbols: Array, sizes: Sequence[int]) -> float:
    """Compute the order-0 entropy of tensors laid end to end [sum of sizes], each with frequencies of its own.

    That is what a table for each tensor could reach if it cost nothing.
    """
    bits = 0.0
    for part in np.split(symbols, np.cumsum(sizes)[:-1]):
        counts = np.unique(part, return_counts=True)[1]
        bits -= float(counts @ np.log2(counts / len(part))) if len(part) else 0.0
    return bits / 8


def general(plain: bytes, back: Callable[[bytes], Array], form: str = "") -> Iterator[Coding]:
    """Give the general compressors for plain bytes, of which `back` makes the numbers; `form` ends their names."""
    squeeze, expand = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    made: list[tuple[str, Callable[[], bytes], Callable[[bytes], bytes]]] = [
        ("zstd-19", lambda: squeeze.compress(plain), expand.decompress),
        ("xz-9e", partial(_xz, plain), lzma.decompress),
    ]
    if importlib.util.find_spec("brotli"):
        brotli: Any = importlib.import_module("brotli")
        made.append(("brotli-11", partial(brotli.compress, plain, quality=11, lgwin=24), brotli.decompress))
    for name, encode, expanded in made:
        yield Coding(name + form, "general", encode, partial(_through, expanded, back))


def _through(first: Callable[[bytes], bytes], then: Callable[[bytes], Array], data: bytes) -> Array:
    return then(first(data))


def _xz(plain: bytes) -> bytes:
    """Compress as `xz -9e` does, but for a dictionary of 64 MiB, of which so little data would use nothing."""
    strongest = {"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_EXTREME | 9, "dict_size": max(len(plain), 1 << 12)}
    return lzma.compress(plain, check=lzma.CHECK_NONE, filters=[strongest])
