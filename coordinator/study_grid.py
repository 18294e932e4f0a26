"""What the study holds: scenarios and their cases, as data."""

import dataclasses
from typing import Any

from edge_runtime.coordinator.adversary import Attack
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.study import Case, Scenario
from edge_runtime.data import DataConfig

_SHARED = (("", "shared"),)
_AVERAGED = (("", "shared"), (" + fine-tuning", "personal"))
"""A shared model as it is, and after the local training with which every device ends."""

_AT_ONCE: dict[str, Any] = {"habit": "asynchronous"}
_IN_ROUNDS: dict[str, Any] = {"habit": "synchronous"}

# beta = 0.1: an update counts as much as one of a round of ten. The other settings of B and C were tried on seed 0.
_PERSAFL = {"local-steps": 0, "server-lr": 0.1}
_MAML = {**_PERSAFL, "option": "B", "hessian": "none", "adaptation-lr": 0.05}
_MOREAU = {**_PERSAFL, "option": "C", "attraction": 1.0, "inner-lr": 0.1, "inner-steps": 5, "lr": 0.5}
_QUPED = {"lambda-0": 0.001, "shared-ce": 1.0}
_FFGG = {"variant": "local", "private-lr": 0.05}

_BASELINES = (
    Case("local", "local"),
    Case("fedavg", "fedavg", shows=_AVERAGED),
    Case("ditto", "ditto", {"personal-epochs": 2}),
)
# Ditto trains two models: these compute as much.
_TWICE = (
    Case("local, 4 epochs", "local", {"local-epochs": 4}),
    Case("fedavg, 4 epochs", "fedavg", {"local-epochs": 4}, shows=_AVERAGED),
    Case("fedspa, 4 epochs", "fedspa", {"density": 0.5, "aggregate": "owners", "local-epochs": 4}),
)
_OURS = (
    Case("fedspa", "fedspa", {"density": 0.5, "aggregate": "owners"}),
    Case("quped, 2 bits", "quped", _QUPED),
    Case("ffgg", "ffgg", _FFGG),
)
_FREE = (
    Case("fedasync", "fedasync", run=_AT_ONCE, shows=_AVERAGED),
    Case("fedbuff", "fedbuff", run={**_AT_ONCE, "buffer": 5}, shows=_AVERAGED),
    Case("persafl-a", "persafl", {**_PERSAFL, "option": "A"}, _AT_ONCE),
    Case("persafl-b", "persafl", _MAML, _AT_ONCE),
    Case("persafl-c", "persafl", _MOREAU, _AT_ONCE),
)
_SYNCHRONOUS = (
    Case("persafl-b, synchronous", "persafl", {**_MAML, "server-lr": 1.0}, _IN_ROUNDS),
    Case("persafl-c, synchronous", "persafl", {**_MOREAU, "server-lr": 1.0}, _IN_ROUNDS),
)
# Half of what counts at a cold start is what the others know; searched on seed 0, as the rates of all were.
_COLD = {**_QUPED, "lambda-p": 0.5}
_BITS = (
    Case("quped, 2 bits", "quped", _COLD),
    Case("quped, full precision", "quped", {**_COLD, "bits": 0}),
    Case(
        "quped, 1, 2 and 4 bits",
        "quped",
        _COLD,
        variants={
            "one": {"devices": "person-*[147]-*", "bits": 1},
            "four": {"devices": "person-*[258]-*", "bits": 4},
        },
    ),
)

_ATTACKS = ("", "sign-flip", "inner-product", "a-little-is-enough", "label-flip", "gaussian", "mimic")
_SUBTLER_ATTACKS = (*_ATTACKS[:5], "large-sign-flip", "small-inner-product", "min-max", "backdoor")
_LIARS, _MOST_LIARS = 0.2, 7
"""Part of the 100 devices that lie, and how many of 20 drawn at random the aggregators expect at most.

There are more of them in one of fifty rounds (hypergeometric: P(X > 7) = 0.02).
"""
_ROBUST = {"aggregator": "geometric-median", "byzantine": _MOST_LIARS}
_AGGREGATORS: dict[str, dict[str, Any]] = {
    **{name: {"byzantine": _MOST_LIARS} for name in ("median", "trimmed-mean", "multi-krum")},
    # An honest update of a round is about as long as 1 (seen on these data); the default radius of 10 clips nothing.
    "centred-clipping": {"byzantine": _MOST_LIARS, "clip-radius": 1.0},
}


