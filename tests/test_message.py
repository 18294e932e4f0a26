import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import (
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    Blob,
    Chunk,
    Fate,
    Hello,
    Need,
    Noted,
    Offer,
    Profile,
    Refuse,
    Status,
    Task,
    Welcome,
    check_name,
    decode,
    encode,
)

DIGEST = "ab" * 32
BLOB = Blob(DIGEST, 150_000)
MESSAGES = [
    Hello("boot", backend="onnx", room=80_000_000, reference_us=900, step_ms=50, round_bytes=9_000),
    Welcome("run"),
    Task("run", 1, 2, "train", "", BLOB, BLOB),
    Task("run", 1, 2, "evaluate", DIGEST, BLOB, BLOB),
    Status("run", 3, "training"),
    Refuse("run", 3, True, "no state"),
    Offer("run", 3, "train", BLOB, {"wall-s": 1.5}),
    Need(DIGEST, (0, 1, 2)),
    Fate("run", 3, "train", DIGEST, "applied"),
    Profile(
        DIGEST, "Raspberry Pi 5", "Cortex-A76", "aarch64", 4, 8_000_000_000, model="cnn", backend="onnx", step_us=1
    ),
    Noted("run", DIGEST),
    Chunk(DIGEST, 7, b"data"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message: object) -> None:
    assert decode(encode(message)) == message  # type: ignore[arg-type]


def test_a_chunk_is_laid_out_as_its_specification_says() -> None:
    assert encode(Chunk(DIGEST, 7, b"data")).hex() == "ec01" + "07000000" + DIGEST + "f59b6e97" + b"data".hex()


def test_a_blob_is_cut_into_chunks_of_which_the_last_is_shorter() -> None:
    assert BLOB.chunks == 3
    assert [BLOB.span(index) for index in range(3)] == [(0, 65_536), (65_536, 131_072), (131_072, 150_000)]
    assert Blob(DIGEST, 0).chunks == 0


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_understood_never_more(data: bytes) -> None:
    try:
        decode(data)
    except DecodeError:
        return
    assert data[:1] == b"{"


@given(st.integers(0, len(MESSAGES) - 1), st.data())
def test_a_damaged_message_is_refused_or_is_another_message(which: int, choose: st.DataObject) -> None:
    data = bytearray(encode(MESSAGES[which]))  # type: ignore[arg-type]
    data[choose.draw(st.integers(0, len(data) - 1))] ^= choose.draw(st.integers(1, 255))
    try:
        decode(bytes(data))
    except DecodeError:
        return
    assert not isinstance(MESSAGES[which], Chunk), "a chunk's CRC did not notice"


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"round": 2**53},
        {"round": 1.0},
        {"round": True},
        {"round": "1"},
        {"phase": "rest"},
        {"base": "zz"},
        {"base": DIGEST.upper()},
        {"run": "x" * 513},
        {"run": "a\nb"},
        {"extra": 1},
        {"down": {"digest": DIGEST, "size": 1}},
        {"down": {"digest": DIGEST, "size": 1, "chunk": 0}},
        {"down": {"digest": DIGEST, "size": 1, "chunk": 120_000}},
        {"down": None},
    ],
    ids=str,
)
def test_a_task_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    record = {**json.loads(encode(MESSAGES[2])), **change}  # type: ignore[arg-type]
    with pytest.raises(DecodeError):
        decode(json.dumps(record).encode())


@pytest.mark.parametrize(
    "change",
    [{"room": -1}, {"room": 2**53}, {"room": 1.5}, {"room": None}, {"backend": "a\nb"}, {"step_ms": True}, {"ram": 1}],
    ids=str,
)
def test_a_hello_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    record = {**json.loads(encode(MESSAGES[0])), **change}  # type: ignore[arg-type]
    with pytest.raises(DecodeError):
        decode(json.dumps(record).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"type":"Nothing"}',
        b'{"type":["Hello"]}',
        b"[" * 4000,
        b'{"type":"Hello","boot":"' + b"x" * MAX_CONTROL_BYTES + b'"}',
        b'{"type":"Offer","run":"r","round":1,"phase":"train","metrics":{"x":NaN},"blob":{}}',
        encode(MESSAGES[9])[:42],  # type: ignore[arg-type]
        encode(MESSAGES[9]) + bytes(MAX_MESSAGE_BYTES),  # type: ignore[arg-type]
        b'{"type":"Need","digest":"' + DIGEST.encode() + b'","want":[]}',
        b'{"type":"Need","digest":"' + DIGEST.encode() + b'","want":[-1]}',
        b'{"type":"Need","digest":"' + DIGEST.encode() + b'","want":' + str(list(range(99))).encode() + b"}",
    ],
    ids=range(13),
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "-x", "x" * 65, "ä", "a b", ".."])
def test_a_device_id_that_is_no_topic_level_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device id"):
        check_name(name, "device id")
