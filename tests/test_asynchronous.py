"""Asynchronous runs of real processes over a real broker: devices come and go, and so does the coordinator."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, session
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.data import DataConfig, device_names
from edge_runtime.link import Link

NAMES = device_names(DataConfig())[:3]
FLAGS = ["--data", "watch", "--labels-per-class", "3"]
SETTINGS = {"option": "A", "local-steps": 2, "server-lr": 0.5}
ROUNDS = 4


def test_others_go_on_while_a_device_sleeps_and_its_late_update_is_taken(tmp_path: Path) -> None:
    run = prepare(RunConfig("persafl", rounds=ROUNDS, devices=3, evaluate=False), SETTINGS)
    stopped: list[float] = []
    with (
        brokers.start("auto", folder=tmp_path / "broker") as broker,
        fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False) as agents,
    ):

        def watch(coordinator: Coordinator) -> None:
            progress = coordinator.core.progress
            if progress.applied >= 1 and not stopped:
                agents[0].send_signal(signal.SIGSTOP)
                stopped.append(progress.applied)
            elif progress.applied >= 7 and len(stopped) == 1:
                agents[0].send_signal(signal.SIGCONT)
                stopped.append(progress.applied)

        link = Link(broker.host, broker.port, "coordinator")
        outcome = session.over_mqtt(run, link, tmp_path / "run", broker.kind, watch)
    assert len(outcome.rows) == ROUNDS * len(NAMES)
    stale = {row.device: row.staleness for row in outcome.rows if (row.staleness or 0) >= 4}
    assert list(stale) == [NAMES[0]]


def test_a_coordinator_that_was_killed_goes_on_with_the_same_open_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "persafl"
    with brokers.start("auto", folder=tmp_path / "broker") as broker:
        command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "-p", str(broker.port), "--json"]
        command += ["--folder", str(tmp_path / "run"), "--runs", str(tmp_path), "--rounds", str(ROUNDS)]
        command += ["--algorithm", "persafl", "--set", "run.devices=3", "--set", "run.buffer=2"]
        for key, value in SETTINGS.items():
            command += ["--set", f"algorithm.{key}={value}"]
        with fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False):
            first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while not list(folder.glob("checkpoint-*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            first.kill()
            first.wait()
            assert first.returncode == -signal.SIGKILL
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    journal = Journal(folder)
    trained = [item for item in journal.accepted() if item.phase == "train"]
    journal.close()
    assert [item.number for item in trained] == list(range(ROUNDS * len(NAMES)))
    assert all(item.metrics["staleness"] >= 0 for item in trained)
    assert {item.device for item in trained} == set(NAMES)