def _attacked(
    name: str, algorithm: str, settings: dict[str, Any], kinds: tuple[str, ...], *shows: Any, quorum: float = 1.0
) -> list[Case]:
    run = {"quorum": quorum} if quorum < 1 else {}
    return [
        Case(f"{name}, {kind or 'no attack'}", algorithm, settings, run, attack=Attack(kind, _LIARS), shows=shows)
        for kind in kinds
    ]


_ATTACKED = (
    *_attacked("fedavg", "fedavg", {}, _ATTACKS, *_SHARED),
    *_attacked("fedavg geometric-median", "fedavg", _ROBUST, _ATTACKS, *_SHARED),
    *_attacked("ffgg geometric-median", "ffgg", {**_FFGG, **_ROBUST}, _ATTACKS, ("", "personal")),
    # Who is rejected must not keep a round open. All others answer in a simulation, so that nothing else changes.
    *_attacked("fedavg robust", "fedavg", {"robust": True}, _SUBTLER_ATTACKS, *_SHARED, quorum=0.8),
    *_attacked("ffgg mean", "ffgg", _FFGG, ("", "inner-product"), ("", "personal")),
    *(
        case
        for name, settings in _AGGREGATORS.items()
        for case in _attacked(
            f"fedavg {name}", "fedavg", {"aggregator": name, **settings}, ("", "inner-product"), *_SHARED
        )
    ),
)

_PACES = {
    "constant": Pace(),
    "exponential": Pace("exponential"),
    "log-normal": Pace("log-normal"),
    "slow quarter": Pace("log-normal", slow_part=0.25),
}
_DELAYED = (
    *(
        Case(f"{name}, {pace_name}", name, run=run, pace=pace, shows=_SHARED)
        for name, run in (("fedavg", {}), ("fedasync", _AT_ONCE), ("fedbuff", {**_AT_ONCE, "buffer": 5}))
        for pace_name, pace in _PACES.items()
    ),
    *(
        Case(
            f"{name}, slow quarter, at most 20 versions old",
            "persafl",
            {**settings, "staleness": "drop", "staleness-limit": 20},
            _AT_ONCE,
            pace=_PACES["slow quarter"],
        )
        for name, settings in (
            ("persafl-a", {**_PERSAFL, "option": "A"}),
            ("persafl-b", _MAML),
            ("persafl-c", _MOREAU),
        )
    ),
)

_ARCHITECTURES = {
    "mlp": {"devices": "device-00[14]", "model": "mlp"},
    "linear": {"devices": "device-00[25]", "model": "linear"},
}
_ROTATED = (
    Case("independent", "fedh2l", {"distillation": 0.0, "seed-loss": False}, variants=_ARCHITECTURES),
    Case("seed set alone", "fedh2l", {"distillation": 0.0}, variants=_ARCHITECTURES),
    Case("fedh2l", "fedh2l", variants=_ARCHITECTURES),
    Case("fedavg, one architecture", "fedavg", shows=_AVERAGED),
)

# How coarse may it be? Steps both ways; few bits upwards, where they have something to add to the next update.
_STEPS, _FEW_BITS = ("0.25", "0.5", "1"), ("4", "2", "1")
_CODINGS: dict[str, dict[str, Any]] = {
    "lossless": {},
    **{f"step {step}": {"up": f"step:{step}", "down": f"step:{step}"} for step in _STEPS},
    **{f"{bits} bit": {"up": f"bits:{bits}", "down": "step:0.5"} for bits in _FEW_BITS},
}
_SPARSE = {"aggregate": "owners", "prune-rate": 0.1}
_WIRED = tuple(
    Case(f"{name}, {coding}{forgetful}", algorithm, settings, {**run, **how}, shows=shows)
    for name, algorithm, settings, shows in (
        ("fedavg", "fedavg", {}, _AVERAGED[1:]),
        *((f"fedspa {d}", "fedspa", {**_SPARSE, "density": d}, (("", "personal"),)) for d in (0.5, 0.2, 0.1)),
    )
    for coding, run in _CODINGS.items()
    for forgetful, how in (("", {}), (", no feedback", {"error-feedback": False}))
    if run or not how
)

