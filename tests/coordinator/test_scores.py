"""Devices that are to have a part of a model say first which channels matter to them."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import bundle, config, data, importance, models, narrow, personal
from edge_runtime.backends import load
from edge_runtime.compression import submodel
from edge_runtime.compute import Compute
from edge_runtime.coordinator import submodels
from edge_runtime.coordinator.choices import Choices
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.data import DataConfig, device_names
from edge_runtime.errors import ConfigError
from edge_runtime.setup import ModelCard
from edge_runtime.transport import Faults

DATA = DataConfig("watch", parts=4, labels_per_class=5)
NAMES = device_names(DATA)
SMALL = {"half": {"devices": "person-02-*", "width": 0.5}}
SPEC = models.find("watch-cnn")
HALF = submodel.nested(narrow.structure(SPEC), 0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The watches' model as a module of one's own would be, with values, and a part with half of its channels."""
    folder, whole = tmp_path_factory.mktemp("model") / "own", bundle.built_in("watch-cnn")
    part = submodels.card(ModelCard("watch-cnn", SPEC.layout), "watch-cnn", 0.5, HALF)
    own = dataclasses.replace(whole, model="mine:net", initial=models.initial(SPEC, 5))
    files = {folder: bundle.files(own)}
    smaller = dataclasses.replace(bundle.unpack(part.bundle), model="mine:net")
    record = json.dumps(submodel.record(HALF)).encode()
    files[bundle.part_folder(folder, 0.5)] = {**bundle.files(smaller), bundle.CUT: record}
    for where, content in files.items():
        where.mkdir(parents=True)
        for name, written in content.items():
            (where / name).write_bytes(written)
    return folder


def a_run(model: Path, algorithm: str, **how: Any) -> Run:
    settings = {"lr": 0.05, "local-steps": 3, "batch-size": 8}
    chosen = {"importance": "gradients", **how}
    return prepare(RunConfig(algorithm, str(model), rounds=2, devices=4, **chosen), settings, SMALL)


def play(run: Run, journal: Journal, faults: Faults | None = None) -> Coordinator:
    more = {} if faults is None else {"faults": faults}
    scene = Scene(DATA, NAMES, config.cache_folder(), Compute("onnx"), **more)
    return simulate(run, "run", scene, journal, lambda coordinator: None)


def worth(part: int) -> submodel.Cut:
    """Choose for a device by its own data, here."""
    split = data.load(DataConfig("watch", part=part, parts=4, labels_per_class=5), config.cache_folder())
    scores = importance.taylor(load(Compute("onnx"), "watch-cnn"), models.initial(SPEC, 5), split)
    return submodel.chosen(HALF.structure, 0.5, scores)


@pytest.mark.parametrize("name", ["fedavg", "fedspa", "fedbuff"])
def test_a_device_gets_the_channels_that_matter_to_its_own_data(model: Path, tmp_path: Path, name: str) -> None:
    run = a_run(model, name)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        coordinator = play(run, journal)
        accepted, rejected = journal.accepted(), journal.rejected()
        choices = Choices(run, journal)
        parts = {device: choices.cut_of(device) for device in NAMES}
    assert not rejected
    assert [one.device for one in accepted if one.phase == "score"] == NAMES[2:]
    assert {one.device for one in accepted if one.phase == "train"} == set(NAMES)
    assert [parts[device] for device in NAMES[:2]] == [None, None]
    for number, device in enumerate(NAMES[2:], 2):
        found = parts[device]
        assert found is not None
        assert submodel.encode(found) == submodel.encode(worth(number))
        assert submodel.encode(found) != submodel.encode(HALF)
    assert np.isfinite(coordinator.server.shared()).all()  # type: ignore[call-overload]


def test_a_network_that_loses_and_doubles_messages_changes_nothing(model: Path, tmp_path: Path) -> None:
    run, found = a_run(model, "fedavg"), []
    for name, faults in (("calm", None), ("lossy", Faults(0.15, 0.15, 2.0))):
        with contextlib.closing(Journal(tmp_path / name, durable=False)) as journal:
            shared = play(run, journal, faults).server.shared()
            assert shared is not None
            found.append((shared.tobytes(), [journal.devices.part(device) for device in NAMES]))
    assert found[0] == found[1]


def test_what_nobody_in_the_run_has_keeps_its_bits(model: Path, tmp_path: Path) -> None:
    everybody = {"half": {"devices": "*", "width": 0.5}}
    chosen = RunConfig("fedavg", str(model), rounds=1, devices=4, importance="gradients")
    run = prepare(chosen, {"lr": 0.05, "local-steps": 3, "batch-size": 8}, everybody)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        shared = play(run, journal).server.shared()
        cuts = [Choices(run, journal).cut_of(device) for device in NAMES]
    held = np.logical_or.reduce([cut.bits for cut in cuts if cut])
    assert shared is not None
    assert 0.25 < held.mean() < 1
    assert shared[~held].tobytes() == run.initial[~held].tobytes()
    assert (shared[held] != run.initial[held]).mean() > 0.5


def test_a_run_with_whole_models_only_on_these_devices_begins_at_once(model: Path, tmp_path: Path) -> None:
    nobody = {"half": {"devices": "nobody", "width": 0.5}}
    chosen = RunConfig("fedavg", str(model), rounds=1, devices=4, importance="gradients")
    run = prepare(chosen, {"local-steps": 1, "batch-size": 8}, nobody)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        play(run, journal)
        assert {one.phase for one in journal.accepted()} == {"train", "evaluate"}


@pytest.mark.parametrize(
    ("how", "tables", "said"),
    [
        ({"importance": "size"}, SMALL, "importance must be first or gradients"),
        ({"importance": "gradients", "model": "watch-cnn"}, SMALL, "watch-cnn begins at random"),
        ({"importance": "gradients"}, {}, "all devices have the whole model"),
        ({"importance": "gradients", "algorithm": "quped"}, SMALL, "with quped devices have models of their own"),
    ],
)
def test_scores_that_would_mean_nothing_are_refused(
    model: Path, how: dict[str, Any], tables: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(RunConfig(**{"algorithm": "fedavg", "model": str(model), "devices": 4, **how}), {}, tables)


@pytest.mark.parametrize("name", ["quped", "fedavg"])
def test_devices_whose_models_are_their_own_begin_as_the_bundle_says(model: Path, tmp_path: Path, name: str) -> None:
    run = a_run(model, name, importance="first", collect=True)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        play(run, journal)
        assert not journal.rejected()
        assert {one.device for one in journal.accepted() if one.phase == "train"} == set(NAMES)
    cards = [personal.decode((tmp_path / "personal" / f"{name}.bin").read_bytes()).card for name in NAMES]
    assert [card.layout.size for card in cards] == [SPEC.layout.size] * 2 + [int(HALF.bits.sum())] * 2
    assert [bundle.unpack(card.bundle).initial for card in cards] == [None] * 4
