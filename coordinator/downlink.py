"""What devices are told of the shared model, hold of it, and say to it: the coordinator's end of the wire.

With the coding `step`, a device is told only what it lacks of the model's grid (`edge_runtime/grid.py`). The journal
knows of which round each device holds the grid: of the last that it took part in. The grids of those rounds lie in

    FOLDER/grids/ROUND+FINER    the whole grid with steps 2^FINER finer (or coarser) than the last change's size

written before the first device is told of it. A device whose grid is no longer there is told as if it were new.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime import algorithm, coding, grid, wire
from edge_runtime.algorithm import Server, SparseServer
from edge_runtime.coding import Coding
from edge_runtime.compression.submodel import Cut
from edge_runtime.coordinator import content
from edge_runtime.coordinator.admission import Admission
from edge_runtime.coordinator.choices import Choices
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run
from edge_runtime.errors import DecodeError
from edge_runtime.grid import Bits, Exponents, Grid, Initial
from edge_runtime.tree import Flat, Layout

log = logging.getLogger(__name__)

_KEPT_GRIDS, _KEPT_SAME, _KEPT_DOWNS = 2, 8, 4


class Downlink:
    """Encodes for devices, decodes from them, and keeps what that takes. It changes with the server half only."""

    def __init__(self, run: Run, server: Server, journal: Journal, choices: Choices) -> None:
        self._run, self._server, self._journal, self._choices = run, server, journal, choices
        self._sparse = server if isinstance(server, SparseServer) else None
        self._layout: Layout = run.description.model.layout
        self._admission = Admission(getattr(run.settings, "norm_limit", 0.0))
        self._columns = algorithm.wire_columns(run.settings)
        self._most = algorithm.wire_values(run.settings)
        self._drawn = run.initial if run.description.model.drawn else None
        # Kept up from the start, whoever asks for steps: a run that is resumed must choose the same ones.
        model = server.shared() if wire.tells(run.parts.Down) else None
        self._steps: Exponents | None = None if model is None else grid.exponents(None, model, self._layout, None)
        self._grids: OrderedDict[tuple[int, int], Grid] = OrderedDict()
        self._same: OrderedDict[tuple[int, bytes, int, Cut | None], bytes] = OrderedDict()
        self._downs: OrderedDict[bytes, bytes] = OrderedDict()
        """Of equal Downs: they are encoded once."""

    def close(self) -> None:
        """Close the server half's round, and see how far its model moved."""
        before = None if self._steps is None else self._server.shared()
        self._server.close()
        self._admission.close()
        after = None if before is None else self._server.shared()
        if before is not None and after is not None:
            self._steps = grid.exponents(after - before, after, self._layout, self._steps)

    def state(self) -> dict[str, Any]:
        """Give the server half's state and what goes with it."""
        steps = {} if self._steps is None else {"wire.steps": self._steps.tobytes()}
        return {**self._server.state(), **steps, **self._admission.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        if self._steps is not None:
            self._steps = grid.read_exponents(state.pop("wire.steps"))
        self._admission.restore(state)
        self._server.restore(state)

    def take(self, device: str, payload: bytes) -> Any:
        """Decode hostile bytes, see whether they are let in, and fold them in; gives the device's Up.

        Raises:
            DecodeError: they are no Up, or one that is not let in or unfit; nothing has changed.
        """
        up = self.decode_up(device, payload)
        self._admission.check(up, self._expected(device, up))
        self._server.absorb(device, up)
        self._admission.note(device, up)
        return up

    def _expected(self, device: str, up: Any) -> int:
        """Count the values of the model of which an Up must tell."""
        layout = self._choices.variant_of(device).setup.model.layout
        held = wire.holds(up, layout, "change")
        if held is None and self._sparse is not None:
            held = self._sparse.support(device, self._server.round)
        return layout.size if held is None else int(np.count_nonzero(held))

    def coding_of(self, device: str) -> Coding:
        """Choose how a device is told of the model: as the run says for it, or cheaper if it asks for that."""
        chosen, asked = coding.parse(self._choices.down_of(device), "run: down"), self._journal.devices.asked(device)
        return coding.cheaper(chosen, coding.parse(asked, "asked")) if asked else chosen

    def decode_up(self, device: str, payload: bytes) -> Any:
        """Decode hostile bytes into a device's Up.

        Raises:
            DecodeError: they are none.
        """
        run, sparse = self._run, self._sparse

        def support(_up: Any) -> Bits | None:
            return None if sparse is None else sparse.support(device, self._server.round)

        layout = self._choices.variant_of(device).setup.model.layout
        return wire.decode_up(payload, run.parts.Up, layout, run.description.private, self._most, support)

    def encode(self, device: str, first: bool, evaluate: bool) -> bytes:
        """Encode what a device is told now; for an evaluation also the whole shared model, where that is not all of it.

        `first`: the device holds nothing.
        """
        chosen, server = self.coding_of(device), self._server
        down = server.down(device, first)
        sparse, has = self._sparse, self._has(device)
        held = wire.holds(down, has.layout) if sparse is None else sparse.support(device, server.round)
        whole = has.of_grid(self._whole(chosen.finer)) if self._on_grid(chosen) else None
        told = None if whole is None else self._told(device, has, held, whole, None if first else self._base(device))
        key = content.digest((server.round, evaluate, chosen, told, down))
        if key not in self._downs:
            data = wire.encode_down(down, chosen, grid.counts(has.layout, held), told, self._columns)
            if evaluate:
                rest = None if sparse is None else whole or has.of(server.shared())
                data = wire.encode_evaluation(data, rest, has.layout, has.initial)
            _put(self._downs, key, data, _KEPT_DOWNS)
        return self._downs[key]

    def _told(self, device: str, has: "_Has", held: Bits | None, whole: Grid, base: Grid | None) -> bytes:
        """Encode values of the grid; once, if all devices that hold the same are told the same."""
        base = None if base is None else has.of_grid(base)
        if self._sparse is not None:
            base = None if base is None else grid.part(base, self._sparse.support(device, base.round))
            return grid.encode(grid.part(whole, held), has.layout, base, has.initial)
        key = whole.round, whole.exponents.tobytes(), -1 if base is None else base.round, has.cut
        if key not in self._same:
            base = None if base is None else grid.part(base, held)
            told = grid.encode(grid.part(whole, held), has.layout, base, has.initial)
            _put(self._same, key, told, _KEPT_SAME)
        return self._same[key]

    def _has(self, device: str) -> "_Has":
        variant = self._choices.variant_of(device)
        return _Has(variant.setup.model.layout, variant.cut, self._drawn)

    def held_after(self, device: str, up: Any) -> str:
        """Name the grid that a device holds once its Up has taken effect; empty: none."""
        chosen = self.coding_of(device)
        return _name(up.round, chosen.finer) if self._on_grid(chosen) else ""

    def _on_grid(self, chosen: Coding) -> bool:
        return chosen.kind == "step" and wire.tells(self._run.parts.Down)

    def _whole(self, finer: int) -> Grid:
        """Give the model's grid, which lies on disk from the moment that anybody may be told of it."""
        key = self._server.round, finer
        if key not in self._grids:
            model = self._server.shared()
            if model is None or self._steps is None:
                raise AssertionError("a Down tells of a shared model, and there is none")
            found = grid.snap(model, self._layout, self._server.round, self._steps, finer)
            self._journal.files.keep_grid(_name(*key), grid.encode(found, self._layout, None))
            _put(self._grids, key, found, _KEPT_GRIDS)
        return self._grids[key]

    def _base(self, device: str) -> Grid | None:
        """Read the grid that a device holds, if it is still there."""
        name = self._journal.devices.held(device)
        key = _key(name) if name else (-1, 0)
        if name and key not in self._grids:
            data = self._journal.files.grid(name)
            if data is None:
                return None
            try:
                found = grid.decode(data, self._layout, None, None)
            except DecodeError as error:
                log.warning("the grid %s is damaged (%s): who holds it is told as if it were new", name, error)
                return None
            _put(self._grids, key, found, _KEPT_GRIDS)
        return self._grids.get(key)


@dataclass(frozen=True)
class _Has:
    """What a device has of the model: all of it, or what a cut leaves."""

    layout: Layout
    cut: Cut | None
    drawn: Flat | None
    """What the whole model began as; None: devices do not know that."""

    def of(self, model: Flat | None) -> Flat | None:
        """Give the device's part of a model."""
        return model if model is None or self.cut is None else model[self.cut.bits]

    def of_grid(self, whole: Grid) -> Grid:
        """Give the device's part of a grid."""
        return whole if self.cut is None else Grid(whole.round, whole.exponents, whole.values[self.cut.bits])

    @property
    def initial(self) -> Initial:
        """Give what the device's part began as, at some of its places."""
        drawn = self.of(self.drawn)
        return None if drawn is None else lambda held: drawn if held is None else drawn[held]


def _name(round_: int, finer: int) -> str:
    return f"{round_:06d}{finer:+d}"


def _key(name: str) -> tuple[int, int]:
    return int(name[:6]), int(name[6:])


def _put(cache: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
