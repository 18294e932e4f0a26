"""What the study holds: scenarios and their cases, as data."""

from edge_runtime.coordinator.adversary import Attack
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.study import Case, Scenario
from edge_runtime.data import DataConfig

_SHARED = (("", "shared"),)
_AVERAGED = (("", "shared"), (" + fine-tuning", "personal"))
"""A shared model as it is, and after the local training with which every device ends."""

_PERSONAL = (
    Case("local", "local"),
    Case("fedavg", "fedavg", shows=_AVERAGED),
    Case("ditto", "ditto", {"personal-epochs": 2}),
    Case("fedspa", "fedspa", {"density": 0.5}),
)
"""Every algorithm, as it is meant to be used."""

_ATTACKS = ("", "sign-flip", "inner-product", "a-little-is-enough", "label-flip", "gaussian", "mimic")
_LIARS, _MOST_LIARS = 0.2, 7
"""Part of the 100 devices that lie, and how many of 20 drawn at random the aggregators expect at most.

There are more of them in one of fifty rounds (hypergeometric: P(X > 7) = 0.02).
"""
_AGGREGATORS = ("mean", "median", "trimmed-mean", "multi-krum", "centred-clipping")
_ATTACKED = tuple(
    Case(
        f"{name}, {kind or 'no attack'}",
        "fedavg",
        {"aggregator": name, "byzantine": 0 if name == "mean" else _MOST_LIARS},
        attack=Attack(kind, _LIARS),
        shows=_SHARED,
    )
    for name in _AGGREGATORS
    for kind in _ATTACKS
)

_PACES = {
    "constant": Pace(),
    "exponential": Pace("exponential"),
    "log-normal": Pace("log-normal"),
    "slow quarter": Pace("log-normal", slow_part=0.25),
}
_DELAYED = tuple(Case(f"fedavg, {name}", "fedavg", pace=pace, shows=_SHARED) for name, pace in _PACES.items())

_FASHION = {"lr": 0.05, "local-epochs": 2, "batch-size": 32}
_DEALT = DataConfig("fashion-mnist", parts=100)
_BY_CLASSES = DataConfig("fashion-mnist", parts=100, partition="classes", classes_per_device=2)

SCENARIOS = (
    Scenario(
        "watch",
        "20 smartwatches, 5 labelled windows of each exercise on each: a cold start",
        DataConfig("watch", labels_per_class=5),
        "watch-cnn",
        {"rounds": 10},
        {"lr": 0.05, "local-steps": 20, "batch-size": 16},
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
        {"rounds": 40, "cohort": 20},
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
