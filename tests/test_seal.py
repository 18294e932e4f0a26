"""The envelope, and what a device takes: by the real keys of `cryptography`."""

import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edge_runtime import seal
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import Blob, Chunk, Fate, Hello, Need, Offer, Welcome, encode
from edge_runtime.seal import NOBODY, DeviceSeal, Head, Key, PeerSeal, PublicKey, SealError

OFFER = Offer("run", 3, "train", Blob("ab" * 32, 100_000))
CHUNK = Chunk("ab" * 32, 1, b"data")
THEIRS = b"their-01"
OTHERS = b"their-02"


def pair() -> tuple[Key, PublicKey]:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(pem), PublicKey.of_der(der)


DEVICE, DEVICE_PUBLIC = pair()
COORDINATOR, COORDINATOR_PUBLIC = pair()
UP = seal.place("f", "up", "a")
DOWN = seal.place("f", "down", "a")
HEAD = Head(THEIRS, NOBODY, 1)


def a_device() -> tuple[DeviceSeal, bytes]:
    """Make a device's side, and give its first tag with it."""
    device = DeviceSeal("f", "a", DEVICE, COORDINATOR_PUBLIC)
    return device, tag_of(device)


def tag_of(device: DeviceSeal) -> bytes:
    head, _ = seal.take_out(DEVICE_PUBLIC, UP, device.seal(Hello("boot")))
    return head.sender


def said(mine: bytes, theirs: bytes, count: int, key: Key = COORDINATOR) -> bytes:
    return seal.put_in(key, DOWN, Head(mine, theirs, count), encode(Welcome("run")))


def refusal(device: DeviceSeal, data: bytes) -> str:
    with pytest.raises(SealError) as caught:
        device.open(data)
    return caught.value.reason


def test_an_envelope_is_laid_out_as_it_says_and_openssl_reads_its_signature() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = Key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = encode(OFFER)
    data = seal.put_in(key, seal.place("fleet", "ask", "a", "bc"), Head(b"sender..", b"receiver", 258), text)
    assert data[:2] == b"\xec\x02"
    assert data[66:90] == b"sender..receiver" + struct.pack("<Q", 258)
    assert data[90:] == text
    assert len(data) == len(text) + seal.SEALED_BYTES
    place = b"edge-runtime control message 1\0" + b"\5\0fleet" + b"\3\0ask" + b"\1\0a" + b"\2\0bc"
    r, s = (int.from_bytes(half, "big") for half in (data[2:34], data[34:66]))
    signature = utils.encode_dss_signature(r, s)
    private.public_key().verify(signature, place + data[66:], ec.ECDSA(hashes.SHA256()))


def test_a_key_goes_through_its_compressed_point() -> None:
    point = DEVICE_PUBLIC.point()
    data = seal.put_in(DEVICE, UP, HEAD, encode(OFFER))
    assert len(point) == seal.POINT_BYTES
    assert seal.take_out(PublicKey.of_point(point), UP, data) == (HEAD, encode(OFFER))


def test_every_flipped_bit_is_found() -> None:
    data = seal.put_in(DEVICE, UP, HEAD, encode(OFFER))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError):
            seal.take_out(DEVICE_PUBLIC, UP, bytes(flipped))


@pytest.mark.parametrize(
    "where",
    [
        seal.place("f", "down", "a"),
        seal.place("f", "up", "b"),
        seal.place("g", "up", "a"),
        seal.place("fu", "p", "a"),
        seal.place("f", "up", "a", ""),
        seal.place("f", "ask", "up", "a"),
    ],
)
def test_a_message_says_nothing_on_another_topic(where: bytes) -> None:
    data = seal.put_in(DEVICE, UP, HEAD, encode(OFFER))
    with pytest.raises(SealError, match="forged"):
        seal.take_out(DEVICE_PUBLIC, where, data)


def test_who_is_unknown_and_what_has_no_envelope_is_told_apart() -> None:
    data = seal.put_in(DEVICE, UP, HEAD, encode(OFFER))
    with pytest.raises(SealError, match="unknown"):
        seal.take_out(None, UP, data)
    for bare in (encode(OFFER), b"", data[: seal.SEALED_BYTES], data + bytes(5000)):
        with pytest.raises(SealError, match="unsealed"):
            seal.take_out(DEVICE_PUBLIC, UP, bare)


@pytest.mark.parametrize("r", [0, 2**256 - 1])
def test_a_signature_of_impossible_numbers_is_forged(r: int) -> None:
    data = bytearray(seal.put_in(DEVICE, UP, HEAD, encode(OFFER)))
    data[2:34] = r.to_bytes(32, "big")
    with pytest.raises(SealError, match="forged"):
        seal.take_out(DEVICE_PUBLIC, UP, bytes(data))


