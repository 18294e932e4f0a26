"""Sealed control messages: who said it, to whom, and that it is not an old one.

In a fleet with identities every message but a chunk travels sealed (a chunk is a piece of a blob whose SHA-256 stands
in a sealed message). Whoever runs the broker can then keep messages back, and nothing else.

    offset  size  content, little-endian
    0       2     0xEC, 0x02 (magic, version)
    2       64    ECDSA signature (P-256, SHA-256) by the sender's certificate key: r and s, 32 bytes each, big-endian
    66      8     tag of the sender
    74      8     tag of the receiver, as the sender knows it; zeros: it does not, or there are many
    82      8     u64 count of the sender's messages
    90      n     the message as JSON (`message.py`)

Signed is `edge-runtime control message 1` and a zero byte, then fleet, direction (`up`, `down`, `peer` or `ask`) and
the device ids of the topic, each behind its length as u16, then all from offset 66 on. So a message says nothing on
another topic than its own.

**No clock and no disk tell new from old, but tags.** Each side draws a tag at its start. What comes with the
receiver's own tag was signed after that was drawn; of what comes with the pair of tags in force, only a higher count is
news. A device draws a new tag whenever its coordinator has another one, and the coordinator keeps one in reserve for
each device, `next`, which it tells whoever speaks out of turn and which comes into force with the first message that
names it. So:

    device starts              Hello [d, -]        the coordinator cannot tell it from an old Hello: not taken
                               Welcome [n, d]      n is `next`; the device knows d, and takes it
                               Hello [d, n]        taken: it was signed after n was drawn; the pair is now d, n
    coordinator starts anew    Task [n, -]         not taken; the device says a word in the old pair
                               Status [d, c]       not taken
                               Welcome [n, d]      taken: d is the device's tag, n another; it draws e
                               Hello [e, n]        taken; the pair is now e, n

A message that is played again finds another pair in force, or its count used up. It makes the receiver say one small
message at most. `docs/decisions/011-sealed-messages.md` has what each kind of message could do otherwise.

`cryptography` is loaded by the first key that is read: an agent without an identity does not pay for it.
"""

import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import MAX_CONTROL_BYTES, Chunk, Message, decode, encode

POINT_BYTES = 33
"""A public key as a compressed point of P-256 (SEC 1, section 2.3.3)."""
TAG_BYTES = 8
NOBODY = bytes(TAG_BYTES)
UNSEALED, FORGED, UNKNOWN, STALE, REPEATED = "unsealed", "forged", "unknown", "stale", "repeated"
"""Why a message is dropped: no envelope; a signature that does not fit; of no enrolled device; of another pair of tags;
an old count."""
ORDINARY = (STALE, REPEATED)
"""Those that also happen where nobody means harm: after a start, or on a network that doubles."""

_MAGIC = b"\xec\x02"
_HEAD = struct.Struct("<8s8sQ")
_SIGNED = 66
_JSON = _SIGNED + _HEAD.size
SEALED_BYTES = _JSON
"""What an envelope adds."""
_DOMAIN = b"edge-runtime control message 1\0"
_HALF = 32
_BOOTS = 8
"""Tags of a peer whose counts are remembered."""

Tags = Callable[[], bytes]


class SealError(DecodeError):
    """A message is not taken."""

    def __init__(self, reason: str, stranger: bytes = NOBODY) -> None:
        """Say why, in one of the words above; `stranger`: the tag of who sealed it, if it was the right key."""
        super().__init__(f"the message is {reason}")
        self.reason, self.stranger = reason, stranger


