"""What `edge-coordinator bench wire` codes, and where it is kept: samples of what our algorithms trained.

A sample is named arrays (`wire_train.py`), in a file of the cache that is named after all that it depends on: so it is
trained once for each version of the package.
"""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import __version__, models
from edge_runtime.compression import quantize
from edge_runtime.compute import Compute, installed
from edge_runtime.coordinator import wire_train
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.wire_train import Sample
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.workshop import Workshop

Shapes = tuple[tuple[int, ...], ...]

_FORMAT = 1
_PART = DataConfig("fashion-mnist", parts=5, alpha=1e6)
_BATCH = 32
_SGD: dict[str, Any] = {"lr": 0.03, "momentum": 0.9, "lr-decay": 1.0, "batch-size": _BATCH}
_OWN = {"resnet20": "edge_runtime.export.resnet:resnet20"}
_USUAL: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "cnn-wide": ((0.5, 0.2, 0.1, 0.05), (1, 2, 3, 4)),
    "resnet20": ((0.1,), (2,)),
}
_PASSES = {"dense": 1, "sparse": 1, "codes": 3}
"""How often a step goes through the model and back."""


@dataclass(frozen=True)
class Recipe:
    """How a sample is made."""

    model: str
    """A built-in model, or `package.module:factory`, of images of 28 x 28 in 10 classes."""
    kind: str
    """`dense`, `sparse` or `codes`."""
    density: float = 1.0
    """Of `sparse`."""
    bits: int = 0
    """Of `codes`."""
    epochs: float = 1.0
    """How often a model sees the device's 12,000 images; the shorter steps of others count for those of `codes`."""
    backend: str = "auto"

    @property
    def name(self) -> str:
        """Say in a few words what is trained."""
        what = {"dense": "dense", "sparse": f"density {self.density:g}", "codes": f"{self.bits} bits"}
        return f"{self.model.rpartition(':')[2]}, {what[self.kind]}"

    def path(self, cache: Path) -> Path:
        """Say where the sample is kept."""
        key = json.dumps([_FORMAT, __version__, dataclasses.asdict(self)])
        return cache / f"wire-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"

    def run(self) -> Run:
        """Check the settings down to the last tensor, as a run's are.

        Raises:
            ConfigError: an unknown model, or a setting that it does not allow.
        """
        name = {"dense": "fedavg", "sparse": "fedspa", "codes": "quped"}[self.kind]
        own: dict[str, dict[str, Any]] = {
            "dense": {},
            "sparse": {"density": self.density},
            "codes": {"bits": self.bits, "lambda-p": 0.0, "shared-ce": 0.0, "full-precision": "*.bias,*norm*"},
        }
        rounds = wire_train.ROUNDS[self.kind]
        if self.epochs <= 0 or not math.isfinite(self.epochs):
            raise ConfigError(f"--epochs must be above 0, not {self.epochs:g}")
        if self.kind == "codes" and self.bits < 1:
            raise ConfigError(f"--bits must be from 1 to {quantize.MAX_BITS}, not {self.bits}")
        if ":" not in self.model and models.find(self.model).input_shape != (1, 28, 28):
            raise ConfigError(f"--model {self.model}: it does not take images of fashion-mnist")
        images = self.epochs * 60_000 / _PART.parts / _PASSES[self.kind]
        steps = math.ceil(images / rounds / _BATCH)
        config = RunConfig(name, self.model, rounds + (self.kind == "sparse"))
        return prepare(config, {**_SGD, "local-steps": steps, **own[self.kind]})


def recipes(
    names: Sequence[str] | None,
    densities: Sequence[float] | None,
    bits: Sequence[int] | None,
    epochs: float,
) -> list[Recipe]:
    """Say which samples there are of each model: dense, at each density, and with each number of bits.

    None stands for what is usual: both models that the wire is measured on, the smaller one at one density.
    """
    backend = "torch" if "torch" in installed() else "auto"
    made = []
    for name in names or _USUAL:
        usual_densities, usual_bits = _USUAL.get(name, _USUAL["cnn-wide"])
        common: dict[str, Any] = {"model": _OWN.get(name, name), "epochs": epochs, "backend": backend}
        made.append(Recipe(kind="dense", **common))
        made += [Recipe(kind="sparse", density=one, **common) for one in densities or usual_densities]
        made += [Recipe(kind="codes", bits=one, **common) for one in bits or usual_bits]
    return made


def samples(
    wanted: Sequence[Recipe], cache: Path, threads: int, tell: Callable[[str], None]
) -> Iterator[tuple[Recipe, Sample]]:
    """Give each recipe's sample, from the cache or made now; `tell` is told of what is trained.

    The cache also keeps the data set. `codes` begin with the weights of `dense`, which must come before them.

    Raises:
        ConfigError: a wrong recipe, before anything is trained; no data set.
        DeviceError: this machine lacks what training needs, or the cache cannot be written.
    """
    runs = [(recipe, recipe.run()) for recipe in wanted if read(recipe.path(cache)) is None]
    workshop = Workshop(models=1, splits=1)
    for done, (recipe, run) in enumerate(runs):
        tell(f"{recipe.name}: training {done + 1}/{len(runs)} ...")
        model = workshop.model(Compute(recipe.backend, threads=threads), run.description.model)
        split = workshop.split(_PART, cache)
        match recipe.kind:
            case "dense":
                sample = wire_train.dense(run, model, split)
            case "sparse":
                sample = wire_train.sparse(run, model, split)
            case _:
                trained = dataclasses.replace(recipe, kind="dense", bits=0)
                sample = wire_train.codes(run, model, split, _present(trained.path(cache))["weights"])
        write(recipe.path(cache), sample)
    for recipe in wanted:
        yield recipe, _present(recipe.path(cache))


def _present(path: Path) -> Sample:
    found = read(path)
    if found is None:
        raise ConfigError(f"{path}: is needed and not there, or damaged; run this again")
    return found


def read(path: Path) -> Sample | None:
    """Read a sample; None if it is missing or damaged, which making it anew mends."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, sample: Sample) -> None:
    """Write a sample, whole or not at all; the inverse of `read`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.savez(file, **sample)  # type: ignore[arg-type]
    write_atomic(path, file.getvalue())


def shapes(sample: Sample) -> Shapes:
    """Give the shapes of the tensors whose values a sample holds end to end."""
    return tuple(tuple(shape) for shape in json.loads(str(sample["tensors"])))


def sizes(sample: Sample) -> list[int]:
    """Count the values of each of these tensors."""
    return [math.prod(shape) for shape in shapes(sample)]


def active(sample: Sample) -> list[int]:
    """Count the active values of each tensor of a sparse sample."""
    return [int(np.count_nonzero(part)) for part in np.split(sample["mask"], np.cumsum(sizes(sample))[:-1])]


def active_rows(sample: Sample) -> list[int]:
    """Count the active values of each row of each tensor; of one dimension, it is one row."""
    counts: list[int] = []
    for part, shape in zip(np.split(sample["mask"], np.cumsum(sizes(sample))[:-1]), shapes(sample), strict=True):
        rows = part.reshape(shape[0] if len(shape) > 1 else 1, -1)
        counts += np.count_nonzero(rows, axis=1).tolist()
    return counts
