"""The values of `bench wire`: an update on its mask, without loss and in steps."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from edge_runtime.compression import codec, floats, integers, uniform
from edge_runtime.coordinator.wire_material import active, active_rows
from edge_runtime.coordinator.wire_subjects import Array, Coding, Subject, entropy_bytes, general
from edge_runtime.coordinator.wire_tensors import tables
from edge_runtime.coordinator.wire_train import Sample

STEPS = (0.25, 0.5, 1.0)
"""In root mean squares of a tensor."""
_FORMS = ("zeros", "bits", "zstd", "classes")
"""Of `integers.py`, by their number."""


def subjects(model: str, setting: str, sample: Sample) -> Iterator[Subject]:
    """Give a sparse sample's update."""
    yield _lossless(model, setting, sample)
    yield _bf16(model, setting, sample)
    yield from (_steps(model, setting, sample, step) for step in STEPS)


def _lossless(model: str, setting: str, sample: Sample) -> Subject:
    values, sizes = sample["update"], active(sample)
    plain = values.tobytes()
    return Subject(
        model,
        "values",
        f"{setting}, lossless",
        count=len(values),
        dense_bytes=4 * len(sample["mask"]),
        plain_bytes=len(plain),
        entropy_bytes=None,
        same=lambda found: found.tobytes() == plain,
        codings=(
            Coding("byte planes", "ours", lambda: codec.encode([values]), partial(_vector, size=len(values))),
            Coding(
                "coded exponents",
                "sent",
                lambda: floats.encode_lossless(values, sizes),
                lambda data: floats.decode_lossless(data, sizes),
            ),
            *general(plain, lambda data: np.frombuffer(data, np.float32)),
        ),
    )


def _vector(data: bytes, size: int) -> Array:
    return np.asarray(codec.decode(data, size)[0])


def _bf16(model: str, setting: str, sample: Sample) -> Subject:
    values, sizes = sample["update"], active(sample)
    rounded = floats.round_to_bf16(values)
    plain = (rounded.view(np.uint32) >> 16).astype("<u2")
    return Subject(
        model,
        "values",
        f"{setting}, bfloat16",
        count=len(values),
        dense_bytes=4 * len(sample["mask"]),
        plain_bytes=plain.nbytes,
        entropy_bytes=None,
        same=partial(np.array_equal, rounded),
        codings=(
            Coding(
                "coded exponents",
                "sent",
                lambda: floats.encode_bf16(values, sizes),
                lambda data: floats.decode_bf16(data, sizes),
            ),
            *general(plain.tobytes(), _widened),
        ),
        quality=partial(_relative_error, values),
    )


def _widened(data: bytes) -> Array:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _relative_error(values: Array, found: Array) -> dict[str, float]:
    return {"relative_error": float(np.linalg.norm(found - values) / np.linalg.norm(values))}


def _steps(model: str, setting: str, sample: Sample, step: float) -> Subject:
    """Give an update in whole numbers of steps; compressors get the steps and these, a byte each where they fit."""
    values, cut, rows = sample["update"], active(sample), active_rows(sample)
    steps, codes = uniform.quantise(values, cut, step)
    head, smallest = uniform.pack_steps(steps), int(codes.min())
    narrow = codes.astype(np.int8 if np.abs(codes).max() < 128 else np.int16)

    def found(whole: Array) -> Array:
        return uniform.dequantise(steps, whole.astype(np.int32), cut)

    def coding(name: str, role: str, parts: list[int]) -> Coding:
        def encode() -> bytes:
            own, whole = uniform.quantise(values, cut, step)
            return uniform.pack_steps(own) + integers.encode(whole, parts)

        def decode(data: bytes) -> Array:
            own = uniform.unpack_steps(data[: len(head)], len(cut))
            return uniform.dequantise(own, integers.decode(data[len(head) :], parts), cut)

        return Coding(name, role, encode, decode, lambda data: f"{_FORMS[data[len(head)]]}, {name}")

    above = codes - smallest
    return Subject(
        model,
        "values",
        f"{setting}, step {step:g}",
        count=len(values),
        dense_bytes=4 * len(sample["mask"]),
        plain_bytes=values.nbytes,
        entropy_bytes=entropy_bytes(codes, cut),
        same=partial(np.array_equal, found(codes)),
        codings=(
            tables(above, int(above.max()) + 1, cut, lambda symbols: found(symbols.astype(np.int32) + smallest)),
            coding("by tensor", "ours", cut),
            coding("by row", "sent", rows),
            *general(head + narrow.tobytes(), lambda data: found(np.frombuffer(data[len(head) :], narrow.dtype))),
        ),
        quality=partial(_relative_error, values),
    )
