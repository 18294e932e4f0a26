"""Real brokers, real agents, real data: what a person runs."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime import config
from edge_runtime.compression import codec
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, session
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.data import DataConfig, device_names, seed_set
from edge_runtime.errors import RunError
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt

NAMES = device_names(DataConfig())[:3]
DATA = DataConfig(labels_per_class=3)
FLAGS = ["--data", "watch", "--labels-per-class", "3"]
KINDS = [
    "amqtt",
    pytest.param("mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="no mosquitto here")),
]


def a_run(**settings: Any) -> Run:
    coded = {"up": "step:0.5", "down": "step:0.5"}
    run = RunConfig(**{"rounds": 2, "devices": 3, "evaluate": False, "deadline_s": 60.0, **coded, **settings})
    return prepare(run, {"local-epochs": 1, "lr": 0.05})


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[brokers.Broker]:
    with brokers.start(request.param, folder=tmp_path / "broker") as running:
        yield running


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("memory")
    session.in_memory(a_run(), Scene(DATA, NAMES, config.cache_folder()), folder, lambda coordinator: None)
    return (folder / "model.bin").read_bytes()


def test_a_run_over_a_broker_ends_in_the_same_bits_as_in_memory(
    broker: brokers.Broker, in_memory: bytes, tmp_path: Path
) -> None:
    link = Link(broker.host, broker.port, "coordinator")
    with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
        session.over_mqtt(a_run(), link, tmp_path / "run", broker.kind, lambda coordinator: None)
    assert (tmp_path / "run" / "model.bin").read_bytes() == in_memory


def test_a_round_closes_without_a_device_that_vanished_and_the_device_rejoins(
    broker: brokers.Broker, tmp_path: Path
) -> None:
    link = Link(broker.host, broker.port, "coordinator")
    with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False) as agents:

        def watch(coordinator: Coordinator) -> None:
            round_ = coordinator.core.progress.round
            if round_ == 1 and not stopped:
                agents[0].send_signal(signal.SIGSTOP)
                stopped.append(round_)
            elif round_ == 3 and len(stopped) == 1:
                agents[0].send_signal(signal.SIGCONT)
                stopped.append(round_)

        stopped: list[int] = []
        run = a_run(rounds=10, quorum=0.6, deadline_s=4.0)
        outcome = session.over_mqtt(run, link, tmp_path / "run", broker.kind, watch)
    took_part = {row.round for row in outcome.rows if row.device == NAMES[0]}
    assert 2 not in took_part
    assert max(took_part) > 2


def test_garbage_on_every_topic_stops_neither_side(broker: brokers.Broker, tmp_path: Path) -> None:
    link = Link(broker.host, broker.port, "coordinator")
    stop = threading.Event()

    def shout() -> None:
        noise = Mqtt(Link(broker.host, broker.port, "noise"))
        noise.start([], lambda topic, payload: None, lambda up: None)
        while not stop.is_set():
            for data in (b"", b"\xec\x01", os.urandom(300), b'{"type":"Task"}', b"[" * 3000):
                for name in (*NAMES, "stranger"):
                    noise.send(f"edge/default/up/{name}", data)
                    noise.send(f"edge/default/down/{name}", data)
            time.sleep(0.02)
        noise.close()

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
            outcome = session.over_mqtt(a_run(), link, tmp_path / "run", broker.kind, lambda coordinator: None)
    finally:
        stop.set()
        thread.join()
    assert len(outcome.rows) == 2 * len(NAMES)


def test_a_coordinator_that_was_killed_goes_on_with_the_same_run(
    broker: brokers.Broker, in_memory: bytes, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "-p", str(broker.port), "--json"]
    command += ["--folder", str(tmp_path / "run"), "--runs", str(tmp_path), "--rounds", "2"]
    for setting in (
        "run.devices=3",
        "run.evaluate=false",
        "run.deadline-s=60",
        "algorithm.local-epochs=1",
        "algorithm.lr=0.05",
    ):
        command += ["--set", setting]
    with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("run/fedspa/checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        first.kill()
        first.wait()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "fedspa" / "model.bin").read_bytes() == in_memory


def said_by(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read what a device has said to its peers, as far as its store remembers."""
    path = folder / "devices" / name / "memory.json"
    record = json.loads(path.read_bytes()) if path.exists() else {}
    return (record.get("talk") or {"said": []})["said"]


