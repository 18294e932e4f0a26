import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import passwords
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.mqtt import Link, Mqtt

KINDS = [
    "amqtt",
    pytest.param(
        "mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
    ),
]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nothing_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_takes_connections_once_it_is_started_and_is_gone_when_it_is_left(kind: str, tmp_path: Path) -> None:
    with brokers.start(kind, folder=tmp_path) as running:
        assert running.kind == kind
        assert not nothing_listens(running.port)
        running.check()
    assert nothing_listens(running.port)
    assert running.process.returncode in {0, -signal.SIGTERM}


def test_auto_takes_mosquitto_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with brokers.start("auto", folder=tmp_path) as running:
        assert running.kind == ("mosquitto" if brokers.find_mosquitto() else "amqtt")
    monkeypatch.setattr(brokers, "find_mosquitto", lambda: None)
    with brokers.start("auto", folder=tmp_path) as running:
        assert running.kind == "amqtt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_listens_on_loopback_only(kind: str, tmp_path: Path) -> None:
    with brokers.start(kind, folder=tmp_path) as running:
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        ends = [line.split() for table in tables for line in table]
        listening = [end[1] for end in ends if end[3] == "0A" and end[1].endswith(f":{running.port:04X}")]
    assert listening == [f"0100007F:{running.port:04X}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_in_use_is_one_line_that_says_what_to_do(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            brokers.start(kind, port=port, folder=tmp_path)
    assert str(caught.value) == (
        f"no broker can listen on 127.0.0.1:{port} (Address already in use): choose another port with -p"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mosquito"}, "--broker: unknown kind 'mosquito'; did you mean 'mosquitto'?"),
        ({"host": "0.0.0.0"}, "a broker on 0.0.0.0 would speak in clear"),
        ({"host": "0.0.0.0", "users": {"a": "b"}}, "a broker on 0.0.0.0 would speak in clear"),
        ({"host": "no-such-host.invalid", "insecure": True}, "no broker can listen on no-such-host.invalid:0"),
        ({"port": 70_000}, "no broker can listen on 127.0.0.1:70000"),
        ({"users": {"a:b": "c"}}, "user name 'a:b'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        brokers.start(**settings, folder=tmp_path)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_missing_mosquitto_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "find_mosquitto", lambda: None)
    with pytest.raises(ConfigError, match="apt install mosquitto"):
        brokers.start("mosquitto", folder=tmp_path)


def test_a_broker_that_dies_at_its_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "_amqtt", lambda *_: [sys.executable, "-c", "raise SystemExit('no room')"])
    with pytest.raises(RunError, match=r"the broker \(amqtt\) died: no room"):
        brokers.start("amqtt", folder=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_that_was_killed_is_noticed(kind: str, tmp_path: Path) -> None:
    with brokers.start(kind, folder=tmp_path) as running:
        running.process.kill()
        running.process.wait()
        with pytest.raises(RunError, match=r"the broker .* died"):
            running.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_dies_with_the_process_that_started_it(kind: str, tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from edge_runtime.coordinator import broker\n"
        "running = broker.start(sys.argv[1], folder=pathlib.Path(sys.argv[2]))\n"
        "print(running.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, kind, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline_s = time.monotonic() + 5.0
    while is_alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not is_alive(pid)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_and_false_claims_cost_little_memory_and_nobody_elses_connection(kind: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    claim = b"\x10\xff\xff\xff\x7f\x00\x04MQTT\x04\xc2\x00\x3c\xff\xff"  # a CONNECT of 256 MB
    with brokers.start(kind, folder=tmp_path) as running:
        got: list[bytes] = []
        honest = Mqtt(Link(running.host, running.port, "honest"))
        honest.start(["t/a"], lambda topic, payload: got.append(payload), lambda up: None)
        before_bytes = rss_bytes(running.process.pid)
        held = []
        for number in range(300):
            hostile = socket.create_connection((running.host, running.port))
            held.append(hostile)
            hostile.settimeout(1.0)
            try:
                hostile.sendall(claim + bytes(1_000_000) if number % 30 == 0 else rng.randbytes(200))
            except OSError:
                continue  # thrown out before it had said everything
        honest.send("t/a", b"still here")
        deadline_s = time.monotonic() + 5.0
        while not got and time.monotonic() < deadline_s:
            time.sleep(0.01)
        grown_bytes = rss_bytes(running.process.pid) - before_bytes
        for hostile in held:
            hostile.close()
        honest.close()
        running.check()
    assert (got, honest.error) == ([b"still here"], None)
    assert grown_bytes < 24_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_password_file_is_for_its_owner_only_and_does_not_hold_a_password(kind: str, tmp_path: Path) -> None:
    with brokers.start(kind, folder=tmp_path, users={"wrist": "a-secret"}):
        path = tmp_path / "passwords"
        assert path.stat().st_mode & 0o777 == 0o600
        for file in tmp_path.iterdir():
            assert b"a-secret" not in file.read_bytes()


def test_a_hash_matches_its_password_only() -> None:
    hashes = passwords.decode(passwords.encode({"a": "right", "b": ""}))
    assert set(hashes) == {"a", "b"}
    assert passwords.matches(hashes["a"], "right")
    assert not passwords.matches(hashes["a"], "wrong")
    assert not passwords.matches(hashes["a"], "")
    assert not passwords.matches("", "")
    assert not passwords.matches("right", "right")


def test_a_hash_that_mosquitto_passwd_wrote_is_read() -> None:
    written = (  # mosquitto_passwd -b FILE wrist right, version 2.0.11
        "wrist:$7$101$ZflAuYsYOY9hN2zJ$"
        "AF0MH3tvACsLf47t8fPsQAmmyxHT3/74Giy0DWwDf+19obf2W52eMwstoWIlMEq4kLHR/nCyE0X9feE5UUqrvQ==\n"
    )
    assert passwords.matches(passwords.decode(written)["wrist"], "right")
