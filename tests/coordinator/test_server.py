"""The coordinator with a real journal, and what it holds in memory."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np

from edge_runtime import algorithm
from edge_runtime.algorithms import fedavg
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.message import Blob, Chunk, Hello, Offer


def peak_of_a_round(devices: int, folder: Path) -> tuple[int, int]:
    """Let every device answer one round; gives the peak of memory above the start, and the model's bytes."""
    run = prepare(RunConfig(algorithm="fedavg", model="mlp", rounds=1, devices=devices, evaluate=False), {})
    journal = Journal(folder)
    coordinator = Coordinator(run.plan("run", 1), run, journal, lambda device, message: True)
    names = [f"device-{index}" for index in range(devices)]
    tracemalloc.start()
    for name in names:
        coordinator.handle(name, Hello("boot"))
    for index, name in enumerate(names):
        values = np.random.default_rng(index).normal(size=len(run.initial)).astype(np.float32)
        data = algorithm.encode(fedavg.Up(0, 1, values))
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        coordinator.handle(name, Offer("run", 0, "train", blob, {}))
        for chunk in range(blob.chunks):
            start, end = blob.span(chunk)
            coordinator.handle(name, Chunk(blob.digest, chunk, data[start:end]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert coordinator.core.progress.finished
    journal.close()
    return peak, 4 * len(run.initial)


def test_memory_does_not_grow_with_the_number_of_devices_times_the_model(tmp_path: Path) -> None:
    few, model = peak_of_a_round(4, tmp_path / "few")
    many, _ = peak_of_a_round(64, tmp_path / "many")
    assert many - few < model, f"{few} bytes with 4 devices, {many} with 64; one model has {model}"
