"""What a study found: mean and standard error over the seeds, as a table, CSV, JSON and Markdown."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_runtime.coordinator import report, units
from edge_runtime.coordinator.study import Scenario

Record = dict[str, Any]
Row = dict[str, Any]
SCHEMA = "edge-runtime/study/1"

_FIGURES: dict[str, Callable[[Record, str], float | None]] = {
    "accuracy": lambda cell, metric: cell["final"][metric]["mean"],
    "accuracy_p10": lambda cell, metric: cell["final"][metric]["p10"],
    "accuracy_shared": lambda cell, metric: cell["final"]["shared"]["mean"],
    "payload_bytes_up": lambda cell, metric: cell["payload_bytes_up"],
    "payload_bytes_down": lambda cell, metric: cell["payload_bytes_down"],
    "virtual_s": lambda cell, metric: cell["virtual_s"],
    "wall_s": lambda cell, metric: cell["times"]["wall_s"],
}
"""What a line says: from a cell's record, and the metric that the line stands for."""
_AVERAGED = ("updates", "virtual_s", "bytes_up", "bytes_down")


def build(scenarios: Sequence[Scenario], cells: Sequence[Record], command: str) -> Record:
    """Put the records of all cells together.

    Args:
        scenarios: what was compared.
        cells: the records, in any order; a case may lack some.
        command: what a person typed.
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "versions": cells[0]["versions"] if cells else report.versions(),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "scenarios": [_scenario(scenario, cells) for scenario in scenarios],
        "cells": list(cells),
    }


def _scenario(scenario: Scenario, cells: Sequence[Record]) -> Record:
    rows = []
    for case in scenario.cases:
        mine = [cell for cell in cells if (cell["scenario"], cell["case"]) == (scenario.name, case.name)]
        rows += [_row(case.name + suffix, metric, mine) for suffix, metric in case.shows if mine]
    return {"name": scenario.name, "about": scenario.about, "rows": rows}


def _row(name: str, metric: str, cells: Sequence[Record]) -> Row:
    """Make one line of the table; every figure becomes two: its mean, and `_se`, the mean's standard error."""
    row: Row = {"name": name, "case": cells[0]["case"], "metric": metric, "seeds": len(cells)}
    for figure, of in _FIGURES.items():
        row[figure], row[f"{figure}_se"] = mean_and_error([of(cell, metric) for cell in cells])
    return {**row, "curve": _curve(metric, cells)}


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Give the mean and its standard error (unbiased); None for what is not known, such as the error of one value."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return float(np.mean(known)), error


def _curve(metric: str, cells: Sequence[Record]) -> list[dict[str, float | None]]:
    """Average the seeds' curves, point by point, as far as all of them go."""
    points = []
    for entries in zip(*(cell["curve"] for cell in cells), strict=False):
        point = {name: mean_and_error([entry[name] for entry in entries])[0] for name in _AVERAGED}
        point["accuracy"], point["accuracy_se"] = mean_and_error([entry[metric] for entry in entries])
        points.append(point)
    return points


def to_csv(study: Record) -> str:
    """Write one line for every line of the tables."""
    text = io.StringIO()
    names = [
        "scenario",
        "name",
        "case",
        "metric",
        "seeds",
        *(part for name in _FIGURES for part in (name, f"{name}_se")),
    ]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for scenario in study["scenarios"]:
        writer.writerows({"scenario": scenario["name"], **row} for row in scenario["rows"])
    return text.getvalue()


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("accuracy", lambda row: _percent(row, "accuracy")),
    ("p10", lambda row: _percent(row, "accuracy_p10")),
    ("shared", lambda row: _percent(row, "accuracy_shared")),
    ("up", lambda row: units.size(row["payload_bytes_up"])),
    ("down", lambda row: units.size(row["payload_bytes_down"])),
    ("virtual", lambda row: units.duration(row["virtual_s"])),
    ("wall", lambda row: units.duration(row["wall_s"])),
)

_CAPTION = (
    "accuracies in %, mean ± standard error over the seeds; p10: nine of ten devices reach it; shared: of the common "
    "model; up and down: payload of a task; virtual: time by the devices' delays; wall: of the run"
)


def _percent(row: Row, name: str) -> str:
    value, error = row[name], row[f"{name}_se"]
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def tables(study: Record) -> list[Table]:
    """Lay a study out for the terminal, a table for each scenario."""
    made = []
    for scenario in study["scenarios"]:
        laid = Table(
            title=f"{scenario['name']}: {scenario['about']}", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        laid.add_column("")
        for title, _ in _COLUMNS:
            laid.add_column(title, justify="right")
        for row in scenario["rows"]:
            laid.add_row(row["name"], *(say(row) for _, say in _COLUMNS))
        made.append(laid)
    made[-1].caption = _CAPTION
    return made


def to_markdown(study: Record) -> str:
    """Write the tables for the documentation, with the command that made them."""
    versions, seeds = study["versions"], study["seeds"]
    lines = [f"Made by `{study['command']}` with edge-runtime {versions['edge-runtime']}"]
    if versions.get("commit"):
        lines[0] += f" ({versions['commit']})"
    lines[0] += f", seeds {', '.join(map(str, seeds))}."
    lines += ["", f"{_CAPTION[:1].upper()}{_CAPTION[1:]}."]
    for scenario in study["scenarios"]:
        lines += ["", f"### {scenario['name']}", "", f"{scenario['about'][:1].upper()}{scenario['about'][1:]}.", ""]
        lines += ["| | " + " | ".join(title for title, _ in _COLUMNS) + " |", "|---|" + "---:|" * len(_COLUMNS)]
        lines += [
            f"| {row['name']} | " + " | ".join(say(row) for _, say in _COLUMNS) + " |" for row in scenario["rows"]
        ]
    return "\n".join(lines) + "\n"
