"""The commands of docs/security.md, from nothing to a device that trains over TLS and is then taken out."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.errors import LinkError
from edge_runtime.identity import Identity, load
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt

pytest.importorskip("cryptography")
KINDS = [
    "amqtt",
    pytest.param(
        "mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
    ),
]
AGENT, COORDINATOR = "edge_runtime.cli", "edge_runtime.coordinator.cli"


class Shop:
    """A working folder, a home for what lasts, and the processes started there."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.home = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}

    def run(self, program: str, *arguments: str, rc: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.home,
            check=False,
            timeout=200,
        )
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout if rc == 0 else done.stderr

    def start(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        log = self.stack.enter_context((self.folder / f"{arguments[0]}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments], cwd=self.folder, env=self.home, stdout=log, stderr=log
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def wait(self, true: Callable[[], object], within_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not true():
            said = {path.name: path.read_text() for path in self.folder.glob("*.log")}
            assert time.monotonic() < deadline_s, said
            time.sleep(0.05)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with contextlib.ExitStack() as stack:
        yield Shop(tmp_path, stack)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_was_enrolled_trains_without_a_flag_and_no_more_once_it_was_revoked(
    kind: str, shop: Shop
) -> None:
    shop.run(COORDINATOR, "device", "enroll", "left", "--host", "127.0.0.1", "-p", str(free_port()))
    shop.start(COORDINATOR, "broker", "--kind", kind, "-h", "127.0.0.1")
    shop.wait(lambda: b"TLS, for fleet default" in (shop.folder / "broker.log").read_bytes())
    shop.run(AGENT, "enroll", "left.edge")
    shop.start(AGENT, "start", "--verbose")
    flags = ["--algorithm", "fedavg", "--rounds", "1", "--json", "--set", "run.devices=1"]
    flags += ["--set", "algorithm.local-steps=1", "--set", "run.evaluate=false"]
    report = json.loads(shop.run(COORDINATOR, "start", *flags))
    assert report["rounds"] == 1
    shop.run(COORDINATOR, "device", "revoke", "left")
    assert json.loads(shop.run(COORDINATOR, "device", "list", "--json"))[0]["state"] == "revoked"
    shop.wait(lambda: refuses(load(shop.folder / "state" / "edge-runtime" / "identities" / "left")))


def refuses(who: Identity) -> bool:
    files = {"cafile": str(who.authority), "cert": str(who.certificate), "key": str(who.key)}
    mqtt = Mqtt(Link(who.host, who.port, who.name, **files))
    try:
        mqtt.start([], lambda topic, payload: None, lambda up: None)
    except LinkError as error:
        return "it may refuse the certificate" in str(error)
    finally:
        mqtt.close()
    return False


def test_what_cannot_be_is_one_line_that_says_what_to_do(shop: Shop) -> None:
    """Each of these is answered before anything is started or written."""
    expected = {
        (COORDINATOR, "device", "list"): "make one with `edge-coordinator fleet init`",
        (COORDINATOR, "device", "enroll", "left"): "say with --host where devices will find its broker",
        (COORDINATOR, "fleet", "init", "--host", "no host"): "not a name or an address",
        (COORDINATOR, "broker", "-h", "0.0.0.0"): "or say --insecure",
        (AGENT, "enroll", "none.edge"): "none.edge: is not there",
        (AGENT, "start"): "enrol it with `edge-agent enroll FILE`",
        (AGENT, "start", "--identity", "none.edge"): "none.edge: is not there",
    }
    for command, words in expected.items():
        said = shop.run(*command, rc=2)
        assert words in said, said
        assert said.count("\n") == 1
    assert not (shop.folder / "fleet").exists()


def test_a_device_of_many_that_were_enrolled_here_must_be_named(shop: Shop) -> None:
    shop.run(COORDINATOR, "device", "enroll", "left", "right", "--host", "127.0.0.1")
    for name in ("left", "right"):
        shop.run(AGENT, "enroll", f"{name}.edge")
    assert "--id is missing: left, right were enrolled here" in shop.run(AGENT, "start", rc=2)
    assert "that is 'left', not 'right'" in shop.run(AGENT, "start", "--id", "right", "--identity", "left.edge", rc=2)
    assert "is one in fleet 'default'" in shop.run(AGENT, "start", "--id", "left", "--fleet", "other", rc=2)


def test_a_key_that_was_made_on_the_device_stays_there(shop: Shop) -> None:
    shop.run(AGENT, "enroll", "--request", "left")
    shop.run(COORDINATOR, "device", "enroll", "left", "--request", "left.csr", "--host", "127.0.0.1")
    assert b"PRIVATE" not in (shop.folder / "left.csr").read_bytes() + (shop.folder / "left.edge").read_bytes()
    shop.run(AGENT, "enroll", "left.edge")
    held = shop.folder / "state" / "edge-runtime" / "identities"
    assert load(held / "left").name == "left"
    assert [path.name for path in held.iterdir()] == ["left"]


def test_insecure_is_loud(shop: Shop) -> None:
    said = shop.run(AGENT, "start", "--id", "left", "-h", "host.invalid", "--insecure", rc=3)
    assert "INSECURE: what is said to host.invalid:1883 can be read and changed by anybody on the way" in said


def test_a_script_is_told_what_was_made_as_json(tmp_path: Path) -> None:
    def told(module: str, *words: str) -> Any:
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        command = [sys.executable, "-m", module, *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return json.loads(done.stdout)

    made = told(COORDINATOR, "fleet", "init", "--host", "broker.lan")
    assert made == {"fleet": "default", "folder": "fleet", "host": "broker.lan", "port": 8883}
    assert told(COORDINATOR, "device", "enroll", "a", "b")["bundles"] == {"a": "a.edge", "b": "b.edge"}
    known = {"device": "a", "fleet": "default", "host": "broker.lan", "port": 8883}
    assert told(AGENT, "enroll", "a.edge") == known
    assert told(AGENT, "enroll", "--request", "c") == {"device": "c", "request": "c.csr"}
    assert told(COORDINATOR, "device", "revoke", "b")["revoked"] == ["b"]
    assert [one["state"] for one in told(COORDINATOR, "device", "list")] == ["enrolled", "revoked"]
