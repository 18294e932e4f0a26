"""How much of each layer a device's model keeps: from the personal model it handed over, else from the run's own masks.

Where neither is known (a dense algorithm, a model made by code of somebody's own) there is nothing to show.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime import personal
from edge_runtime.algorithm import SparseServer
from edge_runtime.coordinator import runs
from edge_runtime.coordinator.dashboard import reading
from edge_runtime.coordinator.dashboard.picture import Picture
from edge_runtime.coordinator.run import Run
from edge_runtime.errors import DecodeError, EdgeError
from edge_runtime.mask import Bits
from edge_runtime.places import personal_path
from edge_runtime.tree import Layout


@dataclass(frozen=True)
class Layer:
    """One tensor of a device's model."""

    name: str
    size: int
    kept: int


def personal_file(folder: Path, run: str, device: str) -> Path | None:
    """Find the personal model of a device: handed over to the run, or in a store beside it on this machine."""
    places = folder / "personal" / f"{device}.bin", personal_path(folder.parent / "devices" / device, run)
    return next((path for path in places if path.is_file()), None)


def layers(picture: Picture, device: str) -> list[Layer]:
    """List the layers of a device's model with what they keep; empty: it is dense, or not known."""
    folder = Path(picture.standing.folder)
    path = personal_file(folder, picture.standing.run, device)
    try:
        if path is not None:
            found = personal.decode(path.read_bytes())
            return [] if found.active is None else list(_layers(found.card.layout, found.active))
        return [] if ":" in picture.settings.model else _masked(folder, device, picture.standing.round)
    except (EdgeError, DecodeError, OSError):
        return []  # of an earlier version, damaged, or being written


def _masked(folder: Path, device: str, round_: int) -> list[Layer]:
    """Ask the run's server half which of the shared model's values a device has."""
    run = _prepared(folder, (folder / "journal.sqlite").stat().st_ino)
    held = reading.memory(folder, device)
    layout, memories = run.description.model.layout, {} if held is None else {device: held}
    server = run.parts.Server(run.settings, layout, run.initial, memories, run.config.seed)
    if not isinstance(server, SparseServer) or run.cuts:
        return []
    return list(_layers(layout, server.support(device, round_)))


@functools.lru_cache(4)
def _prepared(folder: Path, journal: int) -> Run:  # noqa: ARG001  # another journal there is another run
    return runs.rebuild(folder)[0]


def _layers(layout: Layout, kept: Bits) -> Iterator[Layer]:
    for name, where, size in zip(layout.names, layout.slices, layout.sizes, strict=True):
        yield Layer(name, size, int(np.count_nonzero(kept[where])))
