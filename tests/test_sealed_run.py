"""Runs of a fleet with identities, as a person sets it up: its broker with TLS and rules, real agents, real data."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime import config, identity
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, pki, session
from edge_runtime.coordinator.gate import Sealed
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig, device_names, seed_set
from edge_runtime.link import Link
from edge_runtime.seal import read_key

NAMES = device_names(DataConfig())[:3]
FLAGS = ["--data", "watch", "--labels-per-class", "3"]
SETTINGS = ("run.devices=3", "run.evaluate=false", "run.deadline-s=60", "algorithm.local-epochs=1", "algorithm.lr=0.05")


@dataclasses.dataclass(frozen=True)
class Ground:
    """A fleet, its broker, and a folder to work in."""

    members: pki.Fleet
    broker: brokers.Broker
    folder: Path

    def link(self) -> Link:
        who = identity.load(self.members.coordinator)
        files = {"cafile": str(who.authority), "cert": str(who.certificate), "key": str(who.key)}
        return Link(self.broker.host, self.broker.port, who.name, **files)  # type: ignore[arg-type]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    members = pki.create(tmp_path / "fleet", "default", ["127.0.0.1"])
    for name in NAMES:
        bundle = tmp_path / f"{name}.edge"
        bundle.write_bytes(members.enroll(name))
        identity.install(bundle, config.state_folder() / "identities" / name)
    with brokers.start("auto", folder=tmp_path / "broker", fleet=members) as running:
        yield Ground(members, running, tmp_path)


def wait_until(true: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_a_coordinator_that_was_killed_is_taken_again_and_the_run_ends_in_the_bits_of_one_without_seals(
    ground: Ground,
) -> None:
    coded = {"up": "step:0.5", "down": "step:0.5"}
    run = prepare(RunConfig(rounds=2, devices=3, evaluate=False, **coded), {"local-epochs": 1, "lr": 0.05})  # type: ignore[arg-type]
    scene = Scene(DataConfig(labels_per_class=3), NAMES, config.cache_folder())
    session.in_memory(run, scene, ground.folder / "memory", lambda coordinator: None)
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "--json", "--rounds", "2"]
    command += ["-h", "127.0.0.1", "-p", str(ground.broker.port), "--fleet-folder", str(ground.members.folder)]
    command += ["--folder", str(ground.folder / "run"), "--runs", str(ground.folder)]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    with fleet.agents(NAMES, ground.broker, FLAGS, ground.folder, warm=False):
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: bool(list(ground.folder.glob("run/fedspa/checkpoint-*"))))
        first.kill()
        first.wait()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    model = (ground.folder / "run" / "fedspa" / "model.bin").read_bytes()
    assert model == (ground.folder / "memory" / "model.bin").read_bytes()
    assert {reason for reasons in json.loads(done.stdout)["dropped"].values() for reason in reasons} <= {
        "stale",
        "repeated",
        "unknown",  # chunks that came before a device was heard again
    }


def test_equals_hear_each_other_by_the_keys_of_their_start(ground: Ground) -> None:
    settings = RunConfig(
        "fedh2l", rounds=3, devices=3, habit="decentralised", evaluate=False, seed_samples=21, deadline_s=60.0
    )
    seeds = seed_set(DataConfig(labels_per_class=3, parts=3), 21, config.cache_folder())
    run = prepare(settings, {"local-steps": 3, "lr": 0.05}, {}, seeds)
    key = read_key(identity.load(ground.members.coordinator).key)
    gate = Sealed("default", key, ground.members)
    with fleet.agents(NAMES, ground.broker, FLAGS, ground.folder, warm=False):
        session.over_mqtt(run, ground.link(), ground.folder / "run", "auto", lambda coordinator: None, gate)
    with contextlib.closing(Journal(ground.folder / "run")) as journal:
        done = journal.accepted()
    assert {one.device: one.metrics["peers-missing"] for one in done} == dict.fromkeys(NAMES, 0.0)
