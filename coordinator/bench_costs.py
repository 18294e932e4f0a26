"""What models cost, measured once and kept beside their bundles, and how near estimates are to later measurements."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_runtime import costs
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs
from edge_runtime.errors import ConfigError
from edge_runtime.measure_process import Measurement

Record = dict[str, Any]


def measure(models: Sequence[str], grid: costs.Grid, environment: Mapping[str, str]) -> Record:
    """Measure models and write `costs.json` beside their bundles; gives what was written, by model.

    Raises as `costs.calibrate`.
    """
    folders = {model: costs.folder_of(model) for model in models}  # all of them are there, before minutes are spent
    found = {}
    for model, folder in folders.items():
        made = costs.calibrate(model, grid, environment, lambda said: print(said, file=sys.stderr))
        costs.write(_with_others(made, folder), folder)
        found[model] = budget.record(made)
    return found


def _with_others(made: Costs, folder: Path) -> Costs:
    """Keep what was measured of other backends before."""
    try:
        before = costs.read(folder)
    except ConfigError:  # damaged: to be made anew
        before = None
    backends = {point.backend for point in made.points}
    others = tuple(point for point in before.points if point.backend not in backends) if before else ()
    return Costs(made.machine, (*others, *made.points))


def estimates(measured: Sequence[Measurement]) -> list[Record]:
    """Say beside each measurement what was to be expected of it; None where the model's costs are not known."""
    known = {model: costs.read(costs.folder_of(model)) for model in dict.fromkeys(one.model for one in measured)}
    return [_beside(known[one.model], one) for one in measured]


def _beside(known: Costs | None, one: Measurement) -> Record:
    found = known and budget.estimate(known, one.backend, one.density, one.batch)
    if not found:
        return {"estimate_bytes": None, "estimate_error": None, "estimate_step_ms": None, "estimate_step_error": None}
    return {
        "estimate_bytes": found.peak_bytes,
        "estimate_error": found.peak_bytes / one.over_baseline_bytes - 1,
        "estimate_step_ms": found.step / one.step * one.step_cpu_ms,
        "estimate_step_error": found.step / one.step - 1,
    }


def table(record: Record) -> Table | None:
    """Lay out what `bench memory` found beside what was estimated; None if nothing was."""
    rows = [row for row in record["rows"] if row["estimate_bytes"] is not None]
    if not rows:
        return None
    worst, worst_step = (max(abs(row[name]) for row in rows) for name in ("estimate_error", "estimate_step_error"))
    laid = Table(
        title="estimates from costs.json",
        caption=f"at most {worst:.0%} off in memory and {worst_step:.0%} in time, of {len(rows)}",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for title in ("model", "batch", "density", "backend", "over MB", "estimate", "off", "CPU ms", "estimate", "off"):
        laid.add_column(title, justify="left" if title in {"model", "backend"} else "right")
    for row in rows:
        laid.add_row(
            row["model"],
            str(row["batch"]),
            f"{row['density']:g}",
            row["backend"],
            *_pair(row["over_baseline_bytes"] / 1e6, row["estimate_bytes"] / 1e6, row["estimate_error"]),
            *_pair(row["step_cpu_ms"], row["estimate_step_ms"], row["estimate_step_error"]),
        )
    return laid


def _pair(measured: float, estimated: float, error: float) -> tuple[str, str, str]:
    return f"{measured:.1f}", f"{estimated:.1f}", f"{error:+.0%}"
