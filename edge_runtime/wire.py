"""An algorithm's messages as bytes, and back: what is coded how, what a device is owed, and what may not be sent.

A message is a container (`compression/codec.py`) of its fields in their order; a `tree.Part` is two of them. A vector
travels as it is, bit for bit (a section "v"), unless its field has a type that says what it holds:

    tree.Shared      of a Down: values of the shared model. With the coding `step` on a grid (`grid.py`), as the
                     difference from what the device holds of an earlier round
    tree.Change      of an Up: how training changed those values. With `step` or `bits` quantised; what that loses is
                     owed: kept on the device, and added to its next update (error feedback)
    tree.Posteriors  rows of probabilities, with `bits` rounded (`compression/posteriors.py`)

Coded, a vector is a section "b": one byte that names the coding ("h" bf16, "g" grid, "u" quantised, "p" posteriors) and
then that coding's bytes. A reader takes any of them, so that devices of one round may use different ones.

Which values of the model a vector holds, where it does not hold them all, is not said with it: both sides know. It is
what the algorithm's halves call their support (`algorithm.SparseClient`, `SparseServer`).

Tensors that a run keeps private never leave their device: `encode_up` does not write an Up that holds one, and
`decode_up` does not read it (`algorithm.py`).
"""

import dataclasses
import functools
import struct
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime import grid
from edge_runtime.accounts import Debt
from edge_runtime.coding import LOSSLESS, Coding
from edge_runtime.compression import codec, floats, integers, posteriors, uniform
from edge_runtime.errors import DecodeError, DeviceError
from edge_runtime.grid import Bits, Grid
from edge_runtime.tree import Flat, Layout, Part

M = typing.TypeVar("M")
Support = Callable[[Any], Bits | None]
"""Says which values of the model [size] a message holds (None: all), of which all is known but these values."""

_EMPTY = np.empty(0, np.float32)
_COUNTS = struct.Struct("<IH")
_FEWEST_BITS = 2
"""Of a probability: with one there is a winner and nothing else."""


def _whole(message: Any) -> None:  # noqa: ARG001
    """Say that a message holds all values of the model."""
    return


def encode(message: Any, code: Callable[[str, Any], bytes | None] = lambda what, value: None) -> bytes:
    """Encode a message.

    Args:
        message: a Down or an Up.
        code: gives the bytes of a vector whose type says what it holds (`what`), or None: it travels bit for bit.
    """
    values: list[codec.Value] = []
    for name, what, is_part in _fields(type(message)):
        value = getattr(message, name)
        coded = code(what, value) if what else None
        vector = value.values if is_part else value
        values += [*([value.tensors] if is_part else []), vector if coded is None else coded]
    return codec.encode(values)


def decode(data: bytes, kind: type[M], layout: Layout, most: int = 0, support: Support = _whole) -> M:
    """Decode hostile bytes into a `kind`; see `decode_down`."""
    return decode_down(data, kind, layout, most, support)[0]


def decode_down(
    data: bytes,
    kind: type[M],
    layout: Layout,
    most: int = 0,
    support: Support = _whole,
    held: Grid | None = None,
    initial: grid.Initial = None,
) -> tuple[M, Grid | None]:
    """Decode hostile bytes into a `kind` (an algorithm's Down or Up), and the grid that it was told on.

    Args:
        data: the bytes.
        kind: of the message.
        layout: of the shared model.
        most: values that a vector may hold however small the model is (`algorithm.wire_values`).
        support: says which values of the model the message holds; it is given the message without them.
        held: what the device holds of the shared model.
        initial: how that began, where it is known.

    Raises:
        DecodeError: malformed, too large, of another type, or not finite.
    """
    fields = _fields(kind)
    expected = len(fields) + sum(is_part for *_, is_part in fields)
    most = max(layout.size, most)
    values = codec.decode(data, max_values=most, max_sections=expected)
    if len(values) != expected:
        raise DecodeError(f"{kind.__name__}: {len(values)} sections where {expected} are expected")
    reading = _Reading(layout, most, held, initial)
    hints, rest = _hints(kind), iter(values)
    found = {}
    for name, what, is_part in fields:
        where = f"{kind.__name__}.{name}"
        tensors = _typed(next(rest), bytes, where) if is_part else None
        value = next(rest)
        if what and isinstance(value, bytes):
            reading.coded[name] = what, value
            value = _EMPTY
        wanted = np.ndarray if is_part or what else typing.get_origin(hints[name]) or hints[name]
        value = _typed(value, wanted, where)
        found[name] = value if tensors is None else Part(tensors, value)
        if is_part and name not in reading.coded:
            layout.names_of(found[name])
    for name, (what, coded) in reading.coded.items():
        found[name] = reading.value(what, coded, found[name], support(kind(**found)))
    return kind(**found), reading.told


