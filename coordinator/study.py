"""The study of all algorithms: which are compared on what. `edge-coordinator bench algorithms` runs it.

A scenario is data, a model and the training that all of its cases share; a case is an algorithm with its settings,
attackers and delays. Every case is run with several seeds: one such run is a cell. A new comparison is a new line here.
"""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_runtime import __version__, algorithm, config
from edge_runtime.coordinator.adversary import Attack
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.data import DataConfig, device_names, seed_set
from edge_runtime.errors import ConfigError

METRICS = ("shared", "personal_before", "personal")
"""Accuracy of the shared model; of a device's own before and after the local training of its last task."""

_HONEST, _STEADY = Attack(), Pace()

_MANY_CASES = 40


@dataclass(frozen=True)
class Case:
    """One way to train, and what is shown of it."""

    name: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of [algorithm] that differ from the scenario's."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Keys of [run] that differ from the scenario's."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tables [variant.NAME]: what some devices have of their own."""
    attack: Attack = _HONEST
    pace: Pace = _STEADY
    shows: tuple[tuple[str, str], ...] = (("", "personal"),)
    """Lines of the table: what is added to the name, and which of METRICS it stands for, or `METRIC of PATTERN`."""
    only: str = "*"
    """A pattern of those devices that take part."""
    groups: tuple[str, ...] = ()
    """Patterns of devices whose accuracies are kept by themselves too."""


@dataclass(frozen=True)
class Scenario:
    """What the cases of one table have in common."""

    name: str
    about: str
    data: DataConfig
    model: str
    run: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Keys of [algorithm]; each case takes those that its algorithm has."""
    cases: tuple[Case, ...]
    backend: str = "auto"
    slow: bool = False
    """Even when it is shrunk, because of its model: a quick study goes without it."""


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    scenario: Scenario
    case: Case
    seed: int

    @property
    def name(self) -> str:
        """Name the cell as its file is named."""
        return f"{self.scenario.name}--{self.case.name}--{self.seed}"

    @property
    def data(self) -> DataConfig:
        """Give the data: another seed deals it anew."""
        return dataclasses.replace(self.scenario.data, seed=self.seed)

    def digest(self) -> str:
        """Stand for all that the cell's result depends on, other scenarios and cases left out."""
        settings = dataclasses.asdict(dataclasses.replace(self.scenario, cases=(), about="", slow=False))
        what = [__version__, settings, dataclasses.asdict(self.case), self.seed]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def prepare(self) -> Run:
        """Check the run down to the last tensor.

        Raises:
            ConfigError: a wrong line in the study.
        """
        scenario, case = self.scenario, self.case
        known = {one.name.replace("_", "-") for one in dataclasses.fields(algorithm.load(case.algorithm).Config)}
        shared = {key: value for key, value in scenario.settings.items() if key in known}
        table = {"algorithm": case.algorithm, "model": scenario.model, "seed": self.seed, **scenario.run, **case.run}
        table["devices"] = devices = len(fnmatch.filter(device_names(scenario.data), case.only))
        if table.get("habit") == "asynchronous" and table.get("cohort"):  # as many updates as the other cases have
            table["rounds"] = max(1, table["rounds"] * table["cohort"] // devices)
        settings = config.build(RunConfig, table, "run")
        seeds = seed_set(self.data, settings.seed_samples, config.cache_folder()) if settings.seed_samples else None
        return prepare(settings, {**shared, **case.settings}, dict(case.variants), seeds)


def cells(scenarios: Sequence[Scenario], seeds: int) -> list[Cell]:
    """List every run, seed by seed, so that a study that is cut short has all of its cases."""
    if seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, not {seeds}")
    return [Cell(scenario, case, seed) for seed in range(seeds) for scenario in scenarios for case in scenario.cases]


def select(
    scenarios: Sequence[Scenario], names: Sequence[str] | None, case_names: Sequence[str] | None
) -> list[Scenario]:
    """Keep what was asked for; None keeps all.

    Raises:
        ConfigError: an unknown name (with the nearest one), or nothing is left.
    """
    _check_names("scenario", names, [scenario.name for scenario in scenarios])
    wanted = [scenario for scenario in scenarios if names is None or scenario.name in names]
    _check_names("case", case_names, [case.name for scenario in wanted for case in scenario.cases])
    if case_names is None:
        return wanted
    kept = [
        dataclasses.replace(scenario, cases=tuple(case for case in scenario.cases if case.name in case_names))
        for scenario in wanted
    ]
    return [scenario for scenario in kept if scenario.cases]


def _check_names(what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--{what}: {name!r} is unknown{config.nearest(name, dict.fromkeys(known))}")


def quick(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Shrink every scenario that is not slow so far that it only shows that everything runs; no number means anything.

    Of a list of cases that differ only in degree, which is a long one, every third is taken.
    """
    return [
        dataclasses.replace(
            scenario,
            cases=scenario.cases[:: 3 if len(scenario.cases) > _MANY_CASES else 1],
            data=dataclasses.replace(
                scenario.data, parts=min(scenario.data.parts, 20), labels_per_class=5, test_samples=20
            ),
            run={**scenario.run, "rounds": 2},
            settings={**scenario.settings, "local-epochs": 1, "local-steps": 0},
        )
        for scenario in scenarios
        if not scenario.slow
    ]
