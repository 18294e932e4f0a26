"""A run as a person writes it, and everything that follows from it before the first message."""

import copy
import dataclasses
import fnmatch
import functools
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime import aggregate, algorithm, bundle, coding, config, models, seed_set, wire
from edge_runtime.algorithm import Algorithm, CutServer
from edge_runtime.bundle import Bundle
from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.coordinator import own_model, privacy, submodels, variants
from edge_runtime.coordinator.actions import Plan
from edge_runtime.coordinator.variants import Option, Variant
from edge_runtime.errors import ConfigError
from edge_runtime.message import CHUNK_BYTES, MAX_CHUNK_BYTES, check_name
from edge_runtime.peers import Start
from edge_runtime.seed_set import SeedSet
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.tree import Flat


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
    """Devices per round (asynchronous: at work at the same time), drawn at random; 0: all."""
    habit: str = ""
    """synchronous, asynchronous or decentralised; empty: the algorithm's usual way."""
    buffer: int = 1
    """Asynchronous: updates that make a new version of the shared model; the run ends after rounds times devices."""
    quorum: float = 0.8
    """Part of the cohort that must have answered for a round to close at its deadline."""
    deadline_s: float = 120.0
    """How long a round waits for its cohort."""
    evaluate: bool = True
    """Let every device evaluate the final model, which costs it one download of the whole shared model."""
    seed: int = 0
    seed_samples: int = 0
    """Size of the seed set that all devices are given, drawn from the training samples of [data]; 0: none."""
    seed_file: str = ""
    """Or an NPZ file that holds it: x, y and, if you like, class_names."""
    up: str = "lossless"
    """How updates travel: lossless, bf16, step:S or bits:B (`coding.py`)."""
    down: str = "lossless"
    """How the shared model travels: lossless, bf16 or step:S; posteriors also bits:B."""
    error_feedback: bool = True
    """Whether a device keeps what the coding of an update loses, and adds it to its next one."""
    rounding: str = "nearest"
    """Or stochastic: up or down at random, so that the mean is right."""
    widths: str = ""
    """Parts of the model that the coordinator may choose from for each device by its budget, `1,0.5,0.25`; empty: it
    chooses nothing."""
    importance: str = "first"
    """Which channels a part has: the `first`, or by the `gradients` of the device that is to have it."""
    codings: str = ""
    """Cheaper ways to travel that it may choose beside, `bf16,step:0.5`, for devices with few bytes for a round."""
    privacy_clip: float = 0.0
    """C: the norm to which every update is clipped before it is summed (`privacy.py`); 0: none is."""
    privacy_noise: float = 0.0
    """z: Gaussian noise of z times C is added to every sum; 0: none."""
    privacy_delta: float = 1e-5
    """For which the report tells the epsilon."""
    collect: bool = False
    """Let devices hand over their personal models with the evaluation, for `run export`; not with private tensors."""
    keep_updates: bool = False
    """Keep all updates in the journal, so that `run replay` can compute the run again: fleet x model x rounds."""
    fleet: str = "default"
    chunk_bytes: int = CHUNK_BYTES
    """Size of the chunks in which payloads travel, both ways; a broker's largest packet must hold one and 150 bytes."""
    input: str = ""
    """Shape of one sample of a torch module, `3x32x32`: devices are given graphs of it, and need neither torch nor its
    code. Empty: they have both, and are started with --allow-model."""
    input_type: str = "float32"
    """Of that sample: float32, or int64 for a module that begins with an embedding."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_name(self.fleet, "run: fleet")
        for name, low in (
            ("rounds", 1),
            ("devices", 1),
            ("cohort", 0),
            ("buffer", 1),
            ("seed", 0),
            ("seed_samples", 0),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"run: {name} must be at least {low}, not {getattr(self, name)}")
        self._check_input()
        for name in ("up", "down"):
            coding.parse(getattr(self, name), f"run: {name}")
        if self.importance not in ("first", "gradients"):
            raise ConfigError(f"run: importance must be first or gradients, not {self.importance!r}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ConfigError(f"run: rounding must be nearest or stochastic, not {self.rounding!r}")
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ConfigError(f"run: chunk-bytes must be from 1 to {MAX_CHUNK_BYTES}, not {self.chunk_bytes}")
        if not 0 < self.quorum <= 1:
            raise ConfigError(f"run: quorum must lie above 0 and be at most 1, not {self.quorum}")
        # So far the sum of 2^14 clipped updates and noise of 8 deviations stay below where int64 ends.
        if not (0 <= self.privacy_clip <= 256 and 0 <= self.privacy_noise <= 1000):
            raise ConfigError("run: privacy-clip must be from 0 to 256, and privacy-noise from 0 to 1000")
        if not 0 < self.privacy_delta < 1:
            raise ConfigError(f"run: privacy-delta must lie between 0 and 1, not {self.privacy_delta}")
        if self.deadline_s <= 0:
            raise ConfigError(f"run: deadline-s must be above 0, not {self.deadline_s}")

    def _check_input(self) -> None:
        if self.input and ":" not in self.model:
            raise ConfigError(f"run: input: {self.model!r} has its own; it goes with package.module:factory of yours")
        if self.input_type not in ("float32", "int64"):
            raise ConfigError(f"run: input-type must be float32 or int64, not {self.input_type!r}")


@dataclass(frozen=True)
class Run:
    """A run, checked and ready: the algorithm, its settings, the model's tensors and initial values [size]."""

    config: RunConfig
    parts: Algorithm
    settings: Any
    description: Setup
    initial: Flat
    variants: tuple[Variant, ...] = ()
    """The first that fits a device counts."""
    options: tuple[Option, ...] = ()
    """What the other devices are given by their budgets, the largest first (`choices.py`). Empty: all the same."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The tables that it was prepared from, as plain values: with them and the seed set it can be prepared again."""

    @functools.cached_property
    def others(self) -> Variant:
        """Give the run as devices without a variant see it."""
        card = self.description.model
        return Variant("*", self.description, None, submodels.known_costs(card, self.config.model, 1.0))

    def named(self, device: str) -> Variant | None:
        """Give the variant that a device has by a pattern; None: by none."""
        return next((one for one in self.variants if fnmatch.fnmatchcase(device, one.devices)), None)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """List the parts of the model that devices may have."""
        variants = (*self.variants, *(option.variant for option in self.options))
        found = {submodel.encode(one.cut): one.cut for one in variants if one.cut is not None}
        return tuple(found.values())

    @property
    def deadline_s(self) -> float:
        """Say how long the coordinator waits for a round; those of a decentralised run are one to it."""
        return self.config.deadline_s * (self.config.rounds + 1 if self.config.habit == "decentralised" else 1)

    @property
    def _personal_bytes(self) -> int:
        """Say how large a personal model may be that a device hands over, beyond what an update may be."""
        if not self.config.collect:
            return 0
        variants = (self.others, *self.variants, *(option.variant for option in self.options))
        cards = [variant.setup.own or variant.setup.model for variant in variants]
        return max(16 * card.layout.size + 2 * len(card.bundle) for card in cards)

    @property
    def scores(self) -> bool:
        """Say whether devices are asked which channels matter to them."""
        return self.config.importance == "gradients"

    def start(self, devices: tuple[str, ...]) -> Start:
        """Say what these devices must know to go through a decentralised run; its algorithm has a topology."""
        part, limit = self.config, self.plan("", 0).max_blob
        topology, fanout = self.settings.topology, self.settings.peers
        return Start(devices, part.rounds, part.deadline_s, topology, fanout, part.seed, min(limit, 1 << 30))

    def plan(self, run: str, epoch: int) -> Plan:
        """Say what the protocol must know; an update may be a few times the model's size, never more."""
        part = self.config
        return Plan(
            run,
            epoch,
            part.rounds,
            part.devices,
            part.cohort,
            part.quorum,
            part.evaluate,
            self.scores,
            max_blob=(1 << 16)
            + 16 * max(len(self.initial), algorithm.wire_values(self.settings))
            + self._personal_bytes,
            decentralised=part.habit == "decentralised",
            asynchronous=part.habit == "asynchronous",
            buffer=part.buffer,
            seed=part.seed,
        )


