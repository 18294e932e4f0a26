"""What each device is given: by its name, or the most that fits what it says it has; and who is given nothing.

A choice is made once, when a device is first heard of, and journalled: masks, grids and updates hang on it. A device
that fits nothing is asked again whenever it says hello; so is one that has less than what was chosen needs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime import algorithm, coding, config, importance, wire
from edge_runtime import needs as reckoning
from edge_runtime.coding import Coding
from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run
from edge_runtime.coordinator.variants import Option, Variant
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Limits, Needs
from edge_runtime.errors import DecodeError
from edge_runtime.message import Hello
from edge_runtime.tree import Flat

_USUAL = "onnx"
"""The backend of a device that does not say which it has."""

_KEPT_PARTS = 8
"""Parts that devices chose, at hand: each has a bit for every parameter."""


@dataclass(frozen=True)
class Heard:
    """What follows from a hello."""

    lacking: str
    """Why the device gets no task; empty: it gets one."""
    chosen: str = ""
    """Why it gets what it gets, if that was chosen just now."""


class Choices:
    """Which variant of a run each device has."""

    def __init__(self, run: Run, journal: Journal) -> None:
        self._run, self._journal = run, journal
        self._options: Mapping[str, Option] = {option.name: option for option in run.options}
        self.heard: dict[str, tuple[str, Limits]] = {}
        """Backend and limits of the devices that said hello since the start."""
        self._with_part = functools.lru_cache(_KEPT_PARTS)(self._own_part)

    def variant_of(self, device: str) -> Variant:
        """Give the run as a device sees it."""
        own = self._journal.devices.part(device) if self._run.scores else b""
        return self._with_part(device, own) if own else self._usual(device)

    def _usual(self, device: str) -> Variant:
        option = self._option(device)
        return self._run.named(device) or (option.variant if option else self._run.others)

    def _own_part(self, device: str, own: bytes) -> Variant:
        variant = self._usual(device)
        if variant.cut is None:
            raise AssertionError("a device without a part has chosen its channels")
        return dataclasses.replace(variant, cut=submodel.decode(own, variant.cut.structure))

    def task(self, device: str, values: Flat) -> bytes:
        """Ask a device that is to have a part which channels of the model, with these values, matter to it."""
        cut = self._usual(device).cut
        if cut is None:
            raise AssertionError("a device with the whole model is asked for a part")
        return importance.encode_task(cut, values)

    def score(self, device: str, data: bytes) -> None:
        """Give a device the channels that matter most to it, of what it says.

        Raises:
            DecodeError: that makes no sense.
        """
        cut = self._usual(device).cut
        if cut is None:
            raise DecodeError("score: this device has the whole model")
        worth = importance.decode_scores(data, cut.structure)
        self._journal.devices.keep_part(device, submodel.encode(submodel.rechosen(cut, worth)))

    def cut_of(self, device: str) -> Cut | None:
        """Say what a device has of the model; None: all of it."""
        return self.variant_of(device).cut

    def down_of(self, device: str) -> str:
        """Say how a device is told of the model."""
        option = None if self._run.named(device) else self._option(device)
        return option.down if option else self._run.config.down

    def _option(self, device: str) -> Option | None:
        return self._options.get(self._journal.devices.chosen(device))

    def hear(self, device: str, hello: Hello) -> Heard:
        """Choose for a device, if that was not done yet, and see whether it can do what it would be given."""
        limits = Limits(hello.room, hello.step_ms, hello.reference_us / 1000, hello.round_bytes)
        backend = hello.backend or _USUAL
        self.heard[device] = backend, limits
        name = self._run.parts.name
        if algorithm.is_own(name) and name not in hello.algorithms:
            return Heard(f"it does not allow the algorithm {name}: install it there, and add --allow-algorithm {name}")
        if self._run.named(device) or not self._options or self._option(device):
            variant = self._usual(device)
            lacking = self._lacking(variant, self._told(self.down_of(device), hello), backend, limits)
            return Heard(lacking and f"{_part(variant)}: {lacking}")
        lacking, larger = "", ""
        for option in self._options.values():
            lacking = self._lacking(option.variant, self._told(option.down, hello), backend, limits)
            if not lacking:
                why = f"{self._given(option)}{larger and f'; more does not fit: {larger}'}"
                self._journal.devices.choose(device, option.name, why)
                return Heard("", why)
            larger = f"{self._given(option)}: {lacking}"
        smallest = f"nothing fits; the smallest that there is, {larger}"
        self._journal.devices.choose(device, "", smallest)
        return Heard(smallest)

    def _given(self, option: Option) -> str:
        part = _part(option.variant, option.width)
        usual = option.down, option.variant.setup.up
        if usual == (self._run.config.down, self._run.config.up):
            return part
        return f"{part}, told in {usual[0]} and telling in {usual[1]}"

    def _told(self, down: str, hello: Hello) -> Coding:
        """Say how a device would be told of the model: as the run says, or as it asks if that is cheaper."""
        usual, asked = coding.parse(down, "run: down"), hello.down and coding.parse(hello.down, "asked")
        suits = asked and coding.suits(asked, wire.tells(self._run.parts.Down))
        return coding.cheaper(usual, asked) if asked and suits else usual

    def may_score(self, device: str) -> bool:
        """Say whether gradients of the whole model, of small batches, fit a device that said what it has."""
        backend, limits = self.heard.get(device, (_USUAL, Limits()))
        whole = self._run.others
        size, batch, held = whole.setup.model.layout.size, importance.BATCH, whole.memory
        passes = held.fixed + batch * held.per_sample if held else 0
        memory = reckoning.memory_bytes(whole.costs, passes, backend, 1.0, batch, size, own=False)
        found = Needs(memory, None, 4 * size)
        return not budget.lacking(found, dataclasses.replace(limits, step_ms=0))

    def _lacking(self, variant: Variant, down: Coding, backend: str, limits: Limits) -> str:
        if not (limits.room_bytes or limits.step_ms or limits.round_bytes):
            return ""
        return budget.lacking(self.needs(variant, down, backend), limits)

    def needs(self, variant: Variant, down: Coding, backend: str) -> Needs:
        """Reckon what a task takes."""
        parts, setup = self._run.parts, variant.setup
        settings = config.build(parts.Config, dict(setup.config), "setup")
        density, batch = reckoning.density_of(parts, settings), reckoning.batch_of(settings)
        card, held = setup.own or setup.model, variant.memory
        passes = held.fixed + batch * held.per_sample if held else 0
        memory = reckoning.memory_bytes(
            variant.costs, passes, backend, density, batch, card.layout.size, parts.Client.own_model
        )
        step = variant.costs and budget.estimate(variant.costs, backend, density, batch)
        return Needs(memory, step.step if step else None, self._round_bytes(setup, density, down))

    def _round_bytes(self, setup: Any, density: float, down: Coding) -> int:
        layout = setup.model.layout
        return reckoning.round_bytes(layout.size, len(layout.names), density, down, coding.parse(setup.up, "run: up"))


def _part(variant: Variant, width: float = 1.0) -> str:
    size = f"{(variant.setup.own or variant.setup.model).layout.size:,} parameters"
    if variant.cut is None:
        return f"the whole model of {size}"
    return f"{width:g} of the channels, {size}" if width < 1 else f"a part of {size}"
