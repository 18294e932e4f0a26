"""Uniform quantisers of vectors: a value becomes a whole number of steps.

A vector is some tensors laid end to end, and each tensor has its own step, a float32. The value of a code c is
c * step: one product of two float32 numbers, the first exact (|c| <= 2^24), so that every machine that follows IEEE 754
finds the same bits. Steps have the 8 leading bits of a significand (bfloat16), and are sent as the upper half of the
float32: two bytes each, little-endian. None is below the smallest normal float32, 2^-126, since some processors take
what is smaller for zero. The step of a tensor of zeros is 0.

`quantise` takes a step relative to the root mean square of each tensor, and rounds to the nearest, half-way to even:
|x - Q(x)| <= step / 2, but for the float32 rounding of the product. With a generator it rounds up with probability
x / step - floor(x / step), so that the mean of Q(x) is x, and the error below one step (QSGD, arXiv 1610.02132).

`quantise_bits` has no more levels than bits can tell, and chooses the step:

    1       codes -1 and 1; the step is mean |x|, of all steps that of least squares (signSGD, arXiv 1901.09847)
    2 to 8  codes -m to m, m = 2^(b-1) - 1; what lies beyond m steps becomes m steps. Of 32 steps from max |x| / m down
            to 1/50 of that, the one with the least squares. An even number of levels, with none at zero, would have
            less error but more bytes: at 2 bits 1.4 times as many for .25 instead of .30 of a trained update's energy.

With a generator nothing may be cut off, or the mean of Q(x) would not be x: the step is max |x| / m, m = 1 for 1 bit.
At equal bytes `quantise` has less error than any of these, because the few large values stay whole.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression.errors import DecodeError

Vector = NDArray[np.float32]
Codes = NDArray[np.int32]

MOST_BITS = 8
_SMALLEST = 2.0**-126
_LARGEST = float(np.finfo(np.float32).max)
_MOST_CODE = 1 << 24
_TILE = 1 << 16
"""Values made wide at a time, so that float64 temporaries stay small beside a large tensor."""
_SAMPLE = 1 << 14
_CANDIDATES = tuple(math.pow(50, -i / 31) for i in range(32))


def quantise(
    values: Vector, sizes: Sequence[int], step: float, rng: np.random.Generator | None = None
) -> tuple[Vector, Codes]:
    """Quantise values [sum of sizes] with `step` times each tensor's root mean square; see `dequantise`.

    Args:
        values: tensors laid end to end.
        sizes: of the tensors.
        step: above 0, relative to the root mean square of a tensor's values.
        rng: rounds at random, so that the mean is right; None: to the nearest.

    Returns:
        Steps [tensors] and codes [sum of sizes].

    Raises:
        ValueError: a value is not finite, or a code would be above 2^24 or its value above what float32 holds.
    """
    if not 0 < step < np.inf:
        raise ValueError(f"uniform: a step must be above 0, not {step}")
    _check(values, sizes)
    steps, codes = np.zeros(len(sizes), np.float32), np.zeros(len(values), np.int32)
    for tensor, part, coded in _tensors(values, codes, sizes):
        steps[tensor] = _representable(step * _root_mean_square(part))
        _round(part, coded, steps[tensor], rng, _MOST_CODE)
    return steps, codes


def quantise_bits(
    values: Vector, sizes: Sequence[int], bits: int, rng: np.random.Generator | None = None
) -> tuple[Vector, Codes]:
    """Quantise values [sum of sizes] to the levels that 1 to 8 bits can tell; see `quantise`, also for `Raises`."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"uniform: codes have 1 to {MOST_BITS} bits, not {bits}")
    _check(values, sizes)
    steps, codes = np.zeros(len(sizes), np.float32), np.zeros(len(values), np.int32)
    most = 1 if bits == 1 else (1 << bits - 1) - 1
    for tensor, part, coded in _tensors(values, codes, sizes):
        if not part.any():
            continue
        if rng is not None:
            steps[tensor] = _representable(_top(part) / most, up=True)
        else:
            steps[tensor] = _representable(_mean_magnitude(part) if bits == 1 else _least_squares(part, most))
        if bits == 1:
            _take_signs(part, coded, steps[tensor], rng)
        else:
            _round(part, coded, steps[tensor], rng, most)
    return steps, codes


def dequantise(steps: Vector, codes: Codes, sizes: Sequence[int]) -> Vector:
    """Give the values [sum of sizes] of hostile codes [sum of sizes] and steps [tensors].

    Raises:
        DecodeError: a code is above 2^24, or a value above what float32 holds.
    """
    with np.errstate(over="ignore"):
        values = np.repeat(steps, sizes)
        values *= codes.astype(np.float32)
    if len(codes) and (max(int(codes.max()), -int(codes.min())) > _MOST_CODE or not np.isfinite(values).all()):
        raise DecodeError("uniform: a code or a value is too large")
    return values


