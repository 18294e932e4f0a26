"""The coordinator with a real journal, and what it holds in memory."""

import gc
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import wire
from edge_runtime.algorithms import fedavg
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.message import Blob, Chunk, Fate, Hello, Message, Offer


class Deaf:
    """A network that keeps nothing of what it is given."""

    def send(self, device: str, message: Message) -> bool:
        return True

    def share(self, chunk: Chunk) -> bool:
        return True

    def room(self) -> bool:
        return True


class Told(Deaf):
    """A network that writes down what devices are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Message]] = []

    def send(self, device: str, message: Message) -> bool:
        self.told.append((device, message))
        return True


def peak_of_a_round(devices: int, folder: Path) -> tuple[int, int]:
    """Let every device answer one round; gives the peak of memory above the start, and the model's bytes."""
    run = prepare(RunConfig(algorithm="fedavg", model="mlp", rounds=1, devices=devices, evaluate=False), {})
    journal = Journal(folder)
    coordinator = Coordinator(run.plan("run", 1), run, journal, Deaf())
    names = [f"device-{index}" for index in range(devices)]
    gc.collect()  # what other tests have left must not be freed, or not, while this one measures
    tracemalloc.start()
    for name in names:
        coordinator.handle(name, Hello("boot"))
    for index, name in enumerate(names):
        values = np.random.default_rng(index).normal(size=len(run.initial)).astype(np.float32)
        data = wire.encode(fedavg.Up(0, 1, values))
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


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_rejected_counted_and_attributed(poison: float, tmp_path: Path) -> None:
    run = prepare(RunConfig(algorithm="fedavg", model="mlp", rounds=1, devices=3, quorum=0.6, evaluate=False), {})
    journal, post = Journal(tmp_path), Told()
    coordinator = Coordinator(run.plan("run", 1), run, journal, post)
    for name in ("a", "b", "liar"):
        coordinator.handle(name, Hello("boot"))
    for name in ("a", "liar", "b"):
        values = np.ones(len(run.initial), np.float32)
        values[7] = poison if name == "liar" else 1
        data = wire.encode(fedavg.Up(0, 1, values))
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        coordinator.handle(name, Offer("run", 0, "train", blob, {}))
        for chunk in range(blob.chunks):
            start, end = blob.span(chunk)
            coordinator.handle(name, Chunk(blob.digest, chunk, data[start:end]))
    (rejected,) = journal.rejected()
    assert (rejected.round, rejected.device) == (0, "liar")
    assert "not finite" in rejected.reason
    assert any(device == "liar" and isinstance(m, Fate) and m.fate == "rejected" for device, m in post.told)
    assert np.array_equal(coordinator.server.shared(), run.initial - np.float32(1))
    journal.close()
