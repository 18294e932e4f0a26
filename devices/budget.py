"""What training takes of a device, from what it took where it was measured, and whether that fits.

No formula of a model's shapes tells the peak of a runtime's memory: what is alive at once, and what its arena keeps,
are its own affair. So a model is measured once (`edge-coordinator bench costs`) at a few batch sizes and densities, and
what lies between is found on straight lines: in the batch size between the two nearest that were measured, beyond them
on the line of the last two, and of packed models (density below 1) also in the density. The dense model is a case by
itself, with other graphs.

Steps are told in references: how often the machine could have done a small task of fixed size in the time
(`edge_runtime/speed.py`). A device that says what that task takes there is told its own time of a step.

Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MARGIN = 1.15
"""How much more than its estimate training may take: the bar that estimates are held to."""
STEP_MARGIN = 1.25
"""... of the time of a step."""
VECTORS, OWN_VECTORS = 8, 12
"""How many times the model's size a task holds beside training: received, started from, sent, coded; with a model of
its own the shared one too. Above what tasks of all algorithms were seen to take (`docs/budgets.md`).
"""
_TASK_BYTES = 12_000_000
"""... and whatever the model's size: the algorithm's code and the wire's."""
FORMAT = 2
"""Of a record of costs; another unit of time is another format."""
_MOST_POINTS = 1000


@dataclass(frozen=True)
class Point:
    """What training took at one batch size and density."""

    backend: str
    density: float
    batch: int
    over_bytes: int
    """The peak of a process's memory over what it has with everything imported."""
    step: float
    """The median of a step's CPU time, in references."""


@dataclass(frozen=True)
class Costs:
    """What was measured of one model."""

    machine: str
    """Where."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Estimate:
    """What training takes."""

    peak_bytes: int
    """Over what a process has with everything imported."""
    step: float
    """In references."""


@dataclass(frozen=True)
class Limits:
    """What a device has for a task, or lets it have. 0: no limit."""

    room_bytes: int = 0
    """Memory beside what a process holds with everything imported and the data loaded."""
    step_ms: float = 0.0
    reference_ms: float = 0.0
    """What the reference takes there; without it nothing can be said of a step."""
    round_bytes: int = 0
    """Received and sent for a round of training."""


@dataclass(frozen=True)
class Needs:
    """What a task takes."""

    memory_bytes: int
    """As `task_bytes` says, with a margin."""
    step: float | None
    """In references, without a margin; None: not known."""
    round_bytes: int


def task_bytes(peak_bytes: int, values: int, vectors: int = VECTORS) -> int:
    """Say how much memory a task may take whose training is estimated to take `peak_bytes`, of a model of `values`."""
    return math.ceil(MARGIN * peak_bytes) + _TASK_BYTES + 4 * vectors * values


def lacking(needs: Needs, limits: Limits) -> str:
    """Say in words what a device lacks for a task; empty: nothing."""
    if 0 < limits.room_bytes < needs.memory_bytes:
        needed, room = math.ceil(needs.memory_bytes / 1e6), limits.room_bytes // 1_000_000
        return f"it needs up to {needed} MB of memory beside the program, and the device has {room}"
    if limits.step_ms and (needs.step is None or not limits.reference_ms):
        return "how long a step of it takes there is not known, and the device has a limit"
    if limits.step_ms and needs.step is not None:
        step_ms = STEP_MARGIN * needs.step * limits.reference_ms
        if step_ms > limits.step_ms:
            return f"a step of it takes up to {step_ms:.0f} ms there, and the device allows {limits.step_ms:g}"
    if 0 < limits.round_bytes < needs.round_bytes:
        needed, allowed = math.ceil(needs.round_bytes / 1000), limits.round_bytes // 1000
        return f"a round of it takes about {needed} kB of messages, and the device allows {allowed}"
    return ""


def record(costs: Costs) -> dict[str, Any]:
    """Write costs down as plain values; the inverse of `read`."""
    return {"format": FORMAT, **asdict(costs)}


def read(value: Any) -> Costs:
    """Read plain values from a file as costs.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(value, Mapping) or set(value) != {"format", "machine", "points"} or value["format"] != FORMAT:
        raise ValueError("costs: not a record of the form that this version writes")
    machine, points = value["machine"], value["points"]
    if not isinstance(machine, str) or not isinstance(points, Sequence) or not 0 < len(points) <= _MOST_POINTS:
        raise ValueError(f"costs: without a machine, or not 1 to {_MOST_POINTS} points")
    made = tuple(_point(point) for point in points)
    if len({(point.backend, point.density, point.batch) for point in made}) < len(made):
        raise ValueError("costs: a batch size stands there twice")
    return Costs(machine, made)


def _point(value: Any) -> Point:
    kinds = {"backend": str, "density": float, "batch": int, "over_bytes": int, "step": float}
    if not isinstance(value, Mapping) or set(value) != set(kinds):
        raise ValueError(f"costs: a point has not the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        _check(name, kind, value[name])
    if value["density"] > 1:
        raise ValueError(f"costs: a density of {value['density']}")
    return Point(value["backend"], float(value["density"]), value["batch"], value["over_bytes"], float(value["step"]))


def _check(name: str, kind: type, value: Any) -> None:
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right or (kind is not str and not 0 < value < 2**53):  # a NaN is not above 0 either
        raise ValueError(f"costs: {name} is {value!r:.50}")


def estimate(costs: Costs, backend: str, density: float, batch: int) -> Estimate | None:
    """Say what training takes; None: nothing of that kind was measured.

    Args:
        costs: of the model.
        backend: which computes.
        density: the part of the parameters that is trained; below 1 packed.
        batch: samples of a step.
    """
    points = [point for point in costs.points if point.backend == backend and (point.density == 1) == (density == 1)]
    if not points:
        return None
    densities = sorted({point.density for point in points})
    peaks, steps = [], []
    for one in densities:
        mine = sorted((point for point in points if point.density == one), key=lambda point: point.batch)
        batches = [float(point.batch) for point in mine]
        peaks.append(_line(batches, [point.over_bytes for point in mine], batch))
        steps.append(_line(batches, [point.step for point in mine], batch))
    return Estimate(math.ceil(_line(densities, peaks, density)), _line(densities, steps, density))


def _line(at: Sequence[float], values: Sequence[float], where: float) -> float:
    """Read a value off the line through the two nearest places, or beyond the ends through the last two.

    More never takes less: beyond the last place it is at least the last value, and below the first at least a part of
    the first, as much as `where` is of that place.
    """
    if len(at) == 1:
        return values[0]
    right = next((index for index in range(1, len(at) - 1) if where <= at[index]), len(at) - 1)
    slope = (values[right] - values[right - 1]) / (at[right] - at[right - 1])
    found = values[right - 1] + slope * (where - at[right - 1])
    if where < at[0]:
        return max(found, values[0] * where / at[0])
    return max(found, values[-1]) if where > at[-1] else found
