"""Mutated payloads for every decoder: `make fuzz` throws a million, `tests/test_fuzz.py` a few thousand.

    python -m tests.fuzz [--number N] [--seed S] [--only NAME] [--json]

A decoder may answer with a value or with DecodeError, within 100 ms and about twice the memory of the largest value
that it was told to expect. Anything else is a fault, printed with the bytes that cause it. Time is the processor's, and
is taken again where it is too long, so that a busy machine is not a fault.
"""

import argparse
import array
import base64
import hashlib
import io
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_runtime import coding, grid, message, models, narrow, peers, personal, seal, seed_set, serving, setup, wire
from edge_runtime.algorithm import Fitted, Model
from edge_runtime.algorithms import fedavg, fedh2l, ffgg
from edge_runtime.compression import (
    codec,
    entropy,
    floats,
    frames,
    integers,
    mask,
    pieces,
    posteriors,
    quantize,
    submodel,
    tokens,
    uniform,
)
from edge_runtime.devices import meter
from edge_runtime.errors import DecodeError
from edge_runtime.mask import from_bits
from edge_runtime.tree import Layout

Decode = Callable[[bytes], object]

SLOW_S = 0.1
_WEIGHED = 256
"""One payload in so many is decoded under the eyes of tracemalloc, which is slow."""
_SPARE_BYTES = 4 << 20
"""For what does not grow with the value: tables, and Python itself."""
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)
_WORDS = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x00\x00\x00\x00", b"\xff" * 8, b"\x80\x80\x80\x80\x80\x01")
_LAYOUT = Layout(("w", "b", "v"), ((30, 40), (40,), (20, 4, 3, 3)))


@dataclass(frozen=True)
class Target:
    """A decoder, payloads that it takes, and the size of the largest value that it may give."""

    name: str
    decode: Decode
    samples: tuple[bytes, ...]
    value_bytes: int = 4 * _LAYOUT.size


@dataclass
class Verdict:
    """What came of a decoder."""

    name: str
    payloads: int = 0
    refused: int = 0
    slowest_ms: float = 0.0
    p999_ms: float = 0.0
    """Of the processor: one payload in a thousand takes longer."""
    over_5_ms: int = 0
    """Payloads that take longer than that."""
    grown_bytes: int = 0
    """What the process holds more at the end than before."""
    peak_bytes: int = 0
    faults: list[dict[str, str]] = field(default_factory=list)


def targets() -> list[Target]:
    """List every decoder of bytes that come from outside."""
    return [*_vectors(), *_served(), *_messages()]


def _vectors() -> Iterator[Target]:
    rng = np.random.default_rng(0)
    shapes, sizes, size = _LAYOUT.shapes, _LAYOUT.sizes, _LAYOUT.size
    old, new = rng.random(size) < 0.2, rng.random(size) < 0.2
    both = (old | new, old & new, np.ones(size, np.bool_), np.zeros(size, np.bool_))
    values = rng.laplace(0, 0.1, size).astype(np.float32)
    numbers = [np.rint(values * scale).astype(np.int32) for scale in (0, 20, 1e3, 1e9)]
    uneven = np.rint(rng.laplace(0, 1, 40_000) * 10 ** np.sin(np.arange(40_000) / 300)).astype(np.int32)
    lengths = pieces.lengths([len(uneven)], pieces.SMALLEST)
    classes = pieces.classify(uneven, tokens.split(uneven)[0], lengths)
    symbols = rng.integers(0, 16, size).astype(np.uint8) & 7
    codes = quantize.assign(values, np.linspace(-0.3, 0.3, 4))
    form = quantize.Form(2, (size,), 7)
    rows = rng.normal(0, 3, (50, 10))
    yield Target("frames", lambda data: frames.unpack(data, size), (frames.pack(symbols.tobytes()),), size)
    yield Target("entropy", lambda data: entropy.decode(data, size, 16), (entropy.encode(symbols, 16),))
    seen = (symbols % 5).astype(np.uint8)
    in_contexts = (entropy.encode(symbols, 16, seen),)
    yield Target("entropy, contexts", lambda data: entropy.decode(data, size, 16, seen), in_contexts)
    coded_masks = tuple(mask.encode(bits) for bits in (old, *both))
    yield Target("mask", lambda data: mask.decode(data, size), coded_masks)
    shaped = tuple(mask.encode(bits, shapes) for bits in (old, *both))
    yield Target("mask, shapes", lambda data: mask.decode(data, size, shapes), shaped)
    changes = tuple(mask.encode_change(old, bits, shapes) for bits in (new, *both))
    yield Target("mask change", lambda data: mask.decode_change(data, old, shapes, bytes(16)), changes)
    whole = tuple(integers.encode(one, sizes) for one in numbers)
    yield Target("integers", lambda data: integers.decode(data, sizes), whole)
    named = (pieces.encode(classes),)
    yield Target("classes", lambda data: pieces.decode(data, len(lengths), classes.count), named)
    coded = integers.encode(uneven, [len(uneven)])
    yield Target("integers, classes", lambda data: integers.decode(data, [len(uneven)]), (coded,), uneven.nbytes)
    yield Target("lossless", lambda data: floats.decode_lossless(data, sizes), (floats.encode_lossless(values, sizes),))
    yield Target("bf16", lambda data: floats.decode_bf16(data, sizes), (floats.encode_bf16(values, sizes),))
    steps = uniform.pack_steps(uniform.quantise(values, sizes, 0.5)[0])
    yield Target("steps", lambda data: uniform.unpack_steps(data, 3), (steps,))
    yield Target(
        "posteriors",
        lambda data: posteriors.decode(data, 50, 10),
        tuple(posteriors.encode(rows, bits) for bits in (2, 5, 8)),
        2000,
    )
    packed = (quantize.pack(codes, 2), quantize.encode_codes(codes, 2, (size,)))
    yield Target("packed codes", lambda data: quantize.unpack(data, size, 2), packed[:1])
    yield Target("coded codes", lambda data: quantize.decode_codes(data, 2, (size,)), packed[1:])
    centres = np.linspace(-0.3, 0.3, 4, dtype=np.float32)[None]
    model = quantize.encode(form, codes, centres, values[:7])
    yield Target("quantised model", lambda data: quantize.decode(data, form), (model,))
    structure = narrow.structure(models.find("watch-cnn"))
    cuts = tuple(submodel.encode(submodel.nested(structure, width)) for width in (0.25, 0.5, 1.0))
    yield Target("sub-model", lambda data: submodel.decode(data, structure), cuts, 1000)