def prepare(
    run: RunConfig,
    table: dict[str, Any],
    variant: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: SeedSet | None = None,
) -> Run:
    """Check a run down to the last tensor, so that nothing can fail for a wrong setting later.

    Args:
        run: the table [run].
        table: the table [algorithm], kebab-case keys.
        variant: the tables [variant.NAME]: `devices`, a pattern of ids, and what these have of their own: `model`, or
            `width`, the part of the run's model that they have; and keys of [algorithm].
        seeds: the seed set, for an algorithm that has one.

    Raises:
        ConfigError: an unknown algorithm, model or key; a setting that this model does not allow.
    """
    parts = algorithm.load(run.algorithm)
    run = dataclasses.replace(run, habit=_habit(run, parts))
    asked = copy.deepcopy({"run": config.table(run), "algorithm": table, "variant": dict(variant or {})})
    fields = {field.name for field in dataclasses.fields(parts.Config)}
    table = {**_preset(run, table, fields), **{name: value for name, value in _known(run).items() if name in fields}}
    public = seed_set.encode(seeds) if seeds is not None and "seed_set" in fields else b""
    if seeds is not None and public:
        table["seed-set"] = seeds.identity.hex()
    tables = variant or {}
    cuts = bool(run.widths) or any("width" in variants.table(name, own) for name, own in tables.items())
    if cuts and "aggregate" in fields:
        table = {"aggregate": "owners" if table.get("aggregator", "mean") == "mean" else "cohort", **table}
    settings = config.build(parts.Config, table, "algorithm")
    card, initial = _model(run, parts.Client.own_model)
    kept = bundle.unpack(card.bundle).private if card.bundle else ()
    if kept and getattr(settings, "private", "") == "auto":
        table = {**table, "private": ",".join(kept)}
        settings = config.build(parts.Config, table, "algorithm")
    if wire.tells(parts.Down) and coding.parse(run.down, "down").kind == "bits":
        raise ConfigError(f"run: down: {run.down!r} is for posteriors: a model takes lossless, bf16 or step:S")
    server = parts.Server(settings, card.layout, initial, {}, run.seed)
    privacy.check(run, parts.name, settings, server)
    private = algorithm.private_names(settings, card.layout)
    if run.collect:
        _check_collect(run, private)
    how = (run.up, run.error_feedback, run.rounding, run.collect)
    description = Setup(run.algorithm, config.table(settings), card, run.seed, private, None, public, *how)
    frame = variants.Frame(parts, description, table, run.model, isinstance(server, CutServer))
    made = tuple(variants.make(frame, name, variants.table(name, own)) for name, own in tables.items())
    chosen = variants.options(frame, run.widths, run.codings, run.down)
    if run.importance == "gradients":
        _check_scores(parts, card, any(one.cut for one in (*made, *(option.variant for option in chosen))))
    found = Run(run, parts, settings, description, initial, made, chosen, asked)
    if getattr(settings, "ordered_dropout", 0) and not found.cuts:
        raise ConfigError(
            "algorithm: ordered-dropout: all devices have the whole model; give some a width, or leave it out"
        )
    return found