@dataclass
class _Reading:
    """What is known while a message is read."""

    layout: Layout
    most: int
    held: Grid | None
    initial: grid.Initial
    told: Grid | None = None
    coded: dict[str, tuple[str, bytes]] = dataclasses.field(default_factory=dict)

    def value(self, what: str, data: bytes, blank: Any, held: Bits | None) -> Any:
        """Decode a coded vector; `blank` is its field without values."""
        if isinstance(blank, Part):
            held = lies(blank, self.layout)
            return Part(blank.tensors, self._vector(what, data, held))
        return self._vector(what, data, held)

    def _vector(self, what: str, data: bytes, held: Bits | None) -> Flat:
        sizes, body = grid.counts(self.layout, held), data[1:]
        match what, data[:1]:
            case "shared", b"g":
                self.told = grid.decode(body, self.layout, held, self.held, self.initial)
                return self.told.floats(self.layout)
            case "shared" | "change", b"h":
                values = floats.decode_bf16(body, sizes)
                if not np.isfinite(values).all():
                    raise DecodeError("wire: a value is not finite")
            case "change", b"u":
                values = _decode_quantised(body, self.layout, held)
            case "posteriors", b"p":
                values = _decode_posteriors(body, self.most)
            case _, kind:
                raise DecodeError(f"wire: {what} is not coded as {kind!r}")
        return values


def encode_down(down: Any, coding: Coding, sizes: tuple[int, ...], told: bytes | None, columns: int) -> bytes:
    """Encode a Down.

    Args:
        down: the message.
        coding: of it.
        sizes: values of the shared model in it, of every tensor.
        told: with the coding `step` its values of the shared model on a grid (`grid.encode`); else None.
        columns: classes of posteriors.
    """

    def code(what: str, value: Any) -> bytes | None:
        vector = value.values if isinstance(value, Part) else value
        match what, coding.kind:
            case "shared", "step" if told is not None:
                return b"g" + told
            case "shared", "bf16":
                return b"h" + floats.encode_bf16(vector, sizes)
            case "posteriors", "bits":
                return _encode_posteriors(vector, columns, int(coding.amount))
            case _:
                return None

    return encode(down, code)


@dataclass(frozen=True)
class Uplink:
    """How a device's updates travel."""

    coding: Coding = LOSSLESS
    feedback: bool = True
    """Whether what is lost is owed."""
    rng: np.random.Generator | None = None
    """Rounds values up or down at random, so that none is lost in the mean; None: to the nearest."""
    columns: int = 0
    """Classes of posteriors."""


PLAIN = Uplink()


