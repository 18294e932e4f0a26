"""What a coordinator takes from devices: both sides' real seals, and what was recorded of them played again."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edge_runtime import seal
from edge_runtime.coordinator import gate as gates
from edge_runtime.coordinator.gate import STRANGERS, Dropped, Sealed
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import Blob, Chunk, Hello, Offer, Task, Welcome, encode
from edge_runtime.seal import DeviceSeal, Key, PublicKey, SealError

PRIVATE = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("", "a", "b")}
KEYS = {
    name: Key(one.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())) for name, one in PRIVATE.items()
}
BLOB = Blob("ab" * 32, 1000)
HELLO, TASK = Hello("boot"), Task("run", 1, 0, "train", "", BLOB, BLOB)
WELCOME = Welcome("run")


class Members:
    """A fleet in which nobody stays for ever."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def key_of(self, device: str) -> bytes | None:
        if device in self.gone or device not in PRIVATE:
            return None
        return PRIVATE[device].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def a_gate(members: Members | None = None) -> Sealed:
    return Sealed("f", KEYS[""], members or Members())


def a_device(name: str = "a") -> DeviceSeal:
    return DeviceSeal("f", name, KEYS[name], PublicKey(PRIVATE[""].public_key()))


def refusal(gate: Sealed, data: bytes, device: str = "a") -> SealError:
    with pytest.raises(SealError) as caught:
        gate.open(device, data)
    return caught.value


def meet(gate: Sealed, device: DeviceSeal, name: str = "a") -> list[bytes]:
    """Let them agree on their tags; give what the device said."""
    said = [device.seal(HELLO)]
    why = refusal(gate, said[0], name)
    assert why.reason == seal.STALE
    assert device.open(gate.greet(name, why.stranger, WELCOME)) == (WELCOME, True)
    said.append(device.seal(HELLO))
    assert gate.open(name, said[1]) == HELLO
    return said


def test_a_device_and_a_coordinator_that_never_met_agree_in_one_exchange() -> None:
    gate, device = a_gate(), a_device()
    meet(gate, device)
    assert device.open(gate.seal("a", TASK)) == (TASK, False)
    offer = Offer("run", 0, "train", BLOB)
    assert gate.open("a", device.seal(offer)) == offer


def test_a_coordinator_that_was_started_anew_is_answered_to_and_taken() -> None:
    device = a_device()
    meet(a_gate(), device)
    gate = a_gate()
    with pytest.raises(SealError, match="stale"):
        device.open(gate.seal("a", TASK))
    why = refusal(gate, device.seal(HELLO))
    assert device.open(gate.greet("a", why.stranger, WELCOME)) == (WELCOME, True)
    assert gate.open("a", device.seal(HELLO)) == HELLO
    assert device.open(gate.seal("a", TASK)) == (TASK, False)


def test_nothing_that_was_recorded_is_taken_again_in_its_session_or_a_later_one() -> None:
    gate, device = a_gate(), a_device()
    recorded = meet(gate, device)
    for message in (HELLO, Offer("run", 0, "train", BLOB)):
        recorded.append(device.seal(message))
        gate.open("a", recorded[-1])
    kept_back = device.seal(HELLO)
    later = device.seal(HELLO)
    gate.open("a", later)
    for data in (*recorded, kept_back, later):
        assert refusal(gate, data).reason in (seal.STALE, seal.REPEATED)
    meet(gate, a_device())
    for data in (*recorded, kept_back, later):
        assert refusal(gate, data).reason == seal.STALE
    for data in (*recorded, kept_back, later):
        assert refusal(a_gate(), data).reason == seal.STALE


def test_an_old_start_of_a_device_is_answered_but_cannot_come_back() -> None:
    gate, old, new = a_gate(), a_device(), a_device()
    meet(gate, old)
    meet(gate, new)
    why = refusal(gate, old.seal(HELLO))
    greeting = gate.greet("a", why.stranger, WELCOME)
    with pytest.raises(SealError, match="stale"):
        new.open(greeting)
    assert gate.open("a", new.seal(HELLO)) == HELLO


