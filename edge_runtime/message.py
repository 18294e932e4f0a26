"""What agent and coordinator say to each other, and its bytes.

Control messages are JSON objects of at most 4,096 bytes: `{"type": "Task", ...}` with the fields of the dataclass of
that name, no others and none missing. A chunk of a blob is binary, little-endian:

    offset  size  content
    0       2     0xEC, 0x01 (magic, version)
    2       4     u32 index of the chunk in its blob
    6       32    SHA-256 of the whole blob
    38      4     u32 CRC-32 of digest and data, started with the index
    42      n     data, 1 to 119,958 bytes (a message is at most 120,000 bytes long)

Topics carry the device id as a level of its own, so that a broker's ACL can match it: `edge/FLEET/up/DEVICE` towards
the coordinator, `edge/FLEET/down/DEVICE` towards the device; in a run among equals `edge/FLEET/peer/DEVICE`, on which a
device speaks to all who listen to it, and `edge/FLEET/ask/DEVICE/PEER`, on which a peer asks it for something.
`edge/FLEET/all/PREFIX`, the first 16 digits of a digest, carries chunks of that blob from the coordinator to all
devices that fetch it: devices read `edge/FLEET/all/+`, and nobody but the coordinator may write there. Nothing is
retained.

In a fleet with identities control messages travel in an envelope that says whose they are, 0xEC 0x02 (`seal.py`).

Everything big is a blob: bytes known by their SHA-256. The sender only ever names a blob (in `Task` or `Offer`); the
receiver asks for the chunks it lacks (`Need`), a window at a time, and keeps what has come over restarts (`spool.py`,
`transfer.py`). The sender of a result cuts it as the Down of its task was cut. A message may be lost, doubled or late:
each can be repeated safely.

A device that fetches a blob of `SHARED_BYTES` or more listens to that blob's own topic as long as it does. There the
coordinator puts each chunk that several of them lack, once; what it then asks for on its own topic for the first time,
after it was sent to all, is not sent again (`coordinator/downloads.py`). Smaller blobs go to each device by itself; a
smaller Down follows its task unasked.
"""

import json
import re
import struct
import types
import typing
import zlib
from dataclasses import dataclass, field
from typing import Any, NoReturn

from edge_runtime.coding import WIRE_VERSION
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.own import is_module

MAX_MESSAGE_BYTES = 120_000
MAX_CONTROL_BYTES = 4_096
CHUNK_BYTES = 65_536
MIN_CHUNK_BYTES = 1_024
"""Chunks are never made smaller than that, however often a broker hangs up on them."""
SHARED_BYTES = 16_384
"""Smallest blob that is worth a topic of its own: to listen to one, and to stop, costs a device about 100 bytes and
a round trip."""
WINDOW = 16
"""Chunks asked for at once: bounds what a sender has in flight for one receiver to 1 MiB (of 64 KiB chunks)."""

_CHUNK = struct.Struct("<2sI32sI")
MAX_CHUNK_BYTES = MAX_MESSAGE_BYTES - _CHUNK.size
_MAGIC = b"\xec\x01"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT = 512
MAX_ALGORITHMS, MAX_ALGORITHM = 8, 128
"""Of a hello: how many, and how long the name of each may be."""
_MAX_METRICS = 32
_MAX_INT = 2**53 - 1