def encode_up(
    up: Any,
    layout: Layout,
    private: Collection[str],
    uplink: Uplink = PLAIN,
    held: Bits | None = None,
    debt: Debt | None = None,
) -> tuple[bytes, Debt | None]:
    """Encode an Up in a run that keeps the tensors `private` on the device; the inverse of `decode_up`.

    Args:
        up: the message.
        layout: of the shared model.
        private: names of tensors.
        uplink: how it travels.
        held: which values of the model `up` holds [size]; None: all (or what its Part says).
        debt: what earlier updates lost.

    Returns:
        The bytes, and what is owed from now on.

    Raises:
        DeviceError: it holds a private tensor, or what could be one.
    """
    if fault := leak(up, layout, private):
        raise DeviceError(f"{fault}; nothing was sent")
    owed: list[Debt] = []
    coding = uplink.coding

    def code(what: str, value: Any) -> bytes | None:
        if what == "posteriors" and coding.kind == "bits":
            return _encode_posteriors(value, uplink.columns, int(coding.amount))
        if what != "change" or coding.kind == "lossless":
            return None
        here, vector = (lies(value, layout), value.values) if isinstance(value, Part) else (held, value)
        wanted = vector if debt is None else vector + debt.at(here)
        coded, told = _encode_change(wanted, layout, here, uplink)
        if uplink.feedback:
            owed.append(Debt(wanted - told, here))
        return coded

    return encode(up, code), owed[0] if owed else None


def decode_up(
    data: bytes, kind: type[M], layout: Layout, private: Collection[str], most: int = 0, support: Support = _whole
) -> M:
    """Decode hostile bytes into an Up of a run that keeps the tensors `private` on the device.

    Raises:
        DecodeError: as `decode_down`; or it holds one of them, or what could be one.
    """
    up = decode(data, kind, layout, most, support)
    if fault := leak(up, layout, private):
        raise DecodeError(fault)
    return up


def leak(up: Any, layout: Layout, private: Collection[str]) -> str:
    """Say what of an Up may be a private tensor; empty: nothing."""
    for field in dataclasses.fields(up) if private else ():
        value = getattr(up, field.name)
        if isinstance(value, Part):
            held = [name for name in layout.names_of(value) if name in private]
            if held:
                return f"Up.{field.name} holds {', '.join(held)}, which this run keeps private"
        elif not isinstance(value, int | float):
            return f"Up.{field.name} does not name its tensors, and this run keeps {', '.join(private)} private"
    return ""


def encode_evaluation(down: bytes, shared: Flat | Grid | None, layout: Layout, initial: grid.Initial = None) -> bytes:
    """Pack an encoded Down and the whole shared model [size] (None: `down` has it, or there is none)."""
    if shared is None:
        return codec.encode([down])
    return codec.encode([down, grid.encode(shared, layout, None, initial) if isinstance(shared, Grid) else shared])


def decode_evaluation(data: bytes, layout: Layout, initial: grid.Initial = None) -> tuple[bytes, Flat | None]:
    """Unpack hostile bytes into an encoded Down and the whole shared model; the inverse of `encode_evaluation`.

    Raises:
        DecodeError: malformed.
    """
    values = codec.decode(data, max_values=layout.size, max_sections=2)
    shared = values[1] if len(values) == 2 else None
    if isinstance(shared, bytes):
        shared = grid.decode(shared, layout, None, None, initial).floats(layout)
    if not values or not isinstance(values[0], bytes) or not (shared is None or isinstance(shared, np.ndarray)):
        raise DecodeError("evaluation: not a Down and a model")
    if shared is not None and (len(shared) != layout.size or not np.isfinite(shared).all()):
        raise DecodeError(f"evaluation: not {layout.size} finite values")
    return values[0], shared


def lies(part: Part, layout: Layout) -> Bits:
    """Say which values of a layout a Part holds [size].

    Raises:
        DecodeError: its bits are not one per tensor.
    """
    chosen = np.unpackbits(np.frombuffer(part.tensors, np.uint8), bitorder="little")
    if len(chosen) < len(layout.sizes) or len(chosen) >= len(layout.sizes) + 8 or chosen[len(layout.sizes) :].any():
        raise DecodeError(f"part: {len(part.tensors)} bytes do not say which of {len(layout.sizes)} tensors it holds")
    return np.repeat(chosen[: len(layout.sizes)].astype(np.bool_), layout.sizes)


