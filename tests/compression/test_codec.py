import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.compression import codec, frames
from edge_runtime.compression.errors import DecodeError

VECTORS = hnp.arrays(np.uint32, st.integers(0, 300)).map(lambda bits: bits.view(np.float32))
VALUES: Any = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=200), VECTORS)
SMOOTH = np.linspace(-1, 1, 1000, dtype=np.float32)


def bits(values: Sequence[Any]) -> list[Any]:
    """Make values comparable to the last bit, NaNs included."""
    return [
        struct.pack("<d", v) if isinstance(v, float) else v.tobytes() if hasattr(v, "tobytes") else v for v in values
    ]


@given(st.lists(VALUES, max_size=8))
def test_values_come_back_bit_for_bit(values: list[Any]) -> None:
    assert bits(codec.decode(codec.encode(values), max_values=300)) == bits(values)


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=5))
def test_a_state_comes_back_bit_for_bit(state: dict[str, Any]) -> None:
    back = codec.decode_state(codec.encode_state(state), max_values=300)
    assert list(back) == list(state)
    assert bits(list(back.values())) == bits(list(state.values()))


def test_the_bytes_are_those_of_the_specification() -> None:
    values = [-2, 0.5, b"xy", np.array([1.0, -2.0], np.float32)]
    expected = "455201 04 69 feffffffffffffff 66 000000000000e03f 62 02000000 7879 76 02000000"
    expected += "00 0000 00 0000 00 8000 00 3fc0"
    assert codec.encode(values).hex() == expected.replace(" ", "")


def test_planes_that_compress_make_a_vector_smaller_and_none_makes_it_larger_than_five_bytes_more() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32)
    assert len(codec.encode([SMOOTH])) < 4000 * 0.9
    assert len(codec.encode([noise])) <= 4 + 5 + 4 + 4000


@pytest.mark.parametrize("value", [True, np.zeros(3), np.zeros((2, 2), np.float32), [1.0]])
def test_a_value_without_a_coding_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        codec.encode([value])


WHOLE = codec.encode([7, 0.5, b"bytes", SMOOTH])


def test_every_truncation_and_every_extension_is_refused() -> None:
    for end in range(len(WHOLE)):
        with pytest.raises(DecodeError):
            codec.decode(WHOLE[:end], max_values=1000)
    with pytest.raises(DecodeError):
        codec.decode(WHOLE + b"\x00", max_values=1000)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_flipped_byte_raises_nothing_but_a_decode_error(place: int, change: int) -> None:
    bad = bytearray(WHOLE)
    bad[place] ^= change
    try:
        values = codec.decode(bytes(bad), max_values=1000)
    except DecodeError:
        return
    assert len(values) == bad[3]


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_nothing_but_a_decode_error(data: bytes, ours: bool) -> None:
    try:
        codec.decode(b"ER\x01" + data if ours else data, max_values=100)
        codec.decode_state(b"ER\x01" + data if ours else data, max_values=100)
    except DecodeError:
        return


def bomb() -> bytes:
    frame = zstandard.ZstdCompressor().compress(bytes(400_000_000))
    return b"ER\x01\x01v" + struct.pack("<I", 1000) + b"\x01" + struct.pack("<I", len(frame)) + frame


@pytest.mark.parametrize(
    "data",
    [
        b"ER\x01\x01v" + struct.pack("<I", 2**32 - 1),
        b"ER\x01\x01b" + struct.pack("<I", 2**32 - 1),
        b"ER\x01\x01v" + struct.pack("<I", 1000) + b"\x01" + struct.pack("<I", 2**32 - 1),
        bomb(),
    ],
    ids=["vector", "bytes", "plane", "frame"],
)
def test_a_claim_that_does_not_hold_costs_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(data, max_values=10_000)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_more_sections_than_expected_are_refused_before_one_is_opened() -> None:
    data = codec.encode([np.zeros(1_000_000, np.float32)] * 255)
    assert len(data) < 255 * 4 * 200
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="255 sections, at most 3"):
            codec.decode(data, max_values=1_000_000, max_sections=3)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_vector_longer_than_expected_is_refused() -> None:
    with pytest.raises(DecodeError, match="at most 999"):
        codec.decode(codec.encode([SMOOTH]), max_values=999)


@pytest.mark.parametrize("names", [(b"a", b"a"), (b"\xff", b"b"), (1, b"b")])
def test_a_state_with_wrong_names_is_refused(names: tuple[Any, Any]) -> None:
    data = codec.encode([names[0], 1, names[1], 2])
    with pytest.raises(DecodeError):
        codec.decode_state(data, max_values=1)


def test_a_frame_is_opened_only_if_it_holds_exactly_what_is_expected() -> None:
    frame = frames.pack(b"x" * 100)
    assert frames.unpack(frame, 100) == b"x" * 100
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    for bad, size in ((frame, 99), (frame, 101), (frame + frame, 100), (frame[:-1], 100), (b"", 0), (unknown, 100)):
        with pytest.raises(DecodeError):
            frames.unpack(bad, size)


@pytest.mark.parametrize("claim", [300, 1_000_000])
def test_a_frame_that_holds_more_than_it_claims_costs_no_more_than_it_claims(claim: int) -> None:
    block = struct.pack("<I", 1 << 1 | (128 * 1024) << 3)[:3] + b"\x00"
    last = struct.pack("<I", 1 | 1 << 1 | (128 * 1024) << 3)[:3] + b"\x00"
    window_128_kib, size_in_4_bytes = bytes([7 << 3]), bytes([0b10 << 6])
    bomb = b"\x28\xb5\x2f\xfd" + size_in_4_bytes + window_128_kib + struct.pack("<I", claim) + block * 3000 + last
    assert len(bomb) < 12_100
    grown = in_own_process(
        "import resource, sys\n"
        "from edge_runtime.compression import frames\n"
        "from edge_runtime.compression.errors import DecodeError\n"
        "data, peak = sys.stdin.buffer.read(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "frames.unpack(frames.pack(bytes(claim := int(sys.argv[1]))), claim)\n"
        "before = peak()\n"
        "try: frames.unpack(data, claim)\n"
        "except DecodeError: print(peak() - before)\n",
        str(claim),
        bomb,
    )
    assert int(grown) < 4096  # KiB; 390,000 if the frame is read as a stream


def in_own_process(code: str, argument: str, stdin: bytes) -> bytes:
    """Run Python code by itself: a peak of memory belongs to a whole process, and to all tests before this one."""
    return subprocess.run([sys.executable, "-c", code, argument], input=stdin, capture_output=True, check=True).stdout


def test_a_few_bytes_that_claim_more_than_any_frame_of_their_size_holds_are_refused_unopened() -> None:
    frame = frames.pack(bytes(100_000_000))
    with pytest.raises(DecodeError, match="cannot hold"):
        frames.unpack(frame[:20], 100_000_000)
    assert frames.unpack(frame, 100_000_000) == bytes(100_000_000)


def test_no_content_has_one_frame() -> None:
    assert frames.pack(b"") == bytes.fromhex("28b52ffd2000010000")
    assert frames.unpack(frames.pack(b""), 0) == b""
    skippable = struct.pack("<II", 0x184D2A50, 0)
    for bad in (b"", skippable, frames.pack(b"") + b"x", frames.pack(b"x")):
        with pytest.raises(DecodeError):
            frames.unpack(bad, 0)
