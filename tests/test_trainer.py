"""What a device refuses before it trains, and how it says so."""

import dataclasses
import hashlib
import math
import re

import numpy as np
import pytest

from edge_runtime import bundle, config, costs, models, narrow, needs, personal, setup, trainer, wire
from edge_runtime.algorithm import Fitted
from edge_runtime.algorithms import fedavg
from edge_runtime.backends import load
from edge_runtime.compression import submodel
from edge_runtime.compute import Compute
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.data import DataConfig
from edge_runtime.devices.profile import profile
from edge_runtime.errors import DecodeError
from edge_runtime.message import Blob, Task
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.tree import Layout
from edge_runtime.workshop import Workshop

DESCRIPTION = prepare(RunConfig("fedavg"), {"local-steps": 1, "batch-size": 4}).description
LAYOUT = models.find("watch-cnn").layout


def work(
    description: setup.Setup,
    up: str = "",
    store: MemoryStore | None = None,
    phase: str = "train",
    keep: bool = False,
    compute: Compute = Compute("numpy"),  # noqa: B008  # frozen
) -> Outcome:
    store = store or MemoryStore()
    down = wire.encode(fedavg.Down(0, models.initial(models.find("watch-cnn"), 0)))
    down = wire.encode_evaluation(down, None, LAYOUT) if phase == "evaluate" else down
    blobs = []
    for data in (setup.encode(description), down):
        blobs.append(Blob(hashlib.sha256(data).hexdigest(), len(data)))
        store.blobs[blobs[-1].digest] = data
    job = trainer.Job("device", DataConfig(labels_per_class=1), str(config.cache_folder()), compute, up=up)
    return trainer.work(job, Task("run", 1, 0, phase, "", *blobs), store, keep=keep)


def test_a_task_is_refused_by_the_estimate_that_the_coordinator_goes_by() -> None:
    pytest.importorskip("onnxruntime")
    known = costs.read(bundle.built_in_folder("watch-cnn"))
    needed = needs.memory_bytes(known, 0, "onnx", 1.0, 4, LAYOUT.size, own=False)
    enough_mb = math.ceil(needed / 1e6)
    assert work(DESCRIPTION, compute=Compute("onnx", memory_mb=enough_mb)).reason == ""
    refused = work(DESCRIPTION, compute=Compute("onnx", memory_mb=enough_mb - 1)).reason
    assert f"needs up to {enough_mb} MB for batches of 4, and {enough_mb - 1} MB are free here" in refused


def test_a_device_says_before_its_first_task_what_memory_it_has_and_how_fast_it_is() -> None:
    job = trainer.Job("device", DataConfig(labels_per_class=1), str(config.cache_folder()), Compute(memory_mb=1))
    found = trainer.check(job).metrics
    assert found["room-bytes"] == 1_000_000
    assert found["reference-ms"] > 0
    free = trainer.check(dataclasses.replace(job, compute=Compute())).metrics["room-bytes"]
    assert 0 < free <= (profile().ram_bytes or math.inf)


def with_layout(layout: Layout) -> setup.Setup:
    return dataclasses.replace(DESCRIPTION, model=setup.ModelCard("watch-cnn", layout))


def test_a_run_that_fits_is_trained() -> None:
    done = work(DESCRIPTION)
    assert done.reason == ""
    assert len(wire.decode(done.payload, fedavg.Up, LAYOUT).values) == LAYOUT.size


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            Layout(LAYOUT.names, ((32, 6, 9), *LAYOUT.shapes[1:])),
            r"conv1.weight \(32, 6, 11\) here, \(32, 6, 9\) there",
        ),
        (Layout(LAYOUT.names[:-1], LAYOUT.shapes[:-1]), r"linear1.bias \(7,\) here, missing there"),
        (Layout(LAYOUT.names[::-1], LAYOUT.shapes[::-1]), "the same in another order"),
    ],
    ids=["shape", "missing", "order"],
)
def test_a_model_with_other_tensors_than_the_coordinators_is_refused_with_the_difference(
    layout: Layout, words: str
) -> None:
    done = work(with_layout(layout))
    assert done.payload == b""
    assert "has other tensors on this device than on the coordinator" in done.reason
    assert re.search(words, done.reason)


def test_a_run_that_would_keep_other_tensors_private_than_its_settings_say_is_refused() -> None:
    run = prepare(RunConfig("ffgg"), {"private": "conv1.*"}).description
    done = work(dataclasses.replace(run, private=("conv1.weight",)))
    assert "differ in whether conv1.bias is private" in done.reason


def test_code_that_the_device_does_not_allow_is_not_imported() -> None:
    card = setup.ModelCard("os:abort", LAYOUT)
    done = work(dataclasses.replace(DESCRIPTION, model=card))
    assert "is code that this device does not allow" in done.reason


