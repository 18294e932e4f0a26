"""`edge-coordinator simulate` as a person runs it: data and models of one's own, and the same report twice."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.coordinator import report

MODULE = """
import torch

def fits():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2))
"""


def simulate(runs: Path, *flags: str, path: Sequence[Path] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "simulate", "--runs", str(runs), "--json", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def finished(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Make three devices' data that a linear rule separates, and a torch module for it."""
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(8, 3))
    for device in ("north", "south", "west"):
        folder = tmp_path / "data" / device
        folder.mkdir(parents=True)
        for name in ("train", "test"):
            x = rng.normal(size=(90, 2, 4)).astype(np.float32)
            np.savez(folder / f"{name}.npz", x=x, y=(x.reshape(90, 8) @ rule).argmax(1))
    (tmp_path / "own_models.py").write_text(MODULE)
    return tmp_path


def test_the_same_simulation_gives_the_same_report_whatever_the_network_does(tmp_path: Path) -> None:
    flags = ("--parts", "3", "--labels-per-class", "3", "--rounds", "2", "--set", "algorithm.local-steps=3")
    bad = ("--drop", "0.15", "--duplicate", "0.1", "--delay", "1.5")
    calm, again, lossy = (
        finished(simulate(tmp_path / name, *flags, *more))
        for name, more in (("calm", ()), ("again", ()), ("lossy", bad))
    )
    assert report.to_json(report.without_times(calm)) == report.to_json(report.without_times(again))
    accuracy = [
        [(device["id"], device["accuracy_personal"], device["loss"]) for device in made["devices"]]
        for made in (calm, lossy)
    ]
    assert accuracy[0] == accuracy[1]


def test_fashion_mnist_is_dealt_to_as_many_devices_as_asked_for(tmp_path: Path) -> None:
    flags = ("--data", "fashion-mnist", "--parts", "40", "--model", "linear", "--rounds", "1", "--no-baseline")
    made = finished(simulate(tmp_path, *flags, "--labels-per-class", "5", "--set", "run.cohort=2"))
    assert [device["training_rounds"] for device in made["devices"]].count(1) == 2


def test_a_torch_module_learns_from_a_folder_of_ones_own(own: Path) -> None:
    pytest.importorskip("torch")
    flags = ("--data", str(own / "data"), "--model", "own_models:fits", "--rounds", "5", "--set", "algorithm.lr=0.3")
    made = finished(simulate(own / "runs", *flags, path=[own]))
    assert [device["id"] for device in made["devices"]] == ["north", "south", "west"]
    assert made["summary"]["accuracy_personal"]["mean"] > 0.6


@pytest.mark.parametrize(
    ("model", "words"),
    [("own_models:narrow", "too few for 3 classes"), ("cnn", "does not take samples of shape (2, 4)")],
)
def test_a_model_that_does_not_fit_the_data_is_one_line(own: Path, model: str, words: str) -> None:
    pytest.importorskip("torch")
    done = simulate(own / "runs", "--data", str(own / "data"), "--model", model, path=[own])
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert words in last


def test_a_task_that_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    flags = ("--data", "fashion-mnist", "--parts", "40", "--labels-per-class", "2", "--model", "cnn", "--rounds", "1")
    done = simulate(tmp_path, *flags, "--algorithm", "fedavg", "--set", "run.cohort=2", "--memory-mb", "40")
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "none of 40 devices gets a task" in last
    assert "MB of memory beside the program, and the device has 40" in last


def test_devices_with_a_part_of_a_model_of_ones_own_train_with_the_others(own: Path) -> None:
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "export", "--model", "own_models:fits"]
    command += ["--input", "2x4", "--width", "0.5", "--by", "magnitude", "--no-costs", "--out", str(own / "bundle")]
    environment = {**os.environ, "PYTHONPATH": str(own)}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert made.returncode == 0, made.stderr
    assert "0.5 of its channels: 99 parameters" in made.stdout
    assert "own_models:fits: 3 stays whole: it is what the model gives" in made.stderr
    flags = ("--data", str(own / "data"), "--model", str(own / "bundle"), "--algorithm", "fedavg", "--rounds", "4")
    west = ("--set", "variant.small.devices=west", "--set", "run.up=lossless", "--set", "run.down=lossless")
    record = finished(simulate(own / "runs", *flags, *west, "--set", "variant.small.width=0.5"))
    sent = {device["id"]: device["payload_bytes_up"] for device in record["devices"]}
    assert sent["west"] < 0.6 * sent["north"]
    assert record["summary"]["accuracy_personal"]["mean"] > 0.6
    none = simulate(own / "runs", *flags, *west, "--set", "variant.small.width=0.3")
    assert none.returncode == 2
    assert "has no part of that width; make it" in none.stderr
