"""What a device refuses before it trains, and how it says so."""

import dataclasses
import hashlib
import re

import pytest

from edge_runtime import config, models, narrow, setup, trainer, wire
from edge_runtime.algorithms import fedavg
from edge_runtime.compression import submodel
from edge_runtime.compute import Compute
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.data import DataConfig
from edge_runtime.errors import DecodeError
from edge_runtime.message import Blob, Task
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.tree import Layout
from edge_runtime.workshop import Workshop

DESCRIPTION = prepare(RunConfig("fedavg"), {"local-steps": 1, "batch-size": 4}).description
LAYOUT = models.find("watch-cnn").layout


def work(description: setup.Setup, up: str = "") -> Outcome:
    store = MemoryStore()
    down = wire.encode(fedavg.Down(0, models.initial(models.find("watch-cnn"), 0)))
    blobs = []
    for data in (setup.encode(description), down):
        blobs.append(Blob(hashlib.sha256(data).hexdigest(), len(data)))
        store.blobs[blobs[-1].digest] = data
    job = trainer.Job("device", DataConfig(labels_per_class=1), str(config.cache_folder()), Compute("numpy"), up=up)
    return trainer.work(job, Task("run", 1, 0, "train", "", *blobs), store)


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