def test_who_speaks_out_of_turn_is_answered_once_between_two_ticks() -> None:
    gate = a_gate()
    assert [gate.greets("a", bytes(7) + bytes([tag])) for tag in (1, 1, 2, 1)] == [True, False, True, False]
    gate.tick()
    assert gate.greets("a", bytes(7) + b"\1")


def test_nobody_speaks_for_another_device() -> None:
    gate, other = a_gate(), a_device("b")
    meet(gate, a_device())
    assert refusal(gate, other.seal(HELLO), "a").reason == seal.FORGED
    assert refusal(gate, encode(HELLO), "a").reason == seal.UNSEALED
    assert refusal(gate, other.seal(HELLO), "c").reason == seal.UNKNOWN


def test_a_revoked_device_is_not_heard_from_that_moment() -> None:
    members = Members()
    gate, device = a_gate(members), a_device()
    meet(gate, device)
    members.gone.add("a")
    assert refusal(gate, device.seal(HELLO)).reason == seal.UNKNOWN
    assert refusal(gate, encode(Chunk("ab" * 32, 0, b"data"))).reason == seal.UNKNOWN
    assert gate.points(["a"]) == ("",)


def test_chunks_are_taken_of_devices_that_were_heard_only() -> None:
    gate, chunk = a_gate(), Chunk("ab" * 32, 0, b"data")
    assert refusal(gate, encode(chunk)).reason == seal.UNKNOWN
    meet(gate, a_device())
    assert gate.open("a", encode(chunk)) == chunk
    assert gate.seal("a", chunk) == encode(chunk)


def test_a_sealed_message_that_makes_no_sense_is_no_message() -> None:
    gate, device = a_gate(), a_device()
    meet(gate, device)
    head, _ = seal.take_out(PublicKey(PRIVATE["a"].public_key()), seal.place("f", "up", "a"), device.seal(HELLO))
    nonsense = seal.put_in(KEYS["a"], seal.place("f", "up", "a"), seal.Head(head.sender, head.receiver, 99), b"{}")
    with pytest.raises(DecodeError, match="no known type"):
        gate.open("a", nonsense)


def test_a_hundred_thousand_messages_of_nobody_leave_nothing_behind() -> None:
    gate, dropped = a_gate(), Dropped()
    meet(gate, a_device())
    data = a_device("b").seal(HELLO)
    for number in range(100_000):
        with pytest.raises(SealError) as caught:
            gate.open(f"nobody-{number}", data)
        dropped.add(f"nobody-{number}", caught.value.reason, "", gate.vouches)
    assert dropped.counts == {STRANGERS: {seal.UNKNOWN: 100_000}}
    assert list(gate._pairs) == list(gate._read) == ["a"]


def test_without_identities_the_names_that_are_counted_are_bounded() -> None:
    dropped = Dropped()
    for number in range(5000):
        dropped.add(f"nobody-{number}", gates.MALFORMED, "", False)
    assert len(dropped.counts) == gates._MOST_NAMES + 1
    assert dropped.total() == dropped.total(gates.MALFORMED) == 5000


def test_the_log_tells_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    dropped = Dropped()
    for _ in range(1000):
        dropped.add("a", seal.FORGED, "the message is forged", True)
    assert len(caplog.messages) == 10
    assert caplog.messages[-1] == "dropped from a: the message is forged (512 so far)"


def test_while_keys_cannot_be_looked_up_nobody_is_let_in_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Members):
        broken = False

        def key_of(self, device: str) -> bytes | None:
            if self.broken:
                raise ConfigError("crl.pem: cannot be read")
            return super().key_of(device)

    members = Broken()
    gate, device = a_gate(members), a_device()
    meet(gate, device)
    members.broken = True
    assert [refusal(gate, device.seal(HELLO)).reason for _ in range(3)] == [seal.UNKNOWN] * 3
    members.broken = False
    assert refusal(gate, device.seal(HELLO)).reason == seal.STALE
    assert caplog.messages == ["crl.pem: cannot be read", "keys of devices can be looked up again"]
