"""Quantisers of a layer's weights to few values, and a quantised model's bytes.

A layer has a codebook: m = 2^b centres c_1 <= ... <= c_m, sorted. The hard quantiser Q_c takes a value to its nearest
centre; half-way between two, to the lower one. Its relaxation (QuPeD, arXiv 2107.13892, recalled) with steepness P is

    Q~_c(x) = c_1 + sum_{r=2..m} (c_r - c_{r-1}) s_r,    s_r = sigmoid(P (x - (c_r + c_{r-1}) / 2)),

which rises with x from c_1 to c_m and tends to Q_c as P grows (but half-way between two centres it stays there).

    dQ~/dx   = sum_r P (c_r - c_{r-1}) s_r (1 - s_r)
    dQ~/dc_r = [s_r - (c_r - c_{r-1}) P/2 s_r (1 - s_r)] - [s_{r+1} + (c_{r+1} - c_r) P/2 s_{r+1} (1 - s_{r+1})],

where the first bracket is 1 for r = 1, and the second 0 for r = m; with x they sum to 1. With P infinite dQ~/dx is 0,
and dQ~/dc_r is 1 where Q_c(x) is c_r: a centre's derivative is the sum over its members. Which centre a value has is
always an integer, its code, and never found by comparing floats, so that equal centres share no members.

A quantised model is, little-endian and without a head (sizes and b are known to both sides):

    codes               b bits each, lowest bit first, those of all layers end to end; zeros fill up the last byte
    codebooks           m float32 for each layer, rising
    the other values    float32

A layer's codes can also be sent by themselves, near their entropy (`encode_codes`). One byte names the coding, then:

    0   the codes in b bits each, as above
    1   the codes as symbols (`entropy.py`)
    2   the codes by the layer's structure (`structured.py`)
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import entropy, structured
from edge_runtime.compression.errors import DecodeError

Values = NDArray[np.floating[Any]]
Codes = NDArray[np.uint8]

MAX_BITS = 8


def initial(values: Values, bits: int) -> Values:
    """Choose the first 2^bits centres for a layer's values [n], as the authors' code does.

    Evenly from the smallest to the largest; of two, the means of the negative and of the other values (the smallest,
    or the largest, where there are none).
    """
    if bits > 1:
        return np.linspace(values.min(), values.max(), 1 << bits, dtype=values.dtype)
    negative = values < 0
    low = values[negative].mean() if negative.any() else values.min()
    high = values[~negative].mean() if not negative.all() else values.max()
    return np.array([low, high], values.dtype)


def assign(values: Values, centres: Values, by_sign: bool = False) -> Codes:
    """Give every value [n] the code of its nearest centre [m, sorted]; half-way, that of the lower one.

    `by_sign`: of two centres the lower one to what is negative, however near the other is (the authors' code).
    """
    if by_sign:
        return (values >= 0).astype(np.uint8)
    wide = centres.astype(np.float64)  # in which the middle of two float32 is exact
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values, side="left").astype(np.uint8)


def soften(values: Values, centres: Values, steepness: float, by_sign: bool = False) -> Values:
    """Compute Q~ of values [n] for centres [m, sorted]; with an infinite steepness Q (and `by_sign` see `assign`)."""
    if np.isinf(steepness):
        return centres[assign(values, centres, by_sign)]
    soft = np.full_like(values, centres[0])
    for low, high in itertools.pairwise(centres):
        soft += (high - low) * _sigmoid(values, low, high, steepness)[0]
    return soft


def pull_back(
    values: Values, centres: Values, steepness: float, slope: Values, by_sign: bool = False
) -> tuple[Values, Values]:
    """Take d loss / d Q~ [n] back to d loss / d values [n] and d loss / d centres [m]; see `soften`."""
    if np.isinf(steepness):
        return np.zeros_like(values), members_sum(assign(values, centres, by_sign), slope, len(centres))
    to_values, to_centres = np.zeros_like(values), np.zeros_like(centres)
    to_centres[0] = slope.sum()
    for r, (low, high) in enumerate(itertools.pairwise(centres)):
        height, rise = _sigmoid(values, low, high, steepness)
        rise *= high - low
        to_values += rise
        up, spike = slope @ height, slope @ rise / 2
        to_centres[r] -= up + spike
        to_centres[r + 1] += up - spike
    return to_values * slope, to_centres


def _sigmoid(values: Values, low: Any, high: Any, steepness: float) -> tuple[Values, Values]:
    """Compute sigmoid(P (x - middle)) and its derivative by x; no exponential overflows."""
    with np.errstate(over="ignore", under="ignore"):  # far from the middle both are exactly what they tend to
        distance = steepness * (values - (low + high) / 2)
        small = np.exp(-np.abs(distance))
        height = np.where(distance >= 0, values.dtype.type(1), small) / (1 + small)
        return height, steepness * small / (1 + small) ** 2


def members_sum(codes: Codes, values: Values, size: int) -> Values:
    """Sum the values [n] that have each code [size]."""
    return np.bincount(codes, values, size).astype(values.dtype)


@dataclass(frozen=True)
class Form:
    """What both sides know of a quantised model: bits of a code, sizes of its layers, number of its other values.

    With 0 bits nothing is quantised: layers are float32 as they are, and there are no codebooks.
    """

    bits: int
    layers: tuple[int, ...]
    full: int

    @property
    def centres(self) -> int:
        """Count the centres of a layer."""
        return 1 << self.bits if self.bits else 0

    @property
    def code_bytes(self) -> int:
        """Count the bytes of all codes."""
        return -(-self.bits * sum(self.layers) // 8)

    @property
    def size_bytes(self) -> int:
        """Count the bytes of the whole model: ceil(b n / 8) + 4 (m layers + others)."""
        plain = self.full if self.bits else self.full + sum(self.layers)
        return self.code_bytes + 4 * (self.centres * len(self.layers) + plain)


def size_bytes(bits: int, layers: Sequence[int], full: int) -> int:
    """Count the bytes of a model with layers of these sizes, and `full` other values. Activations are not in it."""
    return Form(bits, tuple(layers), full).size_bytes


def encode(form: Form, codes: Codes, centres: NDArray[np.float32], full: NDArray[np.float32]) -> bytes:
    """Encode a quantised model; the inverse of `decode`.

    Args:
        form: what the other side knows (bits > 0).
        codes: of all layers, end to end [sum of layers].
        centres: sorted [layers, m].
        full: the other values [full].
    """
    return pack(codes, form.bits) + centres.astype("<f4").tobytes() + full.astype("<f4").tobytes()


def decode(data: bytes, form: Form) -> tuple[Codes, NDArray[np.float32], NDArray[np.float32]]:
    """Decode hostile bytes into codes [sum of layers], centres [layers, m] and the other values [full].

    Raises:
        DecodeError: not a model of this form, unsorted centres, or a value that is not finite.
    """
    if len(data) != form.size_bytes:
        raise DecodeError(f"quantised model: {len(data)} bytes where {form.size_bytes} are expected")
    codes = unpack(data[: form.code_bytes], sum(form.layers), form.bits)
    floats = np.frombuffer(data, "<f4", offset=form.code_bytes).astype(np.float32)
    if not np.isfinite(floats).all():
        raise DecodeError("quantised model: a value is not finite")
    cut = form.centres * len(form.layers)
    centres = floats[:cut].reshape(len(form.layers), form.centres)
    if (centres[:, 1:] < centres[:, :-1]).any():
        raise DecodeError("quantised model: its centres are not sorted")
    return codes, centres, floats[cut:]


def pack(codes: Codes, bits: int) -> bytes:
    """Pack codes below 2^bits, lowest bit first; the inverse of `unpack`."""
    digits = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(digits, bitorder="little").tobytes()


def unpack(data: bytes, count: int, bits: int) -> Codes:
    """Unpack hostile bytes into `count` codes below 2^bits.

    Raises:
        DecodeError: another number of bytes, or the last is filled up with other than zeros.
    """
    if len(data) != -(-count * bits // 8):
        raise DecodeError(f"codes: {len(data)} bytes where {-(-count * bits // 8)} are expected")
    if not data:
        return np.zeros(count, np.uint8)
    digits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if digits[count * bits :].any():
        raise DecodeError("codes: they are filled up with other than zeros")
    return np.packbits(digits[: count * bits].reshape(count, bits), axis=1, bitorder="little")[:, 0]


def encode_codes(codes: Codes, bits: int, shape: tuple[int, ...]) -> bytes:
    """Encode the codes [product of shape] below 2^bits of one layer, as the smallest; the inverse of `decode_codes`."""
    codings = [b"\x00" + pack(codes, bits), b"\x01" + entropy.encode(codes, 1 << bits)]
    if (by_structure := structured.encode(codes, shape, 1 << bits)) is not None:
        codings.append(b"\x02" + by_structure)
    return min(codings, key=len)


def decode_codes(data: bytes, bits: int, shape: tuple[int, ...]) -> Codes:
    """Decode hostile bytes into the codes [product of shape] below 2^bits of one layer.

    Raises:
        DecodeError: they are not such codes.
    """
    count, alphabet = math.prod(shape), 1 << bits
    match data[:1]:
        case b"\x00":
            return unpack(data[1:], count, bits)
        case b"\x01":
            return entropy.decode(data[1:], count, alphabet).astype(np.uint8)
        case b"\x02":
            return structured.decode(data[1:], shape, alphabet)
        case _:
            raise DecodeError(f"codes: no layer is coded as {data[:1]!r}")