# A device takes part in every fourth round: nothing it holds of the model is from the round before.
_LARGE = tuple(
    Case(f"fedspa 0.1, {coding}", "fedspa", {**_SPARSE, "density": 0.1}, _CODINGS[coding])
    for coding in ("lossless", "step 1")
)

_SHARES = {"half": 0.5, "quarter": 0.25}
_EVERYWHERE = {name: {name: {"devices": "*", "width": width}} for name, width in _SHARES.items()}
_EVENLY = {"whole": "device-*[0369]", "half": "device-*[147]", "quarter": "device-*[258]"}
_MOSTLY_SMALL = {"whole": "device-*0", "half": "device-*[27]", "quarter": "device-*[1345689]"}


def _widths(
    name: str, settings: dict[str, Any], classes: dict[str, str] = _EVENLY, **ways: dict[str, Any]
) -> tuple[Case, ...]:
    """Compare three widths in one run with one width on all devices, and with each class of devices alone.

    `classes` says which devices have which width, `ways` are further settings of the run of three widths, by what they
    are called.
    """
    widths = {one: {"devices": classes[one], "width": width} for one, width in _SHARES.items()}
    lines = (("", "shared"), *((f" ({one})", f"shared of {devices}") for one, devices in classes.items()))
    alone = tuple(
        Case(f"{name}, {one} alone", name, settings, variants=_EVERYWHERE.get(one, {}), only=devices, shows=lines[:1])
        for one, devices in classes.items()
    )
    same = tuple(
        Case(f"{name}, {one} everywhere", name, settings, variants=variants, shows=lines[:1])
        for one, variants in _EVERYWHERE.items()
    )
    groups = tuple(classes.values())
    mixed = tuple(
        Case(
            f"{name}, three widths{way and ', ' + way.replace('_', ' ')}",
            name,
            {**settings, **more},
            variants=widths,
            shows=lines,
            groups=groups,
        )
        for way, more in {"": {}, **ways}.items()
    )
    return (*mixed, *same, *alone)


_NARROWER = {"ordered-dropout": 0.5}
_ALIKE = DataConfig("fashion-mnist", parts=20, partition="rotations", domains=1, degrees=0.0, samples=60)
_TESTED_MORE = dataclasses.replace(_ALIKE, test_samples=1000)


def _lenet(name: str, about: str, data: DataConfig, classes: dict[str, str] = _EVENLY) -> Scenario:
    """Compare three widths of LeNet-5."""
    settings = {"lr": 0.1, "lr-decay": 1.0, "local-steps": 10, "batch-size": 32}
    cases = _widths("fedavg", {}, classes, ordered_dropout=_NARROWER)
    return Scenario(name, about, data, "lenet", {"rounds": 60}, settings, cases, slow=True)


# A rate falls with every version of the model, of which an asynchronous run has many more: none falls here.
_FASHION = {"lr": 0.05, "lr-decay": 1.0, "local-epochs": 2, "batch-size": 32}
_DEALT = DataConfig("fashion-mnist", parts=100)
_BY_CLASSES = DataConfig("fashion-mnist", parts=100, partition="classes", classes_per_device=2)