def _served() -> Iterator[Target]:
    rng = np.random.default_rng(4)
    values, sparse = rng.laplace(0, 0.1, _LAYOUT.size).astype(np.float32), rng.random(_LAYOUT.size) < 0.2
    origin = personal.Origin("run", 1, "device", "fedspa", ("walk", "run"), 0.5, 10, "data")
    card, held = setup.ModelCard("mine:net", _LAYOUT), from_bits(_LAYOUT, sparse)
    fitted = [Fitted(Model(_LAYOUT, _Unused()), values), Fitted(Model(_LAYOUT, _Unused()), held.pack(values), held)]
    left = tuple(personal.encode(origin, card, one)[32:] for one in fitted)

    def decode(body: bytes) -> object:  # behind the checksum, which would refuse them all
        return personal.decode(hashlib.sha256(body).digest() + body, _LAYOUT.size)

    yield Target("personal model", decode, left)
    array = io.BytesIO()
    np.save(array, values[:600].reshape(1, 6, 100))
    asked = (json.dumps({"x": [0.5, 1, -2e9], "id": 7}).encode(), b'{"x": [[1, 2], [3, 4]]}', array.getvalue())
    yield Target("request", lambda data: serving.request(data, {}), asked)


class _Unused:
    """Stands where a model is not evaluated."""

    def vjp(self, params: object, x: object) -> Any:
        raise AssertionError