def wait_until(true: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def test_a_decentralised_run_goes_on_without_its_coordinator_to_the_same_bits_as_with_one(
    broker: brokers.Broker, tmp_path: Path
) -> None:
    rounds, own = 4, DataConfig(labels_per_class=3, parts=3)
    settings = RunConfig("fedh2l", rounds=rounds, devices=3, habit="synchronous", evaluate=False, seed_samples=21)
    seeds = seed_set(own, 21, config.cache_folder())
    run = prepare(settings, {"local-steps": 3, "lr": 0.05}, {}, seeds)
    journal = Journal(tmp_path / "memory")
    simulate(run, "run", Scene(own, NAMES, config.cache_folder()), journal, lambda coordinator: None)
    expected = {}
    for name in NAMES:
        round_, said, *_ = codec.decode(journal.memories[name], 21 * 7)
        expected[name] = hashlib.sha256(codec.encode([round_, seeds.identity, said])).hexdigest()
    journal.close()

    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "-p", str(broker.port), "--json"]
    command += ["--folder", str(tmp_path / "run"), "--runs", str(tmp_path), "--rounds", str(rounds)]
    command += ["--algorithm", "fedh2l"]
    for setting in (
        *("run.habit=decentralised", "run.devices=3", "run.evaluate=false", "run.seed-samples=21"),
        *("data.labels-per-class=3", "data.parts=3", "algorithm.local-steps=3", "algorithm.lr=0.05"),
    ):
        command += ["--set", setting]
    with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: all(said_by(tmp_path, name) for name in NAMES))
        first.kill()
        first.wait()
        assert not all(said_by(tmp_path, name)[-1]["round"] == rounds - 1 for name in NAMES)
        wait_until(lambda: all(said_by(tmp_path, name)[-1]["round"] == rounds - 1 for name in NAMES))
        stores = {name: said_by(tmp_path, name)[-1]["blob"]["digest"] for name in NAMES}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert stores == expected
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [device["id"] for device in report["devices"]] == sorted(NAMES)
    assert all(device["accuracy_personal"] is not None for device in report["devices"])