class Key:
    """A private key that seals; P-256."""

    def __init__(self, pem: bytes) -> None:
        """Read it.

        Raises:
            ConfigError: it is none, or of another kind.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the private key cannot be read ({error}): enroll the device again") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError("the private key is not one of the curve P-256: enroll the device again")
        try:  # RFC 6979: two signatures with one random number give the key away, and devices draw bad ones
            self._how = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        except UnsupportedAlgorithm:  # before OpenSSL 3.2
            self._how = ec.ECDSA(hashes.SHA256())
        self._key, self._numbers = key, utils.decode_dss_signature

    def sign(self, data: bytes) -> bytes:
        """Sign: 64 bytes, r and s."""
        r, s = self._numbers(self._key.sign(data, self._how))
        return r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


class PublicKey:
    """A public key that opens what its private key sealed; P-256."""

    def __init__(self, key: Any) -> None:
        """Take a key of `cryptography`.

        Raises:
            DecodeError: it is of another kind.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise DecodeError("the public key is not one of the curve P-256")
        self._key, self._how, self._wrong = key, ec.ECDSA(hashes.SHA256()), InvalidSignature
        self._join = utils.encode_dss_signature

    @classmethod
    def of_certificate(cls, pem: bytes) -> "PublicKey":
        """Read that of a certificate.

        Raises:
            ConfigError: it is none, or of another kind of key.
        """
        from cryptography import x509

        try:
            return cls(x509.load_pem_x509_certificate(pem).public_key())
        except (ValueError, DecodeError) as error:
            raise ConfigError(f"the certificate cannot be used ({error}): enroll again") from error

    @classmethod
    def of_der(cls, der: bytes) -> "PublicKey":
        """Read DER (SubjectPublicKeyInfo).

        Raises:
            DecodeError: it is no such key.
        """
        from cryptography.hazmat.primitives import serialization

        try:
            return cls(serialization.load_der_public_key(der))
        except ValueError as error:
            raise DecodeError(f"no public key: {error}") from error

    @classmethod
    def of_point(cls, point: bytes) -> "PublicKey":
        """Read a compressed point; the inverse of `point`.

        Raises:
            DecodeError: it is none.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            return cls(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        except ValueError as error:
            raise DecodeError(f"no public key: {error}") from error

    def point(self) -> bytes:
        """Write it as a compressed point, 33 bytes."""
        from cryptography.hazmat.primitives import serialization

        kind = serialization.PublicFormat.CompressedPoint
        return bytes(self._key.public_bytes(serialization.Encoding.X962, kind))

    def signed(self, signature: bytes, data: bytes) -> bool:
        """Say whether the private key has signed that."""
        r, s = (int.from_bytes(half, "big") for half in (signature[:_HALF], signature[_HALF:]))
        try:
            self._key.verify(self._join(r, s), data, self._how)
        except self._wrong:
            return False
        return True


@dataclass(frozen=True)
class Head:
    """What an envelope says of itself."""

    sender: bytes
    receiver: bytes
    count: int


def place(fleet: str, direction: str, *devices: str) -> bytes:
    """Give the first part of what is signed: the topic that a message belongs on."""
    parts = [part.encode() for part in (fleet, direction, *devices)]
    return _DOMAIN + b"".join(struct.pack("<H", len(part)) + part for part in parts)


def put_in(key: Key, where: bytes, head: Head, message: bytes) -> bytes:
    """Seal a control message; the inverse of `take_out`."""
    body = _HEAD.pack(head.sender, head.receiver, head.count) + message
    return _MAGIC + key.sign(where + body) + body


def take_out(key: PublicKey | None, where: bytes, data: bytes) -> tuple[Head, bytes]:
    """Open hostile bytes; nothing of them is looked at before the signature was found good.

    Raises:
        SealError: no envelope, or not one by `key` (None: of somebody unknown) for that place.
    """
    if key is None:
        raise SealError(UNKNOWN)
    if data[:2] != _MAGIC or not _JSON < len(data) <= _JSON + MAX_CONTROL_BYTES:
        raise SealError(UNSEALED)
    if not key.signed(data[2:_SIGNED], where + data[_SIGNED:]):
        raise SealError(FORGED)
    return Head(*_HEAD.unpack_from(data, _SIGNED)), data[_JSON:]


def is_chunk(data: bytes) -> bool:
    """Say whether bytes claim to be a chunk, which has no seal."""
    return data[:2] == b"\xec\x01"


def rare(count: int) -> bool:
    """Say whether to log what happened for the `count`-th time: ever more rarely."""
    return not count & (count - 1)


def random_tag() -> bytes:
    """Draw a tag."""
    return secrets.token_bytes(TAG_BYTES)


class Envelope(Protocol):
    """How a device and its coordinator wrap what they say to each other, from the device's side."""

    def seal(self, message: Message) -> bytes:
        """Encode what the device says."""
        ...

    def open(self, data: bytes) -> tuple[Message, bool]:
        """Decode hostile bytes; True with it: the coordinator is another than before, or was started anew.

        Raises:
            DecodeError: not a message.
            SealError: not one by the coordinator, for this device, now.
        """
        ...