def _messages() -> Iterator[Target]:
    rng = np.random.default_rng(1)
    values = rng.laplace(0, 0.1, _LAYOUT.size).astype(np.float32)
    held = rng.random(_LAYOUT.size) < 0.3
    container = codec.encode([3, 0.5, b"bytes", values])
    yield Target("container", lambda data: codec.decode(data, _LAYOUT.size, 8), (container,))
    yield Target(
        "state", lambda data: codec.decode_state(data, _LAYOUT.size), (codec.encode_state({"a": 1, "v": values}),)
    )
    steps = grid.exponents(None, values, _LAYOUT, None)
    grids = [grid.snap(values * scale, _LAYOUT, t, steps, 0) for t, scale in enumerate((1.0, 1.1))]
    parts = [grid.part(one, held) for one in grids]

    def initial(where: grid.Bits | None) -> grid.Flat:
        return 0.9 * values if where is None else 0.9 * values[where]

    known = [(base, start) for base in (None, parts[0]) for start in (None, initial)]
    told = tuple(grid.encode(parts[1], _LAYOUT, *what) for what in known)
    yield Target("grid", lambda data: grid.decode(data, _LAYOUT, held, parts[0], initial), told)
    up = fedavg.Up(3, 50, values)
    names = ("lossless", "bf16", "step:0.5", "bits:1", "bits:4")
    links = [wire.Uplink(coding.parse(text, "up"), columns=10) for text in names]
    ups = tuple(wire.encode_up(up, _LAYOUT, (), link)[0] for link in links)
    yield Target("Up", lambda data: wire.decode_up(data, fedavg.Up, _LAYOUT, ()), ups)
    part = ffgg.Up(3, 50, _LAYOUT.cut(values, ("w", "b")))
    shared = tuple(wire.encode_up(part, _LAYOUT, ("v",), link)[0] for link in links)
    yield Target("Up of a part", lambda data: wire.decode_up(data, ffgg.Up, _LAYOUT, ("v",)), shared)
    rows = np.exp(rng.normal(0, 3, (50, 10)))
    said = fedh2l.Up(3, bytes(32), (rows / rows.sum(1, keepdims=True)).astype(np.float32).ravel())
    posterior_ups = tuple(wire.encode_up(said, _LAYOUT, (), link)[0] for link in (links[0], links[4]))
    yield Target("Up of posteriors", lambda data: wire.decode_up(data, fedh2l.Up, _LAYOUT, (), 500), posterior_ups)
    told_all = grid.encode(grids[1], _LAYOUT, grids[0])
    down = wire.encode_down(fedavg.Down(1, values), coding.parse("step:1", "down"), _LAYOUT.sizes, told_all, 0)
    yield Target(
        "Down", lambda data: wire.decode_down(data, fedavg.Down, _LAYOUT, 0, lambda down: None, grids[0]), (down,)
    )
    asked = wire.encode_evaluation(down, grids[1], _LAYOUT)
    yield Target("evaluation", lambda data: wire.decode_evaluation(data, _LAYOUT), (asked,))
    blob = message.Blob("ab" * 32, 5_000_000)
    spoken = (
        message.Hello(
            "boot", "step:2", backend="onnx", room=8, reference_us=9, step_ms=50, round_bytes=9_000, algorithms=("a.b",)
        ),
        message.Task("run", 1, 2, "train", "", blob, blob),
        message.Offer("run", 2, "train", blob, {"accuracy": 0.5}),
        message.Need("ab" * 32, (0, 1, 2)),
        message.Chunk("ab" * 32, 1, bytes(range(256))),
        message.Fate("run", 2, "train", "ab" * 32, "applied"),
    )
    yield Target("message", message.decode, tuple(message.encode(one) for one in spoken), message.MAX_MESSAGE_BYTES)
    yield from _sealed(spoken)
    card = setup.ModelCard("mlp", _LAYOUT)
    yield Target("setup", setup.decode, (setup.encode(setup.Setup("fedavg", {"lr": 0.1}, card, 0)),), 1 << 16)
    start = peers.Start(("a", "b"), 3, 10.0, "ring", 2, 0, 1 << 20)
    yield Target("start", lambda data: peers.decode_start(data, "a"), (peers.encode_start(start),), 1 << 16)
    seeds = seed_set.SeedSet(rng.normal(size=(8, 6)).astype(np.float32), np.arange(8) % 2, ("a", "b"))
    yield Target("seed set", seed_set.decode, (seed_set.encode(seeds),), 1 << 16)


def _sealed(spoken: tuple[message.Message, ...]) -> Iterator[Target]:
    """Attack what is before the signature, with the right key, and what is behind it, signed anew."""
    private = ec.derive_private_key(7, ec.SECP256R1())  # the same on every machine (`across.py`)
    key = seal.Key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public, where = seal.PublicKey(private.public_key()), seal.place("fleet", "down", "a")
    head = seal.Head(b"coordina", bytes(8), 1)
    told = tuple(seal.put_in(key, where, head, message.encode(one)) for one in spoken[:4])
    yield Target("envelope", lambda data: seal.take_out(public, where, data), told, message.MAX_CONTROL_BYTES)

    def take(data: bytes) -> object:
        device = seal.DeviceSeal("fleet", "a", key, public, tags=lambda: bytes(8))
        return device.open(seal.put_in(key, where, head, data[: message.MAX_CONTROL_BYTES]))

    yield Target("sealed message", take, tuple(message.encode(one) for one in spoken[:4]), message.MAX_CONTROL_BYTES)
    start = peers.Start(("a", "b"), 3, 10.0, "ring", 2, 0, 1 << 20, (base64.b64encode(public.point()).decode(), ""))
    yield Target("start with keys", lambda data: peers.decode_start(data, "a"), (peers.encode_start(start),), 1 << 16)


