"""Parts of a run's model, for devices that are to have fewer channels: which, and their graphs."""

import fcntl
import hashlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import bundle, config, costs, models, narrow
from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.files import write_atomic
from edge_runtime.setup import ModelCard
from edge_runtime.tree import Layout

log = logging.getLogger(__name__)


def cut(card: ModelCard, model: str, width: Any, where: str) -> Cut:
    """Cut a model: a built-in one here, any other as its bundle's folder says.

    Args:
        card: the whole model.
        model: as the run names it.
        width: the part of its channels, as a person wrote it.
        where: the table in which that stands, for messages.

    Raises:
        ConfigError: `width` is none, or there is no such part of the model.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 1:
        raise ConfigError(f"{where}: width must be above 0 and at most 1, not {width!r}")
    if card.drawn:
        structure = narrow.structure(models.find(card.name))
        if not structure.groups:
            raise ConfigError(f"{where}: width: {card.name!r} has no channels that can be taken away")
        return submodel.nested(structure, width)
    folder = bundle.part_folder(Path(model), width)
    if not folder.is_dir():
        raise ConfigError(
            f"{where}: width: {model!r} has no part of that width; make it a bundle's folder by `edge-coordinator "
            f"export --width {width:g}`"
        )
    return bundle.read_cut(folder, card.layout)


def card(whole: ModelCard, model: str, width: float, made: Cut) -> ModelCard:
    """Give what devices must know of a part that `cut` gave for the same model and width.

    Raises:
        ConfigError: its graphs are damaged, or cannot be made.
    """
    layout = Layout(whole.layout.names, made.shapes)
    if whole.drawn:
        return ModelCard(whole.name, layout, _graphs(whole.name, made), submodel.encode(made))
    return ModelCard(whole.name, layout, _exported(bundle.part_folder(Path(model), width), layout))


def _exported(folder: Path, layout: Layout) -> bytes:
    graphs = bundle.read(folder)
    if graphs.layout != layout:
        raise ConfigError(f"{folder}: its graphs are not those of the part that it names; export the model again")
    return bundle.pack(graphs)


def _graphs(model: str, cut: Cut) -> bytes:
    """Give the graphs of a part of a built-in model, from the cache if they were made before as the whole model's were.

    Else by a process of its own, so that torch and its memory stay out of the coordinator. One at a time: who waits for
    another that makes the same finds it in the cache.
    """
    encoded = submodel.encode(cut)
    path = _cached(model, encoded)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            data = path.read_bytes()
            bundle.unpack(data)
        except (OSError, DecodeError):
            size = int(np.count_nonzero(cut.bits))
            log.warning("%s: making the graphs of a part with %s parameters, once: half a minute", model, f"{size:,}")
            data = _made_graphs(model, encoded)
            write_atomic(path, data, durable=False)
    return data


def _cached(model: str, cut: bytes) -> Path:
    """Say where the graphs of a part of a built-in model are kept."""
    name = hashlib.sha256(bundle.pack(bundle.built_in(model)) + cut).hexdigest()[:24]
    return config.cache_folder() / f"part-{name}.bundle"


def _costs_folder(card: ModelCard) -> Path:
    """Say where a part of a built-in model is measured: what an older version measured does not count."""
    graphs = _cached(card.name, card.cut)
    return graphs.with_name(f"{graphs.stem}-costs-{budget.FORMAT}")


def known_costs(card: ModelCard, model: str, width: float) -> Costs | None:
    """Give what a model or part of one costs; None: it was not measured.

    Args:
        card: the model or part.
        model: the whole model as the run names it.
        width: the part of its channels.

    Raises:
        ConfigError: what was measured is damaged.
    """
    if card.cut:
        return costs.read(_costs_folder(card))
    if ":" not in card.name and not card.bundle:
        return costs.read(bundle.built_in_folder(card.name))
    return costs.read(Path(model) if width == 1 else bundle.part_folder(Path(model), width))


def measured_costs(card: ModelCard, model: str, width: float) -> Costs:
    """Give what a model or part of one costs; of a part of a built-in model that is measured now if it was not before.

    Raises:
        ConfigError: it was not measured, and is not ours to measure.
    """
    known = known_costs(card, model, width)
    if known is not None:
        return known
    if not card.cut:
        named = model if width == 1 else bundle.part_folder(Path(model), width)
        raise ConfigError(f"run: widths: {named} was not measured: run `edge-coordinator bench costs --model {named}`")
    folder = _costs_folder(card)
    size = f"{card.layout.size:,}"
    log.warning("%s: measuring what a part with %s parameters costs, once: half a minute", card.name, size)
    for name, data in bundle.files(bundle.unpack(card.bundle)).items():
        folder.mkdir(exist_ok=True)
        write_atomic(folder / name, data, durable=False)
    grid = costs.Grid(repeats=1)
    made = costs.calibrate(str(folder), grid, config.environment(threads=1), lambda said: log.info("%s", said))
    costs.write(made, folder)
    return made


def _made_graphs(model: str, cut: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        command = [sys.executable, "-W", "ignore", "-m", "edge_runtime.export.bundle", model, "--cut", cut.hex()]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(
                f"no graphs can be made of a part of {model!r}: {last} (run: pip install 'edge-runtime[export]')"
            )
        return bundle.pack(bundle.read(out))
