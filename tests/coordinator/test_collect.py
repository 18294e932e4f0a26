"""Personal models that devices hand over to their coordinator."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import config, models, personal
from edge_runtime.algorithm import Fitted
from edge_runtime.backends import load
from edge_runtime.compute import Compute
from edge_runtime.coordinator import session
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig, device_names, seed_set
from edge_runtime.errors import ConfigError
from edge_runtime.message import Blob, Chunk, Fate, Hello, Message, Offer
from edge_runtime.personal import Origin
from edge_runtime.setup import ModelCard

NAMES = device_names(DataConfig())[:2]
SPEC = models.find("watch-cnn")
SEEDS = seed_set(DataConfig(), 20, config.cache_folder())


def a_run(algorithm: str, **settings: Any) -> Run:
    return prepare(RunConfig(algorithm, rounds=1, devices=2, **settings), {"local-steps": 2, "batch-size": 4})


def play(run: Run, folder: Path) -> session.Outcome:
    scene = Scene(DataConfig(labels_per_class=2), NAMES, config.cache_folder(), Compute("numpy"))
    return session.in_memory(run, scene, folder, lambda coordinator: None)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedspa", "quped", "ditto"])
def test_a_run_that_collects_leaves_every_devices_model_as_good_as_it_was_reported(
    algorithm: str, tmp_path: Path
) -> None:
    outcome = play(a_run(algorithm, collect=True), tmp_path)
    for name in NAMES:
        left = personal.decode((tmp_path / "personal" / f"{name}.bin").read_bytes())
        (row,) = [row for row in outcome.rows if row.device == name and row.phase == "evaluate"]
        assert left.origin.accuracy == row.accuracy_personal
        assert (left.origin.device, left.origin.run, left.origin.round) == (name, outcome.run_id, 1)
        assert (left.active is not None) == (algorithm == "fedspa")
        assert (left.quantised is not None) == (algorithm == "quped")


def test_a_run_that_does_not_collect_gets_no_model(tmp_path: Path) -> None:
    play(a_run("fedavg"), tmp_path)
    assert not (tmp_path / "personal").exists()


def test_what_never_leaves_a_device_is_not_collected() -> None:
    with pytest.raises(ConfigError, match=r"run: collect: .* never leaves a device; leave collect or private out"):
        a_run("ffgg", collect=True)
    for how in ({"algorithm": "fedavg", "evaluate": False}, {"algorithm": "fedh2l", "habit": "decentralised"}):
        with pytest.raises(ConfigError, match="that is done with the evaluation"):
            prepare(RunConfig(**{"rounds": 1, "devices": 2, "collect": True, **how}), {}, None, SEEDS)


def test_a_devices_own_larger_model_is_not_too_large_to_hand_over() -> None:
    own = {"big": {"devices": "*", "model": "cnn"}}
    run = prepare(RunConfig("quped", "linear", collect=True), {}, own)
    spec = models.find("cnn")
    fitted = Fitted(load(Compute("numpy"), "cnn"), models.initial(spec, 0))
    handed = personal.encode(Origin("run", 1, "a", "quped", (), 0.5, 10, ""), ModelCard("cnn", spec.layout), fitted)
    assert len(handed) < run.plan("run", 1).max_blob


class Told:
    """A network that writes down what devices are told."""

    def __init__(self) -> None:
        self.fates: list[Fate] = []

    def send(self, device: str, message: Message) -> bool:
        if isinstance(message, Fate):
            self.fates.append(message)
        return True

    def share(self, chunk: Chunk) -> bool:
        return True

    def room(self) -> bool:
        return True


def model(device: str, run: str = "run", name: str = SPEC.name) -> bytes:
    spec = models.find(name)
    fitted = Fitted(load(Compute("numpy"), name), models.initial(spec, 0))
    return personal.encode(Origin(run, 1, device, "fedavg", (), 0.5, 10, "data"), ModelCard(name, spec.layout), fitted)


@pytest.mark.parametrize(
    ("payload", "collect", "said"),
    [
        (model("a"), True, ""),
        (model("a"), False, "an evaluation has no payload"),
        (model("b"), True, "not of this device in this run"),
        (model("a", "other"), True, "not of this device in this run"),
        (model("a", name="watch-mlp"), True, "parameters|not of this device"),
        (model("a")[:-1], True, "damaged"),
        (b"garbage", True, "damaged"),
    ],
)
def test_what_a_device_hands_over_is_checked(payload: bytes, collect: bool, said: str, tmp_path: Path) -> None:
    run = prepare(RunConfig("fedavg", rounds=1, devices=1, collect=collect), {})
    journal, post = Journal(tmp_path), Told()
    journal.set("phase", "evaluate")
    journal.set("round", "1")
    coordinator = Coordinator(run.plan("run", 1), run, journal, post)
    coordinator.start()
    coordinator.handle("a", Hello("boot"))
    blob = Blob(hashlib.sha256(payload).hexdigest(), len(payload))
    coordinator.handle("a", Offer("run", 1, "evaluate", blob, {}))
    for chunk in range(blob.chunks):
        start, end = blob.span(chunk)
        coordinator.handle("a", Chunk(blob.digest, chunk, payload[start:end]))
    (fate,) = post.fates
    assert fate.fate == ("rejected" if said else "applied")
    assert (tmp_path / "personal" / "a.bin").exists() == (not said)
    if said:
        assert any(part in fate.reason for part in said.split("|"))
    journal.close()