def pack_steps(steps: Vector) -> bytes:
    """Pack steps [tensors] as `quantise` gives them, two bytes each; the inverse of `unpack_steps`."""
    return (steps.view(np.uint32) >> 16).astype("<u2").tobytes()


def unpack_steps(data: bytes, tensors: int) -> Vector:
    """Unpack hostile bytes into steps [tensors].

    Raises:
        DecodeError: another number of bytes, or a step that is negative, not finite, or neither normal nor 0.
    """
    if len(data) != 2 * tensors:
        raise DecodeError(f"steps: {len(data)} bytes where {2 * tensors} are expected")
    steps = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if np.signbit(steps).any() or not np.isfinite(steps).all() or ((steps > 0) & (steps < _SMALLEST)).any():
        raise DecodeError("steps: one is negative, not finite, or neither normal nor 0")
    return steps


def _check(values: Vector, sizes: Sequence[int]) -> None:
    if values.dtype != np.float32 or values.shape != (sum(sizes),):
        raise TypeError(f"uniform: {values.dtype} {values.shape} where float32 ({sum(sizes)},) is expected")
    if not np.isfinite(values).all():
        raise ValueError("uniform: a value is not finite")


def _tensors(values: Vector, codes: Codes, sizes: Sequence[int]) -> Iterator[tuple[int, Vector, Codes]]:
    """Give each tensor that is not empty: its number, its values, and where its codes go."""
    start = 0
    for tensor, size in enumerate(sizes):
        if size:
            yield tensor, values[start : start + size], codes[start : start + size]
        start += size


def _round(part: Vector, codes: Codes, step: np.float32, rng: np.random.Generator | None, most: int) -> None:
    """Write the codes of a tensor: at most +-`most`, or a ValueError where that is `_MOST_CODE`."""
    if not step:
        return
    largest = 0.0
    for start in range(0, len(part), _TILE):
        scaled = part[start : start + _TILE] / np.float64(step)
        scaled = np.rint(scaled) if rng is None else np.floor(scaled + rng.random(len(scaled)))
        largest = max(largest, float(np.abs(scaled).max()))
        codes[start : start + _TILE] = np.clip(scaled, -most, most)
    if largest > _MOST_CODE or not min(largest, most) * float(step) <= _LARGEST:
        raise ValueError("uniform: the step is too small for so large a value, or the value too large for any")


def _take_signs(part: Vector, codes: Codes, step: np.float32, rng: np.random.Generator | None) -> None:
    """Write codes -1 and 1: the sign, or at random so that the mean is right."""
    if rng is None:
        codes[:] = np.where(part < 0, -1, 1)
        return
    for start in range(0, len(part), _TILE):
        scaled = part[start : start + _TILE] / np.float64(step)
        codes[start : start + _TILE] = np.where(2 * rng.random(len(scaled)) - 1 < scaled, 1, -1)


def _root_mean_square(part: Vector) -> float:
    tiles = (part[start : start + _TILE].astype(np.float64) for start in range(0, len(part), _TILE))
    return math.sqrt(sum(float(tile @ tile) for tile in tiles) / len(part))


def _mean_magnitude(part: Vector) -> float:
    return float(np.mean(np.abs(part), dtype=np.float64))


def _top(part: Vector) -> float:
    return max(float(part.max()), -float(part.min()))


def _least_squares(part: Vector, most: int) -> float:
    """Give the best step of all candidates, on a sample of the values."""
    sample = part[:: -(-len(part) // _SAMPLE)].astype(np.float64)
    widest = _top(part) / most
    return min((widest * candidate for candidate in _CANDIDATES), key=lambda step: _error(sample, step, most))


def _error(sample: NDArray[np.float64], step: float, most: int) -> float:
    off: NDArray[np.float64] = sample - step * np.clip(np.rint(sample / step), -most, most)
    return float(off @ off)


def _representable(step: float, up: bool = False) -> np.float32:
    """Round a step to the nearest bfloat16 that is normal or 0; `up`: to none that is smaller."""
    if not step:
        return np.float32(0)
    fraction, exponent = math.frexp(max(step, _SMALLEST))
    whole = math.ceil(256 * fraction) if up else round(256 * fraction)
    rounded = math.ldexp(whole, exponent - 8)
    if rounded > _LARGEST:
        raise ValueError("uniform: no step is so large")
    return np.float32(rounded)
