"""The subjects of `bench wire`: what is sent of a sample of training, and the codings that the project has for it."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import numpy as np

from edge_runtime import losses
from edge_runtime.compression import posteriors, quantize
from edge_runtime.coordinator import wire_masks, wire_values
from edge_runtime.coordinator.wire_material import Recipe, shapes, sizes
from edge_runtime.coordinator.wire_subjects import Array, Coding, Subject, entropy_bytes, general
from edge_runtime.coordinator.wire_tensors import STRUCTURES, per_tensor, structures, tables, unframed
from edge_runtime.coordinator.wire_train import Sample

_POSTERIOR_BITS = (5, 6, 8)
_ROWS = 2000
"""Of posteriors."""
_FORMS = ("packed", "rANS")
"""Of `quantize.encode_codes`, by their number; the next is by structure."""


def subjects(recipe: Recipe, sample: Sample) -> Iterator[Subject]:
    """Give what is sent of a sample."""
    model = recipe.model.rpartition(":")[2]
    setting = f"density {recipe.density:g}"
    match recipe.kind:
        case "dense":
            yield from (_outputs(model, bits, sample) for bits in _POSTERIOR_BITS)
        case "sparse":
            yield from wire_masks.subjects(model, setting, sample)
            yield from wire_values.subjects(model, setting, sample)
        case _:
            yield _codes(model, recipe.bits, sample)


def _codes(model: str, bits: int, sample: Sample) -> Subject:
    codes, dims = sample["codes"], shapes(sample)
    plain = quantize.pack(codes, bits)
    back = partial(quantize.unpack, count=len(codes), bits=bits)

    def largest(data: bytes) -> str:
        part = unframed(data, len(dims))[int(np.argmax(sizes(sample)))]
        return STRUCTURES[part[1]] if part[0] == len(_FORMS) else _FORMS[part[0]]

    sent = per_tensor(
        "selected",
        codes,
        dims,
        lambda part, shape: quantize.encode_codes(part, bits, shape),
        lambda data, shape: quantize.decode_codes(data, bits, shape),
    )
    return Subject(
        model,
        "codes",
        f"{bits} bits",
        count=len(codes),
        dense_bytes=4 * len(codes),
        plain_bytes=len(plain),
        entropy_bytes=entropy_bytes(codes, sizes(sample)),
        same=partial(np.array_equal, codes),
        codings=(
            Coding("packed", "ours", lambda: quantize.pack(codes, bits), back),
            tables(codes, 1 << bits, sizes(sample), lambda symbols: symbols),
            *structures(codes, dims, 1 << bits, lambda symbols: symbols),
            dataclasses.replace(sent, role="sent", took=largest),
            *general(codes.tobytes(), lambda data: np.frombuffer(data, np.uint8)),
            *general(plain, back, " of bits"),
        ),
    )


def _outputs(model: str, bits: int, sample: Sample) -> Subject:
    """Give a model's posteriors; a compressor gets the same levels (`posteriors.py`), a byte each."""
    outputs = sample["outputs"][:_ROWS]
    rows, classes = outputs.shape
    probs = losses.softmax(outputs)
    levels = np.rint(((1 << bits) - 1) * np.sqrt(probs)).astype(np.uint8)
    plain = levels.tobytes()
    expected = posteriors.decode(posteriors.encode(outputs, bits), rows, classes)
    return Subject(
        model,
        "posteriors",
        f"{bits} bits",
        count=outputs.size,
        dense_bytes=4 * outputs.size,
        plain_bytes=4 * outputs.size,
        entropy_bytes=entropy_bytes(levels.ravel(), [levels.size]),
        same=partial(np.array_equal, expected),
        codings=(
            Coding(
                "rows in contexts",
                "sent",
                lambda: posteriors.encode(outputs, bits),
                lambda data: posteriors.decode(data, rows, classes),
            ),
            *general(plain, lambda data: expected if data == plain else np.empty(0)),
        ),
        quality=partial(_divergence, probs),
    )


def _divergence(probs: Array, found: Array) -> dict[str, float]:
    """Give the mean KL divergence from what was sent to what is found, and how often both have the same winner."""
    wide = probs.astype(np.float64)
    terms = wide * (np.log(np.maximum(wide, np.finfo(np.float64).tiny)) - np.log(found))
    return {"kl": float(terms.sum(axis=1).mean()), "agreement": float(np.mean(probs.argmax(1) == found.argmax(1)))}