def test_a_device_takes_a_coordinator_that_knows_its_tag_and_then_every_count_once() -> None:
    device, mine = a_device()
    assert device.open(said(THEIRS, mine, 5)) == (Welcome("run"), True)
    assert device.open(said(THEIRS, mine, 6)) == (Welcome("run"), False)
    assert refusal(device, said(THEIRS, mine, 6)) == seal.REPEATED
    assert refusal(device, said(THEIRS, mine, 5)) == seal.REPEATED
    assert tag_of(device) == mine


def test_a_device_takes_nothing_of_an_earlier_start_of_its_own() -> None:
    before, old = a_device()
    recorded = said(THEIRS, old, 1)
    before.open(recorded)
    now, _ = a_device()
    assert refusal(now, recorded) == seal.STALE
    assert refusal(now, said(THEIRS, NOBODY, 2)) == seal.STALE


def test_once_a_coordinator_was_started_anew_the_one_before_is_dead() -> None:
    device, mine = a_device()
    device.open(said(THEIRS, mine, 1))
    kept_back = said(THEIRS, mine, 2)
    assert device.open(said(OTHERS, mine, 1)) == (Welcome("run"), True)
    assert tag_of(device) != mine
    assert refusal(device, kept_back) == seal.STALE
    assert refusal(device, said(OTHERS, mine, 2)) == seal.STALE
    assert device.open(said(OTHERS, tag_of(device), 2)) == (Welcome("run"), False)


def test_a_device_takes_nothing_from_another_key() -> None:
    device, mine = a_device()
    assert refusal(device, said(THEIRS, mine, 1, key=DEVICE)) == seal.FORGED
    assert refusal(device, encode(Fate("run", 0, "train", "ab" * 32, "applied"))) == seal.UNSEALED


def test_chunks_have_no_seal() -> None:
    device, _ = a_device()
    assert device.seal(CHUNK) == encode(CHUNK)
    assert device.open(encode(CHUNK)) == (CHUNK, False)


def peers() -> tuple[PeerSeal, PeerSeal]:
    keys, seals = {}, []
    for name in ("a", "b"):
        key, public = pair()
        keys[name] = public.point()
        seals.append(PeerSeal("f", name, key))
    for one in seals:
        one.know(keys)
    return seals[0], seals[1]


def test_peers_hear_what_is_said_to_all_and_to_them_once() -> None:
    a, b = peers()
    told, asked = a.seal_for_all(OFFER), a.seal_for("b", Need("ab" * 32, (1,)))
    assert b.open("a", told, True) == OFFER
    assert b.open("a", asked, False) == Need("ab" * 32, (1,))
    for data, to_all in ((told, True), (asked, False)):
        with pytest.raises(SealError, match="repeated"):
            b.open("a", data, to_all)
    with pytest.raises(SealError, match="forged"):
        b.open("a", told, False)
    assert b.open("a", a.seal_for_all(CHUNK), True) == CHUNK


def test_peers_hear_nothing_of_strangers_nor_in_anothers_name() -> None:
    a, b = peers()
    stranger = PeerSeal("f", "c", pair()[0])
    for name, data in (("c", stranger.seal_for_all(OFFER)), ("a", stranger.seal_for_all(OFFER)), ("a", encode(OFFER))):
        with pytest.raises(SealError):
            b.open(name, data, True)
    with pytest.raises(SealError, match="forged"):
        b.open("b", a.seal_for_all(OFFER), True)


def test_a_peer_that_was_started_again_is_heard_and_what_it_said_before_is_not() -> None:
    key, public = pair()
    b = PeerSeal("f", "b", pair()[0])
    b.know({"a": public.point()})
    before = [PeerSeal("f", "a", key).seal_for_all(OFFER) for _ in range(3)]
    for data in before:
        assert b.open("a", data, True) == OFFER
    for data in before:
        with pytest.raises(SealError, match="repeated"):
            b.open("a", data, True)


def test_a_device_that_seals_takes_no_part_among_peers_without_keys() -> None:
    with pytest.raises(DecodeError, match="no keys"):
        PeerSeal("f", "a", DEVICE).know({})


def test_a_key_of_another_kind_is_refused_by_what_it_is() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ConfigError, match="P-256"):
        Key(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="cannot be read"):
        Key(b"nonsense")
    with pytest.raises(DecodeError, match="P-256"):
        PublicKey(other.public_key())
    for read in (PublicKey.of_der, PublicKey.of_point):
        with pytest.raises(DecodeError, match="no public key"):
            read(b"nonsense")
    with pytest.raises(ConfigError, match="certificate"):
        PublicKey.of_certificate(b"nonsense")
