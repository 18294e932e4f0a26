"""What a model costs where it was measured: `costs.json` beside its bundle (`devices/budget.py` has its form)."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import bundle, measure_process
from edge_runtime.compute import Compute
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs, Point
from edge_runtime.devices.profile import profile
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.measure_process import Measurement, Plan

FILE = "costs.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Grid:
    """Where a model is measured."""

    backends: tuple[str, ...] = ("onnx",)
    batches: tuple[int, ...] = (4, 16, 64)
    densities: tuple[float, ...] = (1.0, 0.1, 0.5)
    steps: int = 0
    """As in `Plan`."""
    repeats: int = 3
    """Measurements of each point: the largest peak counts, and the median of the steps."""


def calibrate(model: str, grid: Grid, environment: Mapping[str, str], say: Callable[[str], None]) -> Costs:
    """Measure a built-in model, or the bundle in a folder.

    Raises:
        ConfigError: no such model, or a backend cannot compute it.
        DeviceError: this machine lacks what a backend needs, or memory.
    """
    points = []
    for backend in grid.backends:
        for density in grid.densities:
            for batch in grid.batches:
                say(f"{model}, batch {batch}, density {density:g}, {backend} ...")
                plan = Plan(model, Compute(backend), batch, grid.steps, density)
                points.append(_point([measure_process.measure(plan, environment) for _ in range(grid.repeats)]))
    found = profile()
    return Costs(", ".join(filter(None, (found.cpu, found.arch))), tuple(points))


def _point(found: list[Measurement]) -> Point:
    first = found[0]
    over_bytes = max(one.over_baseline_bytes for one in found)
    step = statistics.median(one.step for one in found)
    return Point(first.backend, first.density, first.batch, over_bytes, float(f"{step:.4g}"))


def folder_of(model: str) -> Path:
    """Say where the bundle of a built-in model lies, or of one that is named by its folder.

    Raises:
        ConfigError: there is none.
    """
    return Path(model) if measure_process.is_bundle(model) else bundle.built_in_folder(model)


def write(costs: Costs, folder: Path) -> None:
    """Write costs beside a bundle."""
    write_atomic(folder / FILE, encode(costs), durable=False)


def encode(costs: Costs) -> bytes:
    """Write costs as a file with a line for each point; the inverse of `decode`."""
    plain = budget.record(costs)
    points = ",\n  ".join(json.dumps(point) for point in plain.pop("points"))
    head = json.dumps(plain, indent=1).removesuffix("\n}")
    return f'{head},\n "points": [\n  {points}\n ]\n}}\n'.encode()


def decode(data: bytes, where: str) -> Costs:
    """Read a file as costs.

    Raises:
        ConfigError: it holds none; `where` names it.
    """
    try:
        return budget.read(json.loads(data[:_MOST_BYTES]))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: says of no costs ({error}); make it again with `edge-coordinator bench costs`"
        ) from error


def read(folder: Path) -> Costs | None:
    """Read the costs that lie beside a bundle; None: it was not measured.

    Raises:
        ConfigError: they are damaged.
    """
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{folder / FILE}: cannot be read: {error.strerror}") from error
    return decode(data, str(folder / FILE))