def _check_collect(run: RunConfig, private: tuple[str, ...]) -> None:
    """Refuse to collect what must not leave a device, or where there is no evaluation to hand it over with."""
    if private:
        raise ConfigError(f"run: collect: {private[0]} never leaves a device; leave collect or private out")
    if run.habit == "decentralised" or not run.evaluate:
        why = "a decentralised run has none" if run.habit == "decentralised" else "leave evaluate = false out"
        raise ConfigError(f"run: collect: that is done with the evaluation: {why}, or leave collect out")


def _check_scores(parts: Algorithm, card: ModelCard, cuts: bool) -> None:
    """Refuse to ask which channels matter where no answer would mean anything."""
    if not cuts:
        raise ConfigError("run: importance: all devices have the whole model; give some a width, or leave it out")
    if parts.Client.own_model:
        raise ConfigError(f"run: importance: with {parts.name} devices have models of their own; leave it out")
    if card.drawn:
        raise ConfigError(
            f"run: importance: {card.name} begins at random, so that none of its channels matters more; take a bundle "
            "of a module that was trained before, or leave it out"
        )


def _habit(run: RunConfig, parts: Algorithm) -> str:
    known = parts.Server.habits
    if run.habit and run.habit not in known:
        raise ConfigError(f"run: {run.algorithm} runs {' or '.join(known)}, not {run.habit!r}")
    return run.habit or known[0]


