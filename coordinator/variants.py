"""The run as some of its devices see it: by a pattern of their ids, or as their budgets allow."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import algorithm, bundle, coding, config, models
from edge_runtime.algorithm import Algorithm
from edge_runtime.bundle import Memory
from edge_runtime.compression.submodel import Cut
from edge_runtime.coordinator import submodels
from edge_runtime.devices.budget import Costs
from edge_runtime.errors import ConfigError
from edge_runtime.setup import ModelCard, Setup, encode
from edge_runtime.tree import Layout


@dataclass(frozen=True)
class Variant:
    """The run as some of its devices see it."""

    devices: str
    """A pattern of their ids."""
    setup: Setup
    cut: Cut | None = None
    """What they have of the model; None: all of it."""
    costs: Costs | None = None
    """What their model costs, if it was measured."""

    @functools.cached_property
    def encoded(self) -> bytes:
        """Give the set-up as it travels."""
        return encode(self.setup)

    @functools.cached_property
    def memory(self) -> Memory | None:
        """Give what the graphs themselves say that they take; None: the model is code."""
        card = self.setup.own or self.setup.model
        if card.bundle:
            return bundle.unpack(card.bundle).memory
        return None if ":" in card.name else bundle.built_in(card.name).memory


@dataclass(frozen=True)
class Option:
    """What the coordinator may give a device: a part of the model, and ways for its values to travel."""

    width: float
    variant: Variant
    """Its pattern means nothing."""
    down: str
    """How the model travels; updates as the set-up says."""

    @property
    def name(self) -> str:
        """Give what the journal knows it by."""
        return f"{self.width:g} {self.variant.setup.up} {self.down}"


@dataclass(frozen=True)
class Frame:
    """What all variants of a run are made of."""

    parts: Algorithm
    setup: Setup
    """The run as devices without a variant see it."""
    table: Mapping[str, Any]
    """[algorithm]"""
    model: str
    """As the run names it."""
    cuts: bool
    """Whether devices may have parts of the model."""


def table(name: str, given: Any) -> dict[str, Any]:
    """Check that a variant is a table."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"variant: {name} must be a table, [variant.{name}]")
    return dict(given)


def make(frame: Frame, name: str, own: dict[str, Any]) -> Variant:
    """Make what [variant.NAME] says.

    Raises:
        ConfigError: it says what cannot be.
    """
    where, parts = f"variant.{name}", frame.parts
    pattern, model, width = own.pop("devices", None), own.pop("model", None), own.pop("width", None)
    if not isinstance(pattern, str):
        raise ConfigError(f"{where}: devices must be a pattern of device ids, such as 'gateway-*'")
    settings = config.build(parts.Config, {**frame.table, **own}, where)
    if algorithm.private_names(settings, frame.setup.model.layout) != frame.setup.private:
        raise ConfigError(f"{where}: all devices keep the same tensors private; set it in [algorithm]")
    card = None
    if model is not None:
        if not parts.Client.own_model:
            raise ConfigError(f"{where}: with {parts.name} all devices have the model {frame.setup.model.name!r}")
        card = _own_model(model)
    setup = dataclasses.replace(frame.setup, config=config.table(settings), own=card)
    if width is None:
        known = submodels.known_costs(card or setup.model, model or frame.model, 1.0)
        return Variant(pattern, setup, None, known)
    return _part(frame, Variant(pattern, setup), settings, width, where)


def _part(frame: Frame, whole: Variant, settings: Any, width: Any, where: str) -> Variant:
    """Give the devices of a variant a part of the model."""
    parts, card = frame.parts, frame.setup.model
    if not frame.cuts:
        raise ConfigError(f"{where}: width: with {parts.name} all devices have the whole model")
    cut = submodels.cut(card, frame.model, width, where)
    layout = Layout(card.layout.names, cut.shapes)
    for chosen in (settings, config.build(parts.Config, dict(frame.table), "algorithm")):  # either half may refuse it
        parts.Server(chosen, layout, np.zeros(layout.size, np.float32), {}, frame.setup.seed)
    part = submodels.card(card, frame.model, width, cut)
    if parts.Client.own_model and not card.drawn:
        part = dataclasses.replace(part, bundle=_with_initial(part.bundle, card.bundle, cut))
    known = submodels.known_costs(part, frame.model, width)
    return Variant(whole.devices, dataclasses.replace(whole.setup, model=part), cut, known)


def _with_initial(part: bytes, whole: bytes, cut: Cut) -> bytes:
    """Put what a device's own model begins as into the bundle of its part."""
    initial = bundle.unpack(whole).initial
    if initial is None:
        raise AssertionError("a model of which devices have their own travels with what it begins as")
    return bundle.pack(dataclasses.replace(bundle.unpack(part), initial=initial[cut.bits]), initial=True)


def _own_model(model: str) -> ModelCard:
    if (Path(model) / bundle.MANIFEST).exists():
        graphs = bundle.read(Path(model))
        return ModelCard(graphs.model, graphs.layout, bundle.pack(graphs, initial=True))
    return ModelCard(model, models.find(model).layout)


def options(frame: Frame, widths: str, codings: str, down: str) -> tuple[Option, ...]:
    """Make what the coordinator may choose from: the largest part first, and of one part the dearest coding.

    Args:
        frame: what they are made of.
        widths: `1,0.5,0.25`: parts of the channels. Empty: nothing is chosen.
        codings: `bf16,step:0.5`: cheaper ways than the run's, for devices with few bytes for a round.
        down: how the run says that the model travels.

    Raises:
        ConfigError: one is not what it should be, or cannot be made.
    """
    if not widths:
        if codings:
            raise ConfigError("run: codings: goes with widths; write widths = '1' if all devices have the whole model")
        return ()
    settings = config.build(frame.parts.Config, dict(frame.table), "algorithm")
    ladder = _ladder(frame, codings, down)
    made = []
    for width in sorted({_width(text) for text in widths.split(",")}, reverse=True):
        whole = Variant("", frame.setup)
        part = whole if width == 1 else _part(frame, whole, settings, width, "run: widths")
        measured = submodels.measured_costs(part.setup.model, frame.model, width)
        variant = dataclasses.replace(part, costs=measured)
        made += [
            Option(width, dataclasses.replace(variant, setup=dataclasses.replace(variant.setup, up=up)), told)
            for up, told in ladder
        ]
    return tuple(made)


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = -1.0
    if not 0 < width <= 1:
        raise ConfigError(f"run: widths: {text.strip()!r} is not above 0 and at most 1; write '1,0.5,0.25'")
    return width


def _ladder(frame: Frame, codings: str, down: str) -> list[tuple[str, str]]:
    """Give the ways of updates and the model, the run's first and cheaper ones after it."""
    found = [(frame.setup.up, down)]
    for text in filter(None, (one.strip() for one in codings.split(","))):
        chosen = coding.parse(text, "run: codings")
        if not coding.suits(chosen, model=True):
            raise ConfigError(f"run: codings: {text!r} is not for both ways; take bf16 or step:S")
        pair = [text if _cost(text) < _cost(usual) else usual for usual in found[0]]
        if (pair[0], pair[1]) not in found:
            found.append((pair[0], pair[1]))
    return sorted(found, key=lambda ways: -sum(map(_cost, ways)))


def _cost(text: str) -> float:
    return coding.parse(text, "run").cost
