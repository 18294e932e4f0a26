"""Every decoder under mutated payloads, and on two machines; `make fuzz` and `make aarch64` do it in earnest."""

import pytest

from edge_runtime.errors import DecodeError
from tests import across, fuzz


@pytest.mark.parametrize("target", fuzz.targets(), ids=lambda target: target.name)
def test_a_damaged_payload_is_refused_or_read_in_bounded_time_and_memory(target: fuzz.Target) -> None:
    verdict = fuzz.attack(target, 300, seed=0)
    assert verdict.faults == []
    assert verdict.refused


def test_the_fuzzer_finds_a_decoder_that_crashes() -> None:
    def decode(data: bytes) -> int:
        if data[:1] != b"a":
            raise DecodeError("not mine")
        return data[1]

    found = fuzz.attack(fuzz.Target("bug", decode, (b"ab",)), 300, seed=0).faults
    assert any("IndexError" in fault["what"] for fault in found)


def test_the_fuzzer_finds_a_decoder_that_trusts_a_size() -> None:
    def decode(data: bytes) -> bytes:
        if len(data) < 4:
            raise DecodeError("too short")
        return bytes(min(int.from_bytes(data[:4], "little"), 1 << 26))

    found = fuzz.attack(fuzz.Target("bomb", decode, (bytes(8),), 8), 2000, seed=0).faults
    assert any("it held" in fault["what"] for fault in found)


def test_what_another_machine_reads_otherwise_is_named() -> None:
    theirs = across.read()
    assert across.differences(theirs) == ([], [])
    other = [{**one, "read": "0" * 64} if one["decoder"] == "grid" else one for one in theirs]
    assert across.differences(other)[0] == ["grid"] * sum(one["decoder"] == "grid" for one in theirs)