def _preset(run: RunConfig, table: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Spell out what `robust` of [algorithm] stands for."""
    wanted, rest = table.get("robust", False), {key: value for key, value in table.items() if key != "robust"}
    if not isinstance(wanted, bool):
        raise ConfigError(f"algorithm: robust must be true or false, not {wanted!r}")
    if not wanted:
        return rest
    if "aggregator" not in fields:
        raise ConfigError(f"algorithm: robust: {run.algorithm} takes no mean that liars could spoil; leave it out")
    least = _known(run)["cohort"]
    asynchronous = run.habit == "asynchronous"
    keys = aggregate.withstanding(rest, run.buffer if asynchronous else run.cohort or run.devices, least)
    if not asynchronous and least > (asked := run.cohort or run.devices) - keys["byzantine"]:
        raise ConfigError(
            f"algorithm: robust: a round that needs {least} of {asked} updates cannot close once {keys['byzantine']} "
            f"liars are rejected; lower run.quorum to {(asked - keys['byzantine']) / asked:.2g}"
        )
    return keys


def _known(run: RunConfig) -> dict[str, int]:
    """Give what some algorithms must know of the run: its rounds, and the fewest updates that a round closes with."""
    least = max(1, math.ceil(run.quorum * (run.cohort or run.devices)))
    return {"rounds": run.rounds, "cohort": run.buffer if run.habit == "asynchronous" else least}


def _model(run: RunConfig, own: bool) -> tuple[ModelCard, Flat]:
    """Give what devices must know of the run's model, and its initial values; `own`: theirs begin as these do."""
    if (Path(run.model) / bundle.MANIFEST).exists():
        return _bundled(bundle.read(Path(run.model)), own, run.model)
    if ":" not in run.model:
        spec = models.find(run.model)
        return ModelCard(run.model, spec.layout), models.initial(spec, run.seed)
    if run.input:
        return _bundled(own_model.exported(run.model, run.input, run.input_type, run.seed), own, run.model)
    layout, initial = own_model.initial(run.model, run.seed)
    return ModelCard(run.model, layout), initial


def _bundled(graphs: Bundle, own: bool, model: str) -> tuple[ModelCard, Flat]:
    if graphs.initial is None:
        raise ConfigError(f"{model}: this bundle has no initial parameters; name the built-in model instead")
    return ModelCard(graphs.model, graphs.layout, bundle.pack(graphs, initial=own)), graphs.initial


def describe(run: Run) -> dict[str, Any]:
    """Write down a run's settings as plain values."""
    cuts = {f"{option.width:g}": option.variant.cut for option in run.options}
    parts = {width: _named(cut) for width, cut in cuts.items() if cut}
    return {
        "run": config.table(run.config),
        "algorithm": run.description.config,
        **_graphs(run.description.model),
        **({"variants": [_own_part(run, one) for one in run.variants]} if run.variants else {}),
        **({"parts": parts} if parts else {}),
    }


def _graphs(card: ModelCard) -> dict[str, str]:
    """Name the graphs that devices are given: a run that goes on must have the same, whatever became of their code."""
    if not card.bundle:
        return {}
    graphs = bundle.unpack(card.bundle).graphs
    digests = [hashlib.sha256(graphs[name]).hexdigest() for name in sorted(graphs)]
    return {"graphs": hashlib.sha256("".join(digests).encode()).hexdigest()[:16]}


def _own_part(run: Run, variant: Variant) -> dict[str, Any]:
    """Give what a variant has of its own."""
    common, setup = run.description.config, variant.setup
    own: dict[str, Any] = {"devices": variant.devices}
    own |= {key: value for key, value in setup.config.items() if value != common[key]}
    own |= {"model": setup.own.name} if setup.own else {}
    if variant.cut is None:
        return own
    return own | {"parameters": setup.model.layout.size, "part": _named(variant.cut)}


def _named(cut: Cut) -> str:
    """Name a part: a run that goes on must have the same."""
    return hashlib.sha256(json.dumps(submodel.record(cut)).encode()).hexdigest()[:16]
