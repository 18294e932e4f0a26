"""A run as a person writes it, and everything that follows from it before the first message."""

import dataclasses
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime import algorithm, bundle, config, models
from edge_runtime.algorithm import Algorithm
from edge_runtime.coordinator.rounds import Plan
from edge_runtime.errors import ConfigError
from edge_runtime.message import check_name
from edge_runtime.setup import Setup
from edge_runtime.tree import Flat, Layout


@dataclass(frozen=True)
class RunConfig:
    """The table [run]."""

    algorithm: str = "fedspa"
    model: str = "watch-cnn"
    """A built-in model, the folder of a bundle, or `package.module:factory` of a torch module of your own."""
    rounds: int = 12
    devices: int = 1
    """Devices to wait for before the first round."""
    cohort: int = 0
    """Devices per round, drawn at random; 0: all."""
    quorum: float = 0.8
    """Part of the cohort that must have answered for a round to close at its deadline."""
    deadline_s: float = 120.0
    """How long a round waits for its cohort."""
    evaluate: bool = True
    """Let every device evaluate the final model, which costs it one download of the whole shared model."""
    seed: int = 0
    fleet: str = "default"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_name(self.fleet, "run: fleet")
        for name, low in (("rounds", 1), ("devices", 1), ("cohort", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"run: {name} must be at least {low}, not {getattr(self, name)}")
        if not 0 < self.quorum <= 1:
            raise ConfigError(f"run: quorum must lie above 0 and be at most 1, not {self.quorum}")
        if self.deadline_s <= 0:
            raise ConfigError(f"run: deadline-s must be above 0, not {self.deadline_s}")


@dataclass(frozen=True)
class Run:
    """A run, checked and ready: the algorithm, its settings, the model's tensors and initial values [size]."""

    config: RunConfig
    parts: Algorithm
    settings: Any
    description: Setup
    initial: Flat

    def plan(self, run: str, epoch: int) -> Plan:
        """Say what the protocol must know; an update may be a few times the model's size, never more."""
        part = self.config
        limit = (1 << 16) + 16 * len(self.initial)
        return Plan(run, epoch, part.rounds, part.devices, part.cohort, part.quorum, part.evaluate, limit)


def prepare(run: RunConfig, table: dict[str, Any]) -> Run:
    """Check a run down to the last tensor, so that nothing can fail for a wrong setting later.

    Args:
        run: the table [run].
        table: the table [algorithm], kebab-case keys.

    Raises:
        ConfigError: an unknown algorithm, model or key; a setting that this model does not allow.
    """
    parts = algorithm.load(run.algorithm)
    fields = {field.name for field in dataclasses.fields(parts.Config)}
    table = {**table, **({"rounds": run.rounds} if "rounds" in fields else {})}
    settings = config.build(parts.Config, table, "algorithm")
    model, layout, initial, graphs = _model(run.model, run.seed)
    parts.Server(settings, layout, initial, {}, run.seed)
    description = Setup(run.algorithm, config.table(settings), model, layout.names, layout.shapes, run.seed, graphs)
    return Run(run, parts, settings, description, initial)


def _model(model: str, seed: int) -> tuple[str, Layout, Flat, bytes]:
    """Give a model's name, tensors and initial values, and what a device needs of it that it does not have."""
    if (Path(model) / bundle.MANIFEST).exists():
        graphs = bundle.read(Path(model))
        if graphs.initial is None:
            raise ConfigError(f"{model}: this bundle has no initial parameters; name the built-in model instead")
        return graphs.model, graphs.layout, graphs.initial, bundle.pack(graphs)
    if ":" not in model:
        spec = models.find(model)
        return model, spec.layout, models.initial(spec, seed), b""
    # A process of its own: torch's memory stays out of the coordinator.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        command = [sys.executable, "-m", "edge_runtime.export.initial", model, "--seed", str(seed), "--out", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(f"model {model!r} cannot be made: {last}")
        return (model, *models.read_initial(path), b"")


def describe(run: Run) -> dict[str, Any]:
    """Write down a run's settings as plain values."""
    return {
        "run": config.table(run.config),
        "algorithm": run.description.config,
    }