def holds(message: Any, layout: Layout, wanted: str = "shared") -> Bits | None:
    """Say which values of the shared model [size] a Down tells of by a Part (an Up: the `wanted` is "change").

    None: of all, or its algorithm knows.
    """
    parts = [getattr(message, name) for name, what, is_part in _fields(type(message)) if what == wanted and is_part]
    return lies(parts[0], layout) if parts else None


def change(up: Any) -> Flat | None:
    """Give the vector of an Up that says how training changed the shared model; None: there is none."""
    found = [getattr(up, name) for name, what, _ in _fields(type(up)) if what == "change"]
    return (found[0].values if isinstance(found[0], Part) else found[0]) if found else None


def tells(kind: type[Any]) -> bool:
    """Say whether a Down tells of the shared model."""
    return any(what == "shared" for _, what, _ in _fields(kind))


def _encode_change(values: Flat, layout: Layout, held: Bits | None, uplink: Uplink) -> tuple[bytes, Flat]:
    """Encode an update, and give what the other side will read."""
    sizes, coding = grid.counts(layout, held), uplink.coding
    if coding.kind == "bf16":
        return b"h" + floats.encode_bf16(values, sizes), floats.round_to_bf16(values)
    if coding.kind == "step":
        steps, codes = uniform.quantise(values, sizes, coding.amount, uplink.rng)
    else:
        steps, codes = uniform.quantise_bits(values, sizes, int(coding.amount), uplink.rng)
    coded = b"u" + uniform.pack_steps(steps) + integers.encode(codes, grid.rows(layout, held))
    return coded, uniform.dequantise(steps, codes, sizes)


def _decode_quantised(data: bytes, layout: Layout, held: Bits | None) -> Flat:
    sizes = grid.counts(layout, held)
    steps = uniform.unpack_steps(data[: 2 * len(sizes)], len(sizes))
    return uniform.dequantise(steps, integers.decode(data[2 * len(sizes) :], grid.rows(layout, held)), sizes)


def _encode_posteriors(values: Flat, columns: int, bits: int) -> bytes | None:
    """Encode rows of probabilities; None if they are none (nobody has spoken)."""
    rows = values.reshape(-1, columns) if columns else values[:0].reshape(0, 1)
    if not len(rows) or not np.allclose(rows.sum(1), 1, atol=1e-3):
        return None
    with np.errstate(divide="ignore"):  # of a probability of 0
        logs = np.log(rows)
    return b"p" + _COUNTS.pack(len(rows), columns) + posteriors.encode(logs, max(bits, _FEWEST_BITS), True)


def _decode_posteriors(data: bytes, most: int) -> Flat:
    if len(data) < _COUNTS.size:
        raise DecodeError("wire: posteriors end too early")
    rows, columns = _COUNTS.unpack_from(data)
    if rows * columns > most:
        raise DecodeError(f"wire: {rows} x {columns} posteriors, at most {most} are expected")
    return posteriors.decode(data[_COUNTS.size :], rows, columns).ravel()


def _fields(kind: Any) -> list[tuple[str, str, bool]]:
    """List a message's fields: name, what its vector holds (empty: nothing that has a coding), whether it is a Part."""
    return _known(kind)[0]


def _hints(kind: Any) -> dict[str, Any]:
    return _known(kind)[1]


@functools.cache  # to ask for the types of a message takes longer than to decode a small one
def _known(kind: Any) -> tuple[list[tuple[str, str, bool]], dict[str, Any]]:
    hints, extras = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    marks = [getattr(extras[name], "__metadata__", ("",))[0] for name in names]
    return [(name, mark, hints[name] is Part) for name, mark in zip(names, marks, strict=True)], hints


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if type(value) is not wanted:
        raise DecodeError(f"{where}: got a {type(value).__name__}")
    if isinstance(value, np.ndarray) and not np.isfinite(value).all():
        raise DecodeError(f"{where}: holds a value that is not finite")
    return value
