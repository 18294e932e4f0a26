"""Benchmarks of the backends on this machine: `edge-coordinator bench step` and `bench memory`.

Every measurement is a fresh child process (`measure_process.py`), so that none finds what another has left. What is
compared with each other, the backends on one model, batch size and density, is a group; in `step` its backends take
turns. A record is plain values: what was measured, and the rows of the table that is made of it.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_runtime import __version__, measure_process, models
from edge_runtime.compute import Compute
from edge_runtime.coordinator import bench_costs, units
from edge_runtime.devices.profile import profile
from edge_runtime.measure_process import Measurement, Plan

Record = dict[str, Any]
Group = list[Plan]
_REFERENCE = "torch"
"""The backend that step times are compared with."""


@dataclass(frozen=True)
class Grid:
    """What is to be measured: all combinations of these."""

    models: tuple[str, ...]
    """Built-in names and folders of bundles."""
    backends: tuple[str, ...]
    """`all`: every one that is installed and can compute the model."""
    batches: tuple[int, ...]
    densities: tuple[float, ...]
    steps: int
    threads: int
    arena: bool


def plans(grid: Grid) -> list[Group]:
    """Spell a grid out and check all of it, before minutes are spent on a part.

    Raises:
        ConfigError: something in it is unknown or out of range.
    """
    for model in grid.models:
        if not measure_process.is_bundle(model):
            models.find(model)
    return [
        [
            Plan(model, Compute(backend, "cpu", grid.threads, grid.arena), batch, grid.steps, density)
            for backend in measure_process.backends_for(grid.backends, model)
        ]
        for model in grid.models
        for batch in grid.batches
        for density in grid.densities
    ]


def step(groups: Sequence[Group], environment: Mapping[str, str], repeats: int) -> Record:
    """Time steps: `repeats` turns of each group's backends. Raises as `measure_process.measure`."""
    rows, every = [], []
    for group in groups:
        turns = [
            [_measure(plan, environment, f"turn {turn + 1}/{repeats}") for plan in group] for turn in range(repeats)
        ]
        rows += _step_rows(turns)
        every += [one for turn in turns for one in turn]
    return _record("step", rows, every)


def _step_rows(turns: Sequence[Sequence[Measurement]]) -> list[Record]:
    rows = []
    for mine in zip(*turns, strict=True):
        ratios = [
            one.step_ms_median / other.step_ms_median
            for one, turn in zip(mine, turns, strict=True)
            for other in turn
            if other.backend == _REFERENCE
        ]
        medians = {
            name: statistics.median(getattr(one, name) for one in mine)
            for name in ("step_ms_median", "step_ms_p10", "step_ms_p90")
        }
        ratio = statistics.median(ratios) if ratios else None
        rows.append({**_asked(mine[0]), **medians, "ratio_to_torch": ratio})
    return rows


def memory(groups: Sequence[Group], environment: Mapping[str, str]) -> Record:
    """Weigh processes that train, and beside them an agent that waits. Raises as `measure_process.measure`."""
    idle_bytes = measure_process.idle_rss_bytes(environment)
    every = [_measure(plan, environment, "memory") for group in groups for plan in group]
    dense = {_key(one): one.over_baseline_bytes for one in every if one.density == 1}
    rows = []
    for one, expected in zip(every, bench_costs.estimates(every), strict=True):
        names = ("baseline_rss_bytes", "peak_rss_bytes", "over_baseline_bytes", "floor_bytes", "peak_was_reset")
        whole = dense.get(_key(one))
        rows.append(
            {
                **_asked(one),
                **{name: getattr(one, name) for name in names},
                "ratio_to_floor": one.over_baseline_bytes / one.floor_bytes,
                "ratio_to_dense": one.over_baseline_bytes / whole if whole else None,
                "with_agent_bytes": one.peak_rss_bytes + idle_bytes,
                "step_cpu_ms": one.step_cpu_ms,
                **expected,
            }
        )
    return {**_record("memory", rows, every), "agent_idle_rss_bytes": idle_bytes}


def _measure(plan: Plan, environment: Mapping[str, str], turn: str) -> Measurement:
    at = f", density {plan.density:g}" if plan.density < 1 else ""
    sys.stderr.write(f"{plan.model}, batch {plan.batch}{at}, {plan.compute.backend}: {turn} ...\n")
    return measure_process.measure(plan, environment)


def _asked(one: Measurement) -> Record:
    names = ("model", "parameters", "active", "batch", "density", "backend", "threads", "arena", "steps")
    return {name: getattr(one, name) for name in names}


def _key(one: Measurement) -> tuple[str, int, str]:
    return one.model, one.batch, one.backend


def _record(kind: str, rows: list[Record], every: Sequence[Measurement]) -> Record:
    return {
        "kind": kind,
        "version": __version__,
        "profile": asdict(profile()),
        "rows": rows,
        "measurements": [asdict(one) for one in every],
    }


def table(record: Record) -> Table:
    """Lay a record out for the terminal."""
    rows = record["rows"]
    sparse = any(row["density"] < 1 for row in rows)
    columns = _STEP_COLUMNS if record["kind"] == "step" else _MEMORY_COLUMNS
    shown = [(title, say) for title, say in columns if sparse or title not in _SPARSE_COLUMNS]
    laid = Table(title=_title(record), caption=_caption(record), box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title, _ in shown:
        laid.add_column(title, justify="left" if title in {"model", "backend"} else "right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = following is None or any(row[name] != following[name] for name in ("model", "batch", "density"))
        laid.add_row(*(say(row) for _, say in shown), end_section=ends)
    return laid


def _title(record: Record) -> str:
    first = record["rows"][0]
    what = "ms per step of training" if record["kind"] == "step" else "memory of a process that trains, in MB"
    return f"{what}, {units.counted(first['threads'], 'thread')}"


def _caption(record: Record) -> str | None:
    if record["kind"] == "step":
        return None
    said = f"an agent that waits has {units.size(record['agent_idle_rss_bytes'])}"
    if not all(row["peak_was_reset"] for row in record["rows"]):
        said += "; this system cannot start a peak anew: it may be that of importing the backend"
    return said


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}"


_COMMON_COLUMNS = (
    ("model", lambda row: row["model"]),
    ("batch", lambda row: str(row["batch"])),
    ("density", lambda row: f"{row['density']:g}"),
    ("backend", lambda row: row["backend"]),
)
_STEP_COLUMNS = (
    *_COMMON_COLUMNS,
    ("median", lambda row: f"{row['step_ms_median']:.1f}"),
    ("p10", lambda row: f"{row['step_ms_p10']:.1f}"),
    ("p90", lambda row: f"{row['step_ms_p90']:.1f}"),
    ("x torch", lambda row: _ratio(row["ratio_to_torch"])),
)
_MEMORY_COLUMNS = (
    *_COMMON_COLUMNS,
    ("baseline", lambda row: _mb(row["baseline_rss_bytes"])),
    ("peak", lambda row: _mb(row["peak_rss_bytes"])),
    ("over", lambda row: _mb(row["over_baseline_bytes"])),
    ("floor", lambda row: _mb(row["floor_bytes"])),
    ("x floor", lambda row: _ratio(row["ratio_to_floor"])),
    ("x dense", lambda row: _ratio(row["ratio_to_dense"])),
    ("+ agent", lambda row: _mb(row["with_agent_bytes"])),
)
_SPARSE_COLUMNS = {"density", "x dense"}
"""Shown only where something is not dense."""
