"""TLS on a device whose clock is wrong. Needs the program `faketime`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.identity import Identity
from edge_runtime.link import Link, clock_is_wrong
from tests.chaos import security

pytestmark = pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")


def connect_at(when: str, on: security.Ground, who: Identity, issued_s: int) -> "subprocess.CompletedProcess[str]":
    command = ["faketime", when, sys.executable, "-c", security.CONNECT, str(on.broker.port)]
    command += [*security.files_of(who), str(issued_s)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_device_in_1970_connects_and_says_that_its_clock_is_wrong(tmp_path: Path) -> None:
    with security.ground("amqtt", tmp_path / "ground") as on:
        who = on.who[security.VICTIM]
        done = connect_at("1970-01-02 00:00:00", on, who, who.issued_s)
        blind = connect_at("1970-01-02 00:00:00", on, who, 0)
        late = connect_at("2060-01-01 00:00:00", on, who, who.issued_s)
    assert done.stdout == "connected\n"
    assert "this machine's clock says 1970-01-02" in done.stderr
    assert "not yet valid" in blind.stdout
    assert "this machine's clock says 1970-01-02 00:00 UTC: set the clock" in blind.stdout
    assert "has expired" in late.stdout
    assert "set the clock" in late.stdout


def test_a_device_in_1970_takes_no_broker_of_another_authority_nor_one_that_ended_before(tmp_path: Path) -> None:
    with security.ground("amqtt", tmp_path / "ground") as on:
        who = on.who[security.VICTIM]
        other = on.enrolled(security.VICTIM, security.pki.create(on.folder / "other", security.FLEET, []))
        foreign = connect_at("1970-01-02 00:00:00", on, other, other.issued_s)
        ended = connect_at("1970-01-02 00:00:00", on, who, who.issued_s + 40 * 365 * 86_400)
    assert "is not accepted" in foreign.stdout
    assert "has ended: renew it" in ended.stdout


def test_a_clock_is_only_said_to_be_wrong_when_it_lies_before_what_is_past() -> None:
    link = Link("127.0.0.1", 1, "a")
    assert not clock_is_wrong(link)
    assert not clock_is_wrong(Link("127.0.0.1", 1, "a", issued_s=1_700_000_000))
    assert clock_is_wrong(Link("127.0.0.1", 1, "a", issued_s=2**40))
