"""Two finished runs beside each other: figures with their differences, and the settings that differ."""

from collections.abc import Iterator, Mapping
from typing import Any

from edge_runtime.coordinator.report import Report, against

SCHEMA = "edge-runtime/comparison/1"


def beside(one: Report, other: Report, names: tuple[str, str]) -> Report:
    """Make a report of `one` in which `other` stands as a baseline, by these names, so that it can be shown as one."""
    theirs = against({**other, "algorithm": names[1]}, one["summary"])
    theirs["comparison"]["accuracy_personal_over_shared_points"] = None  # that is for a baseline
    return {**one, "algorithm": names[0], "baselines": {names[1]: theirs}, "compared": differences(one, other)}


def record(one: Report, other: Report, names: tuple[str, str]) -> dict[str, Any]:
    """Give the comparison as plain values: docs/report.md has the keys."""
    told = beside(one, other, names)["baselines"][names[1]]["comparison"]
    comparison = {key: value for key, value in told.items() if key != "accuracy_personal_over_shared_points"}
    return {
        "schema": SCHEMA,
        "runs": {name: _run(report) for name, report in zip(names, (one, other), strict=True)},
        "comparison": comparison,
        "wall_s": [one["times"]["wall_s"], other["times"]["wall_s"]],
        "settings": [{"key": key, names[0]: ours, names[1]: theirs} for key, ours, theirs in differences(one, other)],
    }


def _run(report: Report) -> dict[str, Any]:
    kept = ("run", "algorithm", "rounds", "model", "seed", "times", "summary")
    return {**{key: report[key] for key in kept}, "devices": len(report["devices"])}


def differences(one: Report, other: Report) -> list[tuple[str, Any, Any]]:
    """List the settings that are not the same: dotted key, and both values (None: it has none)."""
    ours, theirs = (
        dict(_flat({"seed": report["seed"], **report["configuration"], "versions": report["versions"]}))
        for report in (one, other)
    )
    keys = sorted(ours.keys() | theirs.keys())
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