SCENARIOS = (
    Scenario(
        "watch",
        "20 smartwatches, 2 labelled windows of each exercise on each: a cold start",
        DataConfig("watch", labels_per_class=2),
        "watch-cnn",
        {"rounds": 10},
        {"lr": 0.1, "lr-decay": 1.0, "local-steps": 20, "batch-size": 16},
        (
            *_BASELINES[:2],
            Case("local, lr 0.2", "local", {"lr": 0.2}),  # the best of alone
            Case("ditto", "ditto", {"personal-steps": 20}),
            _OURS[0],
            Case("ffgg", "ffgg", _FFGG),
            *_BITS,
        ),
    ),
    Scenario(
        "fashion-dirichlet",
        "fashion-mnist on 100 devices, 10 per round, Dirichlet 0.3",
        _DEALT,
        "mlp",
        {"rounds": 50, "cohort": 10},
        _FASHION,
        (*_BASELINES, *_OURS, *_TWICE, *_FREE, *_SYNCHRONOUS),
        "numpy",
    ),
    Scenario(
        "fashion-classes",
        "fashion-mnist on 100 devices, 10 per round, 2 classes on each",
        _BY_CLASSES,
        "mlp",
        {"rounds": 50, "cohort": 10},
        _FASHION,
        (*_BASELINES, *_OURS, *_TWICE, *_FREE),
        "numpy",
    ),
    Scenario(
        "rotated",
        "fashion-mnist turned by 0 to 75 degrees on 6 devices of 3 architectures, each tested on all six domains",
        DataConfig("fashion-mnist", parts=6, partition="rotations", samples=1000, test="all", test_samples=200),
        "lenet",
        {"rounds": 15, "seed-samples": 300, "habit": "synchronous"},  # as among themselves, bit for bit
        {"lr": 0.05, "lr-decay": 1.0, "local-epochs": 1, "batch-size": 32},
        _ROTATED,
    ),
    Scenario(
        "attacks",
        "fashion-mnist on 100 devices, 20 per round, Dirichlet 0.3, a fifth of the devices lie",
        _DEALT,
        "mlp",
        {"rounds": 30, "cohort": 20, "quorum": 1.0},
        _FASHION,
        _ATTACKED,
        "numpy",
    ),
    Scenario(
        "delays",
        "fashion-mnist on 100 devices, Dirichlet 0.3, tasks that take differently long (1 s in the mean)",
        _DEALT,
        "mlp",
        {"rounds": 50, "cohort": 10},
        _FASHION,
        _DELAYED,
        "numpy",
    ),
    Scenario(
        "wire",
        "fashion-mnist on 100 devices, 10 per round, Dirichlet 0.3: how coarse what travels may be",
        _DEALT,
        "mlp",
        {"rounds": 50, "cohort": 10},
        _FASHION,
        _WIRED,
        "numpy",
    ),
    Scenario(
        "large",
        "fashion-mnist on 20 devices, 5 per round, Dirichlet 0.3, with a model of 1,663,370 parameters",
        DataConfig("fashion-mnist", parts=20),
        "cnn",
        {"rounds": 50, "cohort": 5},
        {"lr": 0.05, "lr-decay": 1.0, "local-steps": 20, "batch-size": 32},
        _LARGE,
        slow=True,
    ),
    Scenario(
        "widths",
        "fashion-mnist on 20 devices with 60 samples each, dealt at random: a third of the devices has the whole "
        "model, a third half of its channels, a third a quarter; all are tested on the same 300 samples",
        _ALIKE,
        "cnn",
        {"rounds": 30},
        {"lr": 0.05, "lr-decay": 1.0, "local-steps": 10, "batch-size": 32},
        (*_widths("fedavg", {}, ordered_dropout=_NARROWER), *_widths("fedspa", {"density": 0.5})),
        slow=True,
    ),
    Scenario(
        "widths-mlp",
        "the same with a perceptron of 32 hidden units, and 2,000 test samples",
        dataclasses.replace(_ALIKE, test_samples=2000),
        "mlp",
        {"rounds": 40},
        {"lr": 0.05, "lr-decay": 1.0, "local-steps": 10, "batch-size": 32},
        _widths("fedavg", {}, ordered_dropout=_NARROWER),
        "numpy",
    ),
    _lenet("widths-lenet", "the same with LeNet-5, 60 rounds, and 1,000 test samples", _TESTED_MORE),
    _lenet(
        "widths-fleet",
        "the same with 2 devices that have the whole of LeNet-5, 4 half and 14 a quarter",
        _TESTED_MORE,
        _MOSTLY_SMALL,
    ),
    _lenet(
        "widths-labels",
        "LeNet-5 again, 20 samples of each of 3 labels on each device, which is tested on its own labels",
        DataConfig("fashion-mnist", parts=20, partition="classes", classes_per_device=3, labels_per_class=20),
    ),
)
