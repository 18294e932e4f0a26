"""Devices with parts of the model train in one run with those that have all of it."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import config
from edge_runtime.compute import Compute
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.data import DataConfig, device_names

DATA = DataConfig("watch", parts=6, labels_per_class=5, test_samples=20)
WIDTHS = {"half": {"devices": "person-02-*", "width": 0.5}, "quarter": {"devices": "person-03-*", "width": 0.25}}
SETTINGS: dict[str, Any] = {"lr": 0.05, "local-steps": 4, "batch-size": 8}


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
@pytest.mark.parametrize("name", ["ditto", "fedavg", "fedavg, narrower", "fedbuff", "fedspa", "quped"])
def test_three_sizes_of_device_train_in_one_run(tmp_path: Path, name: str, backend: str) -> None:
    name, _, narrower = name.partition(", ")
    settings = SETTINGS | ({"ordered-dropout": 0.5} if narrower else {})
    coded = RunConfig(name, "watch-cnn", rounds=2, devices=6, up="step:0.25", down="step:0.5")
    run, names = prepare(coded, settings, WIDTHS), device_names(DATA)
    scene = Scene(DATA, names, config.cache_folder(), Compute(backend))
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        coordinator = simulate(run, "run", scene, journal, lambda coordinator: None)
        accepted, rejected = journal.accepted(), journal.rejected()
    assert sorted(one.device for one in accepted if one.phase == "evaluate") == sorted(names)
    assert not rejected
    sent = [(one.device, one.metrics["payload-bytes-up"]) for one in accepted if one.phase == "train"]
    up = {name: np.mean([size for device, size in sent if device == name]) for name in names}
    whole, half, quarter = ([up[device] for device in names if f"person-0{i}-" in device] for i in (1, 2, 3))
    assert min(whole) > 2 * max(half) > 4 * max(quarter)
    assert np.isfinite(coordinator.server.shared()).all()  # type: ignore[call-overload]
