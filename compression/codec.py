"""Values to bytes and back, bit for bit: the wire's and the state files' format.

A container, little-endian throughout:

    offset  size  content
    0       2     "ER"
    2       1     version, 1
    3       1     number of sections, 0 to 255
    4             the sections, one after the other, and nothing after them

A section is one byte that names its kind, then its content:

    "i"     8     signed 64-bit integer
    "f"     8     IEEE 754 double
    "b"     4+n   u32 n, then n bytes
    "v"           float32 vector: u32 count, then its four byte planes, least significant first. Plane k holds byte k of
                  every value. It is one byte 0 and `count` bytes as they are; or one byte 1, a u32 length and a
                  zstandard frame (`frames.py`) of that length that holds `count` bytes; whichever is smaller.

The planes of sign and exponent compress, those of the mantissa hardly do. A reader bounds every count by what it is
ready to hold (`max_sections`, `max_values`) and by the bytes that really are there, before it allocates anything.

A state (`encode_state`) is a container of pairs: a name as a "b" section in UTF-8, then its value.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import frames
from edge_runtime.compression.errors import DecodeError

Value = int | float | bytes | NDArray[np.float32]

_HEAD = b"ER\x01"
_MAX_SECTIONS = 255
_INT, _FLOAT, _SIZE = struct.Struct("<q"), struct.Struct("<d"), struct.Struct("<I")


def encode(values: Sequence[Value]) -> bytes:
    """Encode at most 255 values; the inverse of `decode`.

    The same values give the same bytes (under one version of zstandard).
    """
    if len(values) > _MAX_SECTIONS:
        raise ValueError(f"{len(values)} values, at most {_MAX_SECTIONS} fit")
    return b"".join([_HEAD, bytes([len(values)]), *(_encode(value) for value in values)])


def decode(data: bytes, max_values: int, max_sections: int = _MAX_SECTIONS) -> list[Value]:
    """Decode hostile bytes into at most `max_sections` values, of which vectors hold at most `max_values` values each.

    The two bound the memory that a few bytes can claim: say both where the sender is not trusted.

    Raises:
        DecodeError: anything but exactly one well-formed container.
    """
    reader = _Reader(data)
    if reader.take(len(_HEAD)) != _HEAD:
        raise DecodeError("container: not ours, or of another version")
    sections = reader.take(1)[0]
    if sections > max_sections:
        raise DecodeError(f"container: {sections} sections, at most {max_sections} are expected")
    values = [_decode(reader, max_values) for _ in range(sections)]
    if reader.left:
        raise DecodeError(f"container: {reader.left} bytes too many")
    return values


def encode_state(state: Mapping[str, Value]) -> bytes:
    """Encode named values (at most 127); the inverse of `decode_state`."""
    return encode([part for name, value in state.items() for part in (name.encode(), value)])


def decode_state(data: bytes, max_values: int) -> dict[str, Value]:
    """Decode hostile bytes into named values.

    Raises:
        DecodeError: anything but exactly one well-formed state.
    """
    parts = decode(data, max_values)
    names, values = parts[::2], parts[1::2]
    if len(names) != len(values) or not all(isinstance(name, bytes) for name in names):
        raise DecodeError("state: not pairs of a name and a value")
    try:
        state = {bytes(name).decode(): value for name, value in zip(names, values, strict=True)}  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise DecodeError(f"state: a name is not UTF-8: {error}") from error
    if len(state) != len(names):
        raise DecodeError("state: a name occurs twice")
    return state


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise DecodeError(f"container: {size} bytes are announced where {self.left} are left")
        self._place += size
        return bytes(self._data[self._place - size : self._place])

    def size(self) -> int:
        return int(_SIZE.unpack(self.take(4))[0])


def _encode(value: Value) -> bytes:
    if isinstance(value, bool):
        raise TypeError("a bool has no coding of its own: send an int")
    if isinstance(value, int):
        return b"i" + _INT.pack(value)
    if isinstance(value, float):
        return b"f" + _FLOAT.pack(value)
    if isinstance(value, bytes):
        return b"b" + _SIZE.pack(len(value)) + value
    if value.dtype != np.float32 or value.ndim != 1:
        raise TypeError(f"only float32 vectors have a coding, not {value.dtype} with {value.ndim} dimensions")
    planes = np.ascontiguousarray(value, "<f4").view(np.uint8).reshape(-1, 4).T
    return b"v" + _SIZE.pack(len(value)) + b"".join(_encode_plane(plane.tobytes()) for plane in planes)


def _encode_plane(plane: bytes) -> bytes:
    frame = frames.pack(plane)
    return b"\x01" + _SIZE.pack(len(frame)) + frame if len(frame) + 4 < len(plane) else b"\x00" + plane


def _decode(reader: _Reader, max_values: int) -> Value:
    match reader.take(1):
        case b"i":
            return int(_INT.unpack(reader.take(8))[0])
        case b"f":
            return float(_FLOAT.unpack(reader.take(8))[0])
        case b"b":
            return reader.take(reader.size())
        case b"v":
            return _decode_vector(reader, max_values)
        case kind:
            raise DecodeError(f"container: no section is of the kind {kind!r}")


def _decode_vector(reader: _Reader, max_values: int) -> NDArray[np.float32]:
    count = reader.size()
    if count > max_values:
        raise DecodeError(f"vector: {count} values, at most {max_values} are expected")
    planes = [_decode_plane(reader, count) for _ in range(4)]
    joined = np.frombuffer(b"".join(planes), np.uint8).reshape(4, count)
    return np.ascontiguousarray(joined.T).view("<f4").reshape(count).astype(np.float32, copy=False)


def _decode_plane(reader: _Reader, count: int) -> bytes:
    match reader.take(1):
        case b"\x00":
            return reader.take(count)
        case b"\x01":
            return frames.unpack(reader.take(reader.size()), count)
        case kind:
            raise DecodeError(f"vector: no plane is coded as {kind!r}")