def agent(*flags: str, store: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", "device", "--store", str(store), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def coordinator(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def expect_one_line(done: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_an_agent_without_a_broker_says_so(tmp_path: Path) -> None:
    expect_one_line(agent("-p", "1", store=tmp_path), 3, "127.0.0.1:1")


@pytest.mark.parametrize(("flag", "text"), [("--up", "int8"), ("--up", "step:0"), ("--down", "bits:9")])
def test_an_agent_that_is_told_of_a_coding_that_there_is_not_says_so(flag: str, text: str, tmp_path: Path) -> None:
    expect_one_line(agent(flag, text, store=tmp_path), 2, f"{flag}: '{text}'")


def test_an_agent_with_bad_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    expect_one_line(agent("--data", str(tmp_path / "data"), store=tmp_path / "store"), 2, str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["simulate", "--algorithm", "fedspaa"], ["fedspaa", "did you mean 'fedspa'"]),
        (["simulate", "--set", "algorithm.densty=0.5"], ["densty", "did you mean 'density'"]),
        (["simulate", "--set", "algorithm.density=0"], ["density"]),
        (["simulate", "--set", "algorithm.density=1.5"], ["density"]),
        (["simulate", "--set", "algorithm.density=0.0001"], ["density"]),
        (["simulate", "--set", "run.round=3"], ["round", "did you mean 'rounds'"]),
        (["simulate", "--model", "watch-cn"], ["did you mean 'watch-cnn'"]),
        (["simulate", "--model", "no.such:thing"], ["no.such:thing"]),
        (["simulate", "--data", "wach"], ["wach"]),
        (["simulate", "--config", "nowhere.toml"], ["nowhere.toml"]),
        (["start", "--round", "3"], ["--round"]),
        (["report", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_wrong_flag_or_key_gets_one_line_and_exit_code_2(flags: list[str], words: list[str], tmp_path: Path) -> None:
    expect_one_line(coordinator(*flags, *(["--runs", str(tmp_path)] if flags[0] != "report" else [])), 2, *words)


def test_an_agent_on_a_full_disk_says_so_goes_on_when_there_is_space_and_loses_nothing(
    broker: brokers.Broker, in_memory: bytes, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode
    ):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        (small / "ballast").write_bytes(bytes(1_000_000))
        devices = tmp_path / "devices"
        devices.mkdir()
        (devices / NAMES[0]).symlink_to(small)
        link = Link(broker.host, broker.port, "coordinator")

        log, said = tmp_path / "logs" / f"{NAMES[0]}.log", []

        def make_room_once_it_says_so(coordinator: Coordinator) -> None:
            if not said and "space" in log.read_text():
                said.append(coordinator.core.progress.round)
                (small / "ballast").unlink()

        with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
            session.over_mqtt(a_run(), link, tmp_path / "run", broker.kind, make_room_once_it_says_so)
        assert said == [0]
        assert (tmp_path / "run" / "model.bin").read_bytes() == in_memory
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_agent_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    flags = ["--data", str(tmp_path / "nothing")]
    with (
        brokers.start("auto", folder=tmp_path / "broker") as running,
        fleet.agents(["left"], running, flags, tmp_path, warm=False) as processes,
    ):
        processes[0].wait(30)
        with pytest.raises(RunError, match="nothing"):
            fleet.check(processes, ["left"], tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "terminate", "kill"])
def test_a_stopped_demo_leaves_no_process_socket_or_file_behind(number: signal.Signals, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "demo", "--parts", "3", "--runs", str(tmp_path)]
    # What runs the tests may ignore SIGINT, and its children would inherit that; a terminal's programs do not.
    command = ["env", "--default-signal=INT", *command, "--rounds", "100"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stderr is not None
        said = [demo.stderr.readline(), demo.stderr.readline()]
        assert said[0].startswith("dashboard: http://127.0.0.1:")
        assert "round 1/100" in said[1]
        assert len(_mentioning(tmp_path)) >= 5  # the demo, its broker and three agents
        family = psutil.Process(demo.pid).children(recursive=True)
        ports = {one.laddr.port for child in family for one in child.net_connections() if one.status == "LISTEN"}
        demo.send_signal(number)
        _, rest = demo.communicate(timeout=10)
    if number is signal.SIGKILL:
        assert demo.returncode == -number
    else:
        assert demo.returncode == 130
        assert rest.strip().splitlines()[-1] == "edge-coordinator: stopped"
    _, alive = psutil.wait_procs(family, timeout=5.0 if number is signal.SIGKILL else 0.0)  # the kernel tells them
    assert alive == []
    assert _mentioning(tmp_path) == []
    assert len(ports) == 2  # the broker's and the dashboard's
    for port in ports:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 1.0)
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert len(left) == 1  # the run's own folder


def _mentioning(folder: Path) -> list[str]:
    """List the command lines of all running processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has just ended
            continue
        found += [line] if str(folder) in line else []
    return found


def test_of_two_agents_with_one_id_one_gives_up_and_says_why(broker: brokers.Broker, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", "twin", "-p", str(broker.port), *FLAGS]
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    twins = []
    for log in logs:
        with log.open("w") as stderr:
            twins.append(subprocess.Popen([*command, "--store", str(log.with_suffix(""))], stderr=stderr))
    try:
        deadline = time.monotonic() + 30
        while all(twin.poll() is None for twin in twins) and time.monotonic() < deadline:
            time.sleep(0.05)
        codes = [twin.poll() for twin in twins]
        assert sorted(codes, key=str) == [3, None]
        said = logs[codes.index(3)].read_text()
        assert "is another client connected as 'twin'?" in said.strip().splitlines()[-1]
    finally:
        for twin in twins:
            twin.kill()
            twin.wait()


def test_two_agents_on_one_store_are_refused(tmp_path: Path, broker: brokers.Broker) -> None:
    with fleet.agents(["left"], broker, FLAGS, tmp_path, warm=False):
        store = tmp_path / "devices" / "left"
        deadline = time.monotonic() + 30
        while not (store / "lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        expect_one_line(agent("-p", str(broker.port), store=store), 2, str(store))


def test_a_wrong_password_is_one_line(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    with brokers.start("auto", folder=tmp_path / "broker", users={"wrist": "right"}) as running:
        flags = ("-p", str(running.port), "-u", "wrist", "-P", str(secret), *FLAGS)
        expect_one_line(agent(*flags, store=tmp_path / "store"), 3, "check -u and -P")
        start = ("start", "-p", str(running.port), "-u", "wrist", "-P", str(secret), "--runs", str(tmp_path / "runs"))
        expect_one_line(coordinator(*start), 3, "check -u and -P")


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expect_one_line(coordinator("broker", "-p", str(port)), 2, str(port))
