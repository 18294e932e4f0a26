"""Units that systemd takes, and that start what they say, which then answers to it."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime import mqtt
from edge_runtime.coordinator import broker as brokers
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt
from edge_runtime.notify import Notifier

MODULES = {"edge-agent": "edge_runtime.cli", "edge-coordinator": "edge_runtime.coordinator.cli"}
ARGUMENTS = {"edge-agent": ["--id", "gateway-7"], "edge-coordinator": ["--rounds", "3"]}
PROGRAMS = list(MODULES)


def printed(program: str, *flags: str, start: list[str] | None = None) -> str:
    command = [sys.executable, "-m", MODULES[program], "unit", *flags, "--", *(start or ARGUMENTS[program])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_of(unit: str, credentials: Path) -> list[str]:
    """Read the command as systemd would, as far as these tests write one."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]
    return [word.replace("${CREDENTIALS_DIRECTORY}", str(credentials)) for word in words]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket such as systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30.0)
        yield sock


def heard(manager: socket.socket) -> bytes:
    try:
        return manager.recv(100)
    except TimeoutError:
        return b""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: apt install systemd")
@pytest.mark.parametrize("flags", [[], ["--user", "daemon", "--memory-mb", "400"]], ids=["usual", "user"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_systemd_takes_the_unit_and_finds_it_well_shut(program: str, flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"{program}.service"
    path.write_text(printed(program, *flags))
    checked = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout.splitlines()[-1:]


def test_memory_of_the_unit_is_that_of_the_tasks_and_the_agents_own() -> None:
    unit = printed("edge-agent", "--memory-mb", "400", "--user", "sensors")
    assert "\nMemoryMax=464M\n" in unit
    assert "\nUser=sensors\n" in unit
    assert "--memory-mb 400" in unit
    assert "\nMemoryMax=90%\n" in printed("edge-agent")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_start_does_not_take_gets_no_unit(program: str) -> None:
    command = [sys.executable, "-m", MODULES[program], "unit", "--", "--no-such-flag"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_words_come_back_as_they_were_written() -> None:
    odd = ["--id", "gateway-7", "--data", '/data/a b/"100%" of $HOME\\']
    assert command_of(printed("edge-agent", start=odd), Path())[-5:] == ["start", *odd]


@pytest.mark.parametrize("flags", [["-P", "/etc/secret"], ["-P/etc/secret"], ["--password-file=/etc/secret"]])
def test_keys_and_passwords_are_handed_over_by_systemd(flags: list[str]) -> None:
    unit = printed("edge-agent", start=["--id", "wrist", *flags, "--key", "/etc/key.pem"])
    assert "\nLoadCredential=key:/etc/key.pem\nLoadCredential=password_file:/etc/secret\n" in unit
    given = ["--key", "/run/c/key", "--password-file", "/run/c/password_file"]
    assert command_of(unit, Path("/run/c"))[1:] == ["start", "--id", "wrist", *given]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_units_program_says_that_it_is_ready_alive_and_stopping(
    program: str, manager: socket.socket, tmp_path: Path
) -> None:
    secret = tmp_path / "password_file"
    secret.write_text("right")
    with brokers.start("auto", folder=tmp_path / "broker", users={"edge": "right"}) as broker:
        start = [*ARGUMENTS[program], "-p", str(broker.port), "-u", "edge", "-P", "/etc/secret"]
        command = command_of(printed(program, start=start), tmp_path)
        environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "300000"}
        environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
        with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            try:
                said = [manager.recv(100) for _ in range(4)]
                process.send_signal(signal.SIGSTOP)  # the loop does not turn
                time.sleep(0.2)
                manager.settimeout(0.5)
                while heard(manager):
                    pass
                manager.settimeout(10.0)
                process.send_signal(signal.SIGCONT)
                process.terminate()
                while said[-1] != b"STOPPING=1":
                    said.append(manager.recv(100))
            finally:
                process.kill()
    assert said[0] == b"READY=1"
    assert set(said[1:-1]) == {b"WATCHDOG=1"}


def test_a_program_without_its_network_thread_gives_no_sign_of_life(manager: socket.socket) -> None:
    time_s = [0.0]
    notifier = Notifier(manager.getsockname(), 3.0, lambda: time_s[0])
    manager.settimeout(0.1)
    for alive in (False, True, True, False, True):
        notifier.beat(alive)
        time_s[0] += 0.6
    assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    with pytest.raises(TimeoutError):
        manager.recv(100)


def test_an_abstract_address_is_understood_and_a_deaf_manager_ends_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0edge-{os.getpid()}")
        sock.settimeout(1.0)
        Notifier(f"@edge-{os.getpid()}", 0.0).beat(alive=True)
        assert sock.recv(100) == b"READY=1"
    with Notifier(str(tmp_path / "nowhere"), 1.0) as notifier:
        notifier.beat(alive=True)


def test_a_network_thread_that_is_stuck_in_a_callback_is_not_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_STUCK_S", 1.5)
    goes_on = threading.Event()
    with brokers.start("auto", folder=tmp_path / "broker") as broker:
        transport = Mqtt(Link(broker.host, broker.port, "stuck", max_retry_s=0.1))
        try:
            transport.start(["a"], lambda topic, payload: goes_on.wait(30) and None, lambda up: None)
            time.sleep(2.0)
            assert transport.alive()
            transport.send("a", b"payload")
            deadline = time.monotonic() + 10
            while transport.alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not transport.alive()
            goes_on.set()
            while not transport.alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert transport.alive()
        finally:
            goes_on.set()
            transport.close()
        assert not transport.alive()