class Plain:
    """No envelope: for a fleet without identities."""

    def seal(self, message: Message) -> bytes:
        """Encode a message."""
        return encode(message)

    def open(self, data: bytes) -> tuple[Message, bool]:
        """Decode a message."""
        return decode(data), False


class DeviceSeal:
    """How a device with an identity seals, and what it takes."""

    def __init__(self, fleet: str, device: str, key: Key, coordinator: PublicKey, tags: Tags = random_tag) -> None:
        self._key, self._coordinator, self._tags = key, coordinator, tags
        self._up, self._down = place(fleet, "up", device), place(fleet, "down", device)
        self._mine, self._theirs = tags(), NOBODY
        self._count = self._heard = 0

    def seal(self, message: Message) -> bytes:
        """Encode and seal what the device says; a chunk has no seal."""
        if isinstance(message, Chunk):
            return encode(message)
        self._count += 1
        return put_in(self._key, self._up, Head(self._mine, self._theirs, self._count), encode(message))

    def open(self, data: bytes) -> tuple[Message, bool]:
        """Open and decode; see `Envelope.open`."""
        if is_chunk(data):
            return decode(data), False
        head, text = take_out(self._coordinator, self._down, data)
        if head.receiver != self._mine:
            raise SealError(STALE)
        if head.sender == self._theirs:
            if head.count <= self._heard:
                raise SealError(REPEATED)
            self._heard = head.count
            return decode(text), False
        if self._theirs != NOBODY:
            self._mine = self._tags()  # what the one before sealed for the old tag is dead from now on
        self._theirs, self._heard = head.sender, head.count
        return decode(text), True


class PeerSeal:
    """How equals seal. What they say names its run and round, and is final: tags only stop repetitions."""

    def __init__(self, fleet: str, device: str, key: Key, tags: Tags = random_tag) -> None:
        self._fleet, self._device, self._key = fleet, device, key
        self._tag, self._count = tags(), 0
        self._keys: dict[str, PublicKey] = {}
        self._heard: dict[tuple[str, bool], OrderedDict[bytes, int]] = {}

    def know(self, keys: Mapping[str, bytes]) -> None:
        """Take these peers, and no others, by their keys (compressed points).

        Raises:
            DecodeError: one of them is no key, or there is none.
        """
        if not keys:
            raise DecodeError("start: the peers have no keys, and this device takes nothing that is not sealed")
        self._keys = {name: PublicKey.of_point(point) for name, point in keys.items()}
        self._heard.clear()

    def seal_for_all(self, message: Message) -> bytes:
        """Encode and seal what is said to all who listen."""
        return self._seal(place(self._fleet, "peer", self._device), message)

    def seal_for(self, peer: str, message: Message) -> bytes:
        """Encode and seal what one peer is asked."""
        return self._seal(place(self._fleet, "ask", peer, self._device), message)

    def open(self, peer: str, data: bytes, to_all: bool) -> Message:
        """Open and decode what a peer said to all or to this device.

        Raises:
            DecodeError: not a message.
            SealError: not one by that peer, or one that was heard before.
        """
        if is_chunk(data) and to_all:
            return decode(data)
        where = ("peer", peer) if to_all else ("ask", self._device, peer)
        head, text = take_out(self._keys.get(peer), place(self._fleet, *where), data)
        boots = self._heard.setdefault((peer, to_all), OrderedDict())
        if head.count <= boots.get(head.sender, 0):
            raise SealError(REPEATED)
        boots[head.sender] = head.count
        if len(boots) > _BOOTS:
            boots.popitem(last=False)
        return decode(text)

    def _seal(self, where: bytes, message: Message) -> bytes:
        if isinstance(message, Chunk):
            return encode(message)
        self._count += 1
        return put_in(self._key, where, Head(self._tag, NOBODY, self._count), encode(message))


@dataclass(frozen=True)
class Seals:
    """All that a device with an identity seals by."""

    coordinator: DeviceSeal
    peers: PeerSeal


def seals(fleet: str, device: str, key: Path, coordinator: Path) -> Seals:
    """Make those of a device from its private key and the coordinator's certificate, PEM files.

    Raises:
        ConfigError: one of them cannot be read.
    """
    own = read_key(key)
    pinned = PublicKey.of_certificate(_read(coordinator))
    return Seals(DeviceSeal(fleet, device, own, pinned), PeerSeal(fleet, device, own))


def read_key(path: Path) -> Key:
    """Read a private key, a PEM file.

    Raises:
        ConfigError: it cannot be read.
    """
    return Key(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