def mutate(rng: np.random.Generator, samples: tuple[bytes, ...]) -> bytes:
    """Damage a sample: bytes, words, ends, pieces of another, or all of it."""
    data = bytearray(samples[rng.integers(len(samples))])
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1))
        match int(rng.integers(8)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1 if at < len(data):
                data[at] = _EXTREMES[rng.integers(len(_EXTREMES))]
            case 2 if at < len(data):
                data[at] = int(rng.integers(256))
            case 3:
                word = _WORDS[rng.integers(len(_WORDS))]
                data[at : at + len(word)] = word
            case 4:
                del data[at : at + int(rng.integers(1, 9))]
            case 5:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 6:
                other = samples[rng.integers(len(samples))]
                cut = int(rng.integers(len(other) + 1))
                data[at:] = other[cut:]
            case _:
                del data[at:]
    return rng.bytes(int(rng.integers(64))) if rng.random() < 0.01 else bytes(data)


def attack(target: Target, number: int, seed: int) -> Verdict:
    """Throw `number` mutated payloads at a decoder."""
    for sample in target.samples:
        target.decode(sample)  # what is damaged must be good to begin with
    times_s, before_bytes = array.array("f"), meter.rss_bytes()
    verdict, rng = Verdict(target.name), np.random.default_rng([seed, *target.name.encode()])
    for count in range(number):
        data = mutate(rng, target.samples)
        verdict.payloads += 1
        fault = _try(target, data, verdict, times_s)
        if not fault and count % _WEIGHED == 0:
            fault = _weigh(target, data, verdict)
        if fault:
            verdict.faults.append({"what": fault, "payload": base64.b64encode(data).decode()})
    verdict.p999_ms = 1e3 * float(np.quantile(np.asarray(times_s), 0.999)) if times_s else 0.0
    verdict.over_5_ms = sum(took_s > 0.005 for took_s in times_s)
    verdict.grown_bytes = meter.rss_bytes() - before_bytes
    return verdict


def _try(target: Target, data: bytes, verdict: Verdict, times_s: "array.array[float]") -> str:
    for _ in range(3):
        started = time.process_time()
        try:
            target.decode(data)
        except DecodeError:
            verdict.refused += 1
        except Exception as error:  # noqa: BLE001  # any other is what is looked for
            return f"{type(error).__name__}: {error}"
        took_s = time.process_time() - started
        if took_s < SLOW_S:
            verdict.slowest_ms = max(verdict.slowest_ms, 1e3 * took_s)
            times_s.append(took_s)
            return ""
    return f"it took {1e3 * took_s:.0f} ms, three times"


def _weigh(target: Target, data: bytes, verdict: Verdict) -> str:
    most = 2 * (target.value_bytes + len(data)) + _SPARE_BYTES
    tracemalloc.start()
    try:
        target.decode(data)
    except DecodeError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    verdict.peak_bytes = max(verdict.peak_bytes, peak)
    return f"it held {peak} bytes, at most {most} are allowed" if peak > most else ""


def main() -> int:
    """Fuzz all decoders in turns, and print a verdict on each."""
    parser = argparse.ArgumentParser(description="Throw mutated payloads at every decoder.")
    parser.add_argument("--number", type=int, default=1_000_000, help="payloads in all (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", help="one decoder")
    parser.add_argument("--json", action="store_true", help="print a record for scripts")
    options = parser.parse_args()
    chosen = [target for target in targets() if options.only in (None, target.name)]
    if not chosen:
        parser.error(f"no decoder is {options.only!r}: choose from {', '.join(t.name for t in targets())}")
    verdicts = []
    for target in chosen:
        verdicts.append(attack(target, -(-options.number // len(chosen)), options.seed))
        one = verdicts[-1]
        sys.stderr.write(
            f"{one.name:18s} {one.payloads:8d} payloads, {one.refused:8d} refused, slowest {one.slowest_ms:5.1f} ms, "
            f"p99.9 {one.p999_ms:5.2f} ms, peak {one.peak_bytes / 1e6:5.2f} MB, "
            f"grown {one.grown_bytes / 1e6:5.2f} MB, {len(one.faults)} faults\n"
        )
        for fault in one.faults[:3]:
            sys.stderr.write(f"    {fault['what']}\n    {fault['payload'][:200]}\n")
    if options.json:
        sys.stdout.write(json.dumps([asdict(verdict) for verdict in verdicts]) + "\n")
    return int(any(verdict.faults for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
