"""What the study holds: scenarios and their cases, as data."""

from typing import Any

from edge_runtime.coordinator.adversary import Attack
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.study import Case, Scenario
from edge_runtime.data import DataConfig

_SHARED = (("", "shared"),)
_AVERAGED = (("", "shared"), (" + fine-tuning", "personal"))
"""A shared model as it is, and after the local training with which every device ends."""

_BUFFERED: dict[str, Any] = {"habit": "asynchronous", "buffer": 5}
_PERSAFL = {"local-steps": 0}

_PERSONAL = (
    Case("local", "local"),
    Case("fedavg", "fedavg", shows=_AVERAGED),
    Case("fedasync", "fedasync", run={"habit": "asynchronous"}, shows=_AVERAGED),
    Case("fedbuff", "fedbuff", run=_BUFFERED, shows=_AVERAGED),
    Case("ditto", "ditto", {"personal-epochs": 2}),
    Case("persafl-a", "persafl", {**_PERSAFL, "option": "A", "personal-steps": 20}, _BUFFERED),
    Case("persafl-b", "persafl", {**_PERSAFL, "option": "B"}, _BUFFERED),
    Case("persafl-c", "persafl", {**_PERSAFL, "option": "C"}, _BUFFERED),
    Case("fedspa", "fedspa", {"density": 0.5}),
    Case("quped", "quped"),
    Case("ffgg", "ffgg"),
)
"""Every algorithm, as it is meant to be used."""

_ATTACKS = ("", "sign-flip", "inner-product", "a-little-is-enough", "label-flip", "gaussian", "mimic")
_LIARS, _MOST_LIARS = 0.2, 7
"""Part of the 100 devices that lie, and how many of 20 drawn at random the aggregators expect at most.

There are more of them in one of fifty rounds (hypergeometric: P(X > 7) = 0.02).
"""
_AGGREGATORS: dict[str, dict[str, Any]] = {
    "mean": {},
    **{name: {"byzantine": _MOST_LIARS} for name in ("median", "trimmed-mean", "multi-krum")},
    # An honest update of a round is about as long as 1; the default radius of 10 would clip nothing.
    "centred-clipping": {"byzantine": _MOST_LIARS, "clip-radius": 1.0},
}
_ATTACKED = tuple(
    Case(
        f"{name}, {kind or 'no attack'}",
        "fedavg",
        {"aggregator": name, **settings},
        attack=Attack(kind, _LIARS),
        shows=_SHARED,
    )
    for name, settings in _AGGREGATORS.items()
    for kind in _ATTACKS
)

_PACES = {
    "constant": Pace(),
    "exponential": Pace("exponential"),
    "log-normal": Pace("log-normal"),
    "slow quarter": Pace("log-normal", slow_part=0.25),
}
_DELAYED = tuple(
    Case(f"{name}, {pace_name}", name, run=run, pace=pace, shows=_SHARED)
    for name, run in (("fedavg", {}), ("fedasync", {"habit": "asynchronous"}), ("fedbuff", _BUFFERED))
    for pace_name, pace in _PACES.items()
)

# A rate falls with every version of the model, of which an asynchronous run has many more: none falls here.
_FASHION = {"lr": 0.05, "lr-decay": 1.0, "local-epochs": 2, "batch-size": 32}
_DEALT = DataConfig("fashion-mnist", parts=100)
_BY_CLASSES = DataConfig("fashion-mnist", parts=100, partition="classes", classes_per_device=2)

SCENARIOS = (
    Scenario(
        "watch",
        "20 smartwatches, 5 labelled windows of each exercise on each: a cold start",
        DataConfig("watch", labels_per_class=5),
        "watch-cnn",
        {"rounds": 10},
        {"lr": 0.05, "lr-decay": 1.0, "local-steps": 20, "batch-size": 16},
        _PERSONAL,
    ),
    Scenario(
        "fashion-dirichlet",
        "fashion-mnist on 100 devices, 10 per round, Dirichlet 0.3",
        _DEALT,
        "mlp",
        {"rounds": 100, "cohort": 10},
        _FASHION,
        _PERSONAL,
        "numpy",
    ),
    Scenario(
        "fashion-classes",
        "fashion-mnist on 100 devices, 10 per round, 2 classes on each",
        _BY_CLASSES,
        "mlp",
        {"rounds": 100, "cohort": 10},
        _FASHION,
        _PERSONAL,
        "numpy",
    ),
    Scenario(
        "attacks",
        "fashion-mnist on 100 devices, 20 per round, Dirichlet 0.3, a fifth of the devices lie",
        _DEALT,
        "mlp",
        {"rounds": 40, "cohort": 20, "quorum": 1.0},
        _FASHION,
        _ATTACKED,
        "numpy",
    ),
    Scenario(
        "delays",
        "fashion-mnist on 100 devices, Dirichlet 0.3, tasks that take differently long (1 s in the mean)",
        _DEALT,
        "mlp",
        {"rounds": 60, "cohort": 10},
        _FASHION,
        _DELAYED,
        "numpy",
    ),
)