@pytest.mark.parametrize(
    ("run", "device", "smaller"),
    [
        ("lossless", "step:1", True),
        ("step:1", "lossless", False),
        ("step:1", "bits:1", True),
        ("bits:1", "bf16", False),
    ],
)
def test_an_update_travels_as_the_run_says_or_cheaper_if_its_device_asks(run: str, device: str, smaller: bool) -> None:
    description = dataclasses.replace(DESCRIPTION, up=run)
    as_said, as_asked = work(description).payload, work(description, device).payload
    assert (len(as_asked) < len(as_said)) is smaller
    assert (as_asked == as_said) is not smaller


def test_a_part_that_is_not_what_its_cut_says_is_refused() -> None:
    spec = models.find("mlp")
    half, quarter = (submodel.nested(narrow.structure(spec), width) for width in (0.5, 0.25))
    card = setup.ModelCard("mlp", narrow.layout(spec.layout, half), cut=submodel.encode(quarter))
    job = trainer.Job("device", DataConfig(), "nowhere")
    with pytest.raises(DecodeError, match="has other tensors than it says"):
        trainer._load(job, card, Workshop())


def test_the_personal_model_is_what_training_has_left_and_says_how_good_it_is() -> None:
    done = work(DESCRIPTION, keep=True)
    left = personal.decode(done.personal)
    assert (left.origin.run, left.origin.round, left.origin.device) == ("run", 1, "device")
    assert left.origin.accuracy == done.metrics["accuracy-personal"]
    assert left.origin.samples == done.metrics["test-samples"]
    start = models.initial(models.find("watch-cnn"), 0)
    moved = wire.decode(done.payload, fedavg.Up, LAYOUT).values
    np.testing.assert_allclose(left.values, start - moved, atol=1e-6)
    assert "accuracy-served" not in done.metrics
    assert work(DESCRIPTION).personal == b""


def served(data: str, names: tuple[str, ...], accuracy: float = 0.99) -> MemoryStore:
    """A store that serves the initial model, said to be of an accuracy that it does not have."""
    store, spec = MemoryStore(), models.find("watch-cnn")
    origin = personal.Origin("before", 3, "device", "fedavg", names, accuracy, 75, data)
    fitted = Fitted(load(Compute("numpy"), "watch-cnn"), models.initial(spec, 0))
    store.keep_personal("before", personal.encode(origin, setup.ModelCard("watch-cnn", LAYOUT), fitted), serve=True)
    return store


def test_the_model_that_is_served_counts_as_measured_if_the_data_are_the_same_and_is_measured_anew_if_not() -> None:
    own = personal.origin(work(DESCRIPTION, keep=True).personal)
    same = work(DESCRIPTION, keep=True, store=served(own.data, own.class_names))
    assert same.metrics["accuracy-served"] == 0.99
    other = work(DESCRIPTION, keep=True, store=served("other", own.class_names))
    assert other.metrics["accuracy-served"] == other.metrics["accuracy-personal-before"]


def test_a_model_for_other_classes_or_a_damaged_one_is_no_rival() -> None:
    own = personal.origin(work(DESCRIPTION, keep=True).personal)
    done = work(DESCRIPTION, keep=True, store=served(own.data, ("other", "classes")))
    assert "accuracy-served" not in done.metrics
    store = MemoryStore()
    store.keep_personal("run", b"damaged", serve=True)
    assert "accuracy-served" not in work(DESCRIPTION, keep=True, store=store).metrics


def test_a_model_of_long_ago_that_cannot_be_evaluated_here_is_no_rival_and_stops_nothing() -> None:
    own, spec = personal.origin(work(DESCRIPTION, keep=True).personal), models.find("mlp")
    origin = dataclasses.replace(own, data="other")
    fitted = Fitted(load(Compute("numpy"), "mlp"), models.initial(spec, 0))
    for card in (setup.ModelCard("mlp", spec.layout), setup.ModelCard("watch-cnn", spec.layout)):
        store = MemoryStore()
        store.keep_personal("before", personal.encode(origin, card, fitted), serve=True)
        done = work(DESCRIPTION, keep=True, store=store)
        assert done.reason == ""
        assert "accuracy-served" not in done.metrics


def test_an_evaluation_hands_the_personal_model_over_only_where_the_run_collects() -> None:
    collecting = dataclasses.replace(DESCRIPTION, collect=True)
    left = personal.decode(work(collecting, phase="evaluate").payload)
    assert left.origin.round == 0
    assert work(DESCRIPTION, phase="evaluate").payload == b""
    assert work(collecting).payload == work(DESCRIPTION).payload