@dataclass(frozen=True)
class Blob:
    """Bytes known by their SHA-256 (hex), their size, and the size of the chunks that the sender cuts."""

    digest: str
    size: int
    chunk: int = CHUNK_BYTES

    @property
    def chunks(self) -> int:
        """Count the chunks."""
        return -(-self.size // self.chunk)

    @property
    def shared(self) -> bool:
        """Say whether devices that fetch it listen to a topic of its own."""
        return self.size >= SHARED_BYTES

    def span(self, index: int) -> tuple[int, int]:
        """Say from where to where chunk `index` lies in the blob."""
        start = index * self.chunk
        return start, min(start + self.chunk, self.size)


@dataclass(frozen=True)
class Hello:
    """Device: I am here. Repeated while nothing else is said, so that a lost answer costs only time."""

    boot: str
    """Random per start of the agent: two agents with one device id differ here."""
    down: str = ""
    """How the device would have the shared model coded (`coding.py`), if the run's way is dearer."""
    wire: int = WIRE_VERSION
    """Version of all that is coded: those of another are not understood."""
    backend: str = ""
    """Which computes there."""
    room: int = 0
    """Memory that is there for a task, bytes (`devices/budget.py`). 0, here and below: no limit, or not known."""
    reference_us: int = 0
    """What the reference takes there (`speed.py`), microseconds."""
    step_ms: int = 0
    """Longest step of training that the device takes on."""
    round_bytes: int = 0
    """Most that it wants to receive and send for a round of training."""
    algorithms: tuple[str, ...] = ()
    """Algorithms of its owner's own that tasks may have (`package.module`); those that are built in need no word."""


@dataclass(frozen=True)
class Welcome:
    """Coordinator: I hear you, and there is nothing to do for you now."""

    run: str


@dataclass(frozen=True)
class Task:
    """Coordinator: do this. The identity of an assignment is (run, round, phase, device)."""

    run: str
    epoch: int
    """Orders the coordinator's starts. A device takes what is later than the last task it has done in this run, by
    epoch and then round: a coordinator that was started from a backup is right about the round."""
    round: int
    phase: str
    """`train`, `evaluate`, `score`: say which channels matter to this device (`importance.py`), before the first round;
    or `peers`: go through a whole run with these peers (`peers.py`)."""
    base: str
    """Digest of the last update of this device that was applied; empty: start without state."""
    setup: Blob
    down: Blob
    sent: int = 0
    """How many chunks of `down`, from the first, follow at once without being asked for."""


@dataclass(frozen=True)
class Status:
    """Device: I have that task and am at it. To a peer: I am `listening` for what you said in that round."""

    run: str
    round: int
    doing: str


@dataclass(frozen=True)
class Refuse:
    """Device: I cannot do that task. `lost`: only because I no longer have what it takes.

    To a peer: what I said in that round is lost.
    """

    run: str
    round: int
    lost: bool
    reason: str
    phase: str = "train"


@dataclass(frozen=True)
class Offer:
    """Device: the result of that task, durable here and never computed again, is this blob."""

    run: str
    round: int
    phase: str
    blob: Blob
    metrics: dict[str, float] = field(default_factory=dict)
    sent: int = 0
    """How many of its chunks, from the first, follow at once without being asked for."""


@dataclass(frozen=True)
class Need:
    """Receiver of a blob: send me these chunks of it."""

    digest: str
    want: tuple[int, ...]


@dataclass(frozen=True)
class Fate:
    """Coordinator: what became of an offer. Final: `applied`, `late`, `rejected` or `gone` (no such run here)."""

    run: str
    round: int
    phase: str
    digest: str
    fate: str
    reason: str = ""


@dataclass(frozen=True)
class Profile:
    """Device: this is what I am, and what training took when it was measured here; said once in a run.

    Empty or 0, from `board` on: not known.
    """

    digest: str
    """SHA-256 of all that follows, by which it is noted (`published.py`)."""
    board: str = ""
    cpu: str = ""
    arch: str = ""
    cores: int = 0
    ram_bytes: int = 0
    accelerators: str = ""
    """Names, with commas."""
    os: str = ""
    kernel: str = ""
    python: str = ""
    version: str = ""
    """Of this package."""
    model: str = ""
    backend: str = ""
    batch: int = 0
    parameters: int = 0
    active: int = 0
    """How many of them were trained."""
    step_us: int = 0
    """Median time of a step of training."""
    reference_us: int = 0
    """As in `Hello`."""
    over_bytes: int = 0
    """Peak of training over the process with everything imported."""
    peak_bytes: int = 0
    """Peak of that process."""
    idle_bytes: int = 0
    """Of an agent that waits."""
    step_uj: int = 0
    """Energy of a step, microjoules."""
    power: str = ""
    """Of which parts, by which sensor (`devices/sensors.py`)."""


@dataclass(frozen=True)
class Noted:
    """Coordinator: I have your profile for this run."""

    run: str
    digest: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a blob."""

    digest: str
    index: int
    data: bytes


Message = Hello | Welcome | Task | Status | Refuse | Offer | Need | Fate | Profile | Noted | Chunk
_CONTROL = (Hello, Welcome, Task, Status, Refuse, Offer, Need, Fate, Profile, Noted)
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in _CONTROL}
_HINTS = {kind: typing.get_type_hints(kind) for kind in (*_KINDS.values(), Blob)}
_WORDS = {
    "phase": ("train", "evaluate", "score", "peers"),
    "fate": ("applied", "late", "rejected", "gone"),
    "doing": ("fetching", "training", "listening"),
}


def up_topic(fleet: str, device: str) -> str:
    """Name the topic on which a device speaks; `+` for the device matches every device."""
    return f"edge/{fleet}/up/{device}"


def down_topic(fleet: str, device: str) -> str:
    """Name the topic on which a device listens."""
    return f"edge/{fleet}/down/{device}"


def all_topic(fleet: str, digest: str) -> str:
    """Name the topic on which chunks of a blob come to all devices that fetch it; `+` for the digest matches all."""
    return f"edge/{fleet}/all/{digest[:16]}"


def peer_topic(fleet: str, device: str) -> str:
    """Name the topic on which a device speaks to its peers."""
    return f"edge/{fleet}/peer/{device}"


def ask_topic(fleet: str, device: str, peer: str) -> str:
    """Name the topic on which a peer asks a device; `+` for the peer matches every peer."""
    return f"edge/{fleet}/ask/{device}/{peer}"


def check_name(name: str, what: str) -> str:
    """Accept a fleet or device id that fits a topic level, a file name and a certificate.

    Raises:
        ConfigError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what}: {name!r} is not 1 to 64 letters, digits, '_', '.' or '-' (first a letter or digit)")
    return name


def encode(message: Message) -> bytes:
    """Encode any message; the inverse of `decode`."""
    if isinstance(message, Chunk):
        digest = bytes.fromhex(message.digest)
        return _CHUNK.pack(_MAGIC, message.index, digest, checksum(message)) + message.data
    fields = {name: vars(value) if isinstance(value, Blob) else value for name, value in vars(message).items()}
    record = {"type": type(message).__name__, **fields}
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes) -> Message:
    """Decode hostile bytes.

    Raises:
        DecodeError: not exactly one well-formed message within its bounds.
    """
    if data[:2] == _MAGIC:
        return _decode_chunk(data)
    if len(data) > MAX_CONTROL_BYTES:
        raise DecodeError(f"message: {len(data)} bytes, at most {MAX_CONTROL_BYTES} are allowed")
    try:
        record = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"message: not JSON: {error}") from error
    kind = _KINDS.get(str(record.pop("type", None))) if isinstance(record, dict) else None
    if kind is None:
        raise DecodeError("message: no known type")
    return typing.cast(Message, _build(kind, record))


def _decode_chunk(data: bytes) -> Chunk:
    if not _CHUNK.size < len(data) <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"chunk: {len(data)} bytes")
    _, index, digest, crc = _CHUNK.unpack_from(data)
    chunk = Chunk(digest.hex(), index, bytes(data[_CHUNK.size :]))
    if checksum(chunk) != crc:
        raise DecodeError("chunk: the CRC does not fit")
    return chunk


def checksum(chunk: Chunk) -> int:
    """Compute the CRC-32 of a chunk: over digest and data, started with the index."""
    return zlib.crc32(chunk.data, zlib.crc32(bytes.fromhex(chunk.digest), chunk.index))


def _no_constant(name: str) -> NoReturn:
    raise DecodeError(f"message: {name} is not a number")


def _build(kind: Any, record: Any) -> Any:
    hints = _HINTS[kind]
    if not isinstance(record, dict) or set(record) != set(hints):
        raise DecodeError(f"{kind.__name__}: fields are not {', '.join(hints)}")
    values = {name: _check(f"{kind.__name__}.{name}", name, hint, record[name]) for name, hint in hints.items()}
    if kind is Blob and not 0 < values["chunk"] <= MAX_CHUNK_BYTES:
        raise DecodeError(f"Blob.chunk: {values['chunk']} bytes")
    return kind(**values)


def _check(where: str, name: str, hint: Any, value: Any) -> Any:
    if hint is Blob:
        return _build(Blob, value)
    if isinstance(hint, types.GenericAlias):
        if hint.__origin__ is dict:
            return _check_metrics(where, value)
        return _check_algorithms(where, value) if hint.__args__[0] is str else _check_want(where, value)
    if type(value) is not hint:
        raise DecodeError(f"{where}: not a {hint.__name__}")
    if hint is int and not 0 <= value <= _MAX_INT:
        raise DecodeError(f"{where}: {value} is out of range")
    if hint is str:
        _check_text(where, name, value)
    return value


def _check_text(where: str, name: str, value: str) -> None:
    if len(value) > _MAX_TEXT or not value.isprintable():
        raise DecodeError(f"{where}: too long, or not printable")
    if name in _WORDS and value not in _WORDS[name]:
        raise DecodeError(f"{where}: {value!r} is none of {', '.join(_WORDS[name])}")
    if name in ("digest", "base") and not _DIGEST.fullmatch(value) and (name, value) != ("base", ""):
        raise DecodeError(f"{where}: not a SHA-256")


def _check_want(where: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= WINDOW:
        raise DecodeError(f"{where}: not 1 to {WINDOW} indices")
    if not all(type(index) is int and 0 <= index < 2**32 for index in value):
        raise DecodeError(f"{where}: an index is out of range")
    return tuple(value)


def _check_algorithms(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_ALGORITHMS:
        raise DecodeError(f"{where}: not at most {MAX_ALGORITHMS} names")
    if not all(isinstance(name, str) and len(name) <= MAX_ALGORITHM and is_module(name) for name in value):
        raise DecodeError(f"{where}: one is not the name of a module")
    return tuple(value)


def _check_metrics(where: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > _MAX_METRICS:
        raise DecodeError(f"{where}: not an object of at most {_MAX_METRICS} figures")
    for name, figure in value.items():
        if not _NAME.fullmatch(name) or type(figure) not in (int, float) or not abs(figure) < 2**63:
            raise DecodeError(f"{where}: {name[:64]!r} is not a figure")
    return {name: float(figure) for name, figure in value.items()}
