"""What a run cost and what came of it: rows of figures in, one JSON object with a documented schema out.

`docs/report.md` is the schema in words. All that tells the time stands under keys named `times`, so that two simulated
runs of the same configuration differ in nothing else; what only a real machine has (memory, bytes on a socket) is None
in a simulation.
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import __version__
from edge_runtime.files import sync_folder, write_atomic
from edge_runtime.seal import ORDINARY

SCHEMA = "edge-runtime/report/1"
Report = dict[str, Any]

PAYLOAD = ("payload_bytes_up", "payload_bytes_down")
SOCKET = ("socket_bytes_up", "socket_bytes_down")
ACCURACIES = ("accuracy_shared", "accuracy_personal_before", "accuracy_personal")
_EVALUATION = (
    "evaluation_payload_bytes_up",
    "evaluation_payload_bytes_down",
    "evaluation_bytes_up",
    "evaluation_bytes_down",
)
_MEMORY = ("idle_rss_bytes", "agent_peak_rss_bytes", "trainer_peak_rss_bytes", "peak_rss_bytes")
_TIMES = ("cpu_s", "wall_s")
_HARDWARE = ("energy_j", "temperature_c", "throttled", "battery")
SPREAD = (*ACCURACIES, "loss", "staleness", *_HARDWARE)
"""The figures of a round of which its mean and quantiles are told."""
METRICS = (
    *PAYLOAD,
    *SOCKET,
    *_EVALUATION,
    *_MEMORY,
    *ACCURACIES,
    "loss",
    "staleness",
    "deployed_bytes",
    "train_samples",
    "test_samples",
    *_HARDWARE,
)
"""The figures of a device, all of which `summary` sums up."""


@dataclass(frozen=True)
class Row:
    """One device in one round. None: not measured, or the device has no such figure."""

    round: int
    """Counted from 0."""
    device: str
    phase: str
    """`train`, or `evaluate` for the evaluation of the final model."""
    payload_bytes_up: int
    payload_bytes_down: int
    socket_bytes_up: int | None
    """Everything on the socket, framing and control messages included."""
    socket_bytes_down: int | None
    idle_rss_bytes: int | None
    """The agent before its first task."""
    agent_peak_rss_bytes: int | None
    trainer_peak_rss_bytes: int | None
    cpu_s: float | None
    wall_s: float | None
    accuracy_shared: float | None
    """Of the shared model, where the device holds the whole of it."""
    accuracy_personal_before: float | None
    """Of the device's own model before this round's local training."""
    accuracy_personal: float | None
    loss: float | None
    train_samples: int
    test_samples: int
    deployed_bytes: int | None = None
    """The personal model as the device stores it, where that is smaller than its values."""
    staleness: float | None = None
    """Asynchronous runs: how many other updates came between its task and itself."""
    energy_j: float | None = None
    """What the parts of the device that a sensor sees took while the task ran, whatever else ran there."""
    temperature_c: float | None = None
    """The highest of the processor meanwhile."""
    throttled: float | None = None
    """1 if the processor was slowed down meanwhile, 0 if not."""
    battery: float | None = None
    """How full it was at the end, a part of 1."""


def versions() -> dict[str, str]:
    """List the versions that a run's numbers may depend on."""
    found = {"edge-runtime": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return {**found, "system": f"{platform.system()} {platform.machine()}"}


@dataclass(frozen=True)
class RunInfo:
    """What there is to say of a run as a whole."""

    run: str
    algorithm: str
    rounds: int
    model: str
    parameters: int
    seed: int
    configuration: Mapping[str, Any]
    """Plain values, as the run was configured."""
    broker: str | None = None
    """`mosquitto`, `amqtt`, `external`, or `loopback` for a simulation."""
    started: str | None = None
    """UTC, ISO 8601."""
    wall_s: float | None = None
    devices: tuple[str, ...] = ()
    """Ids that the report must list even if they never answered."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """What the coordinator chose for devices by their budgets, and why."""
    rejected: tuple[tuple[int, str, str], ...] = ()
    """Round, device and reason of every update that was thrown out."""
    privacy: str = ""
    """What has been promised to devices, with all that it rests on; empty: nothing was asked."""
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Messages of every device that were not taken, by reason (`gate.py`)."""
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What devices said they are (`profiles.py`)."""
    versions: Mapping[str, str] = field(default_factory=versions)


def build(run: RunInfo, rows: Sequence[Row], baselines: Sequence[Report] = ()) -> Report:
    """Make the report of a run.

    Args:
        run: the run as a whole.
        rows: figures, in any order; at most one row per device, round and phase.
        baselines: reports of other runs on the same work, to be shown beside it under their algorithm's name.
    """
    devices = _devices(run, rows)
    summary = _summary(devices)
    return {
        "schema": SCHEMA,
        "run": run.run,
        "algorithm": run.algorithm,
        "rounds": run.rounds,
        "model": {"name": run.model, "parameters": run.parameters},
        "seed": run.seed,
        "broker": run.broker,
        "configuration": dict(run.configuration),
        "versions": dict(run.versions),
        "times": {"started": run.started, "wall_s": _number(run.wall_s)},
        "devices": devices,
        "summary": summary,
        "rounds_detail": _rounds(rows, len(devices)),
        "rejected": [{"round": number, "device": device, "reason": why} for number, device, why in run.rejected],
        "privacy": run.privacy or None,
        "dropped": {device: dict(sorted(counts.items())) for device, counts in sorted(run.dropped.items())},
        "baselines": {other["algorithm"]: against(other, summary) for other in baselines},
    }


def _devices(run: RunInfo, rows: Sequence[Row]) -> list[dict[str, Any]]:
    by_device: dict[str, list[Row]] = {device: [] for device in run.devices}
    for row in rows:
        by_device.setdefault(row.device, []).append(row)
    for device in (*(device for _, device, _ in run.rejected), *run.choices):
        by_device.setdefault(device, [])
    return [_device(run, device, by_device[device]) for device in sorted(by_device)]


def _device(run: RunInfo, device: str, rows: list[Row]) -> dict[str, Any]:
    train = sorted((row for row in rows if row.phase == "train"), key=lambda row: row.round)
    evaluate = [row for row in rows if row.phase == "evaluate"]
    final = (evaluate or train)[-1:]
    means = {name: _mean(_column(train, name)) for name in PAYLOAD + SOCKET}
    sums = dict(zip(_EVALUATION, (_mean(_column(evaluate, name)) for name in PAYLOAD + SOCKET), strict=True))
    peaks = {name: _max(_column(rows, name)) for name in _MEMORY[:3]}
    together = [_plus(row.agent_peak_rss_bytes, row.trainer_peak_rss_bytes) for row in rows]
    last = {
        name: _last(_column(final, name)) for name in (*ACCURACIES, "deployed_bytes", "train_samples", "test_samples")
    }
    return {
        "id": device,
        "choice": run.choices.get(device),
        "profile": dict(run.profiles[device]) if device in run.profiles else None,
        "training_rounds": len(train),
        "rejected": sum(device == who for _, who, _ in run.rejected),
        **means,
        **sums,
        **peaks,
        "peak_rss_bytes": _max(together),
        **last,
        "loss": _last(_column(train[-1:], "loss")),
        "staleness": _mean(_column(train, "staleness")),
        **_hardware(rows, train),
        "times": {name: _mean(_column(train, name)) for name in _TIMES},
    }


def _hardware(rows: list[Row], train: list[Row]) -> dict[str, float | None]:
    """Say what a device took of its energy in a training round, and how it stood it."""
    told = [row for row in sorted(rows, key=lambda row: row.round) if row.battery is not None]
    return {
        "energy_j": _mean(_column(train, "energy_j")),
        "temperature_c": _number(_max(_column(rows, "temperature_c"))),
        "throttled": _mean(_column(train, "throttled")),
        "battery": _last(_column(told, "battery")),
    }


def _summary(devices: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up every figure over the devices that have it."""
    figures: dict[str, Any] = {name: _stats(device[name] for device in devices) for name in METRICS}
    times = {name: _stats(device["times"][name] for device in devices) for name in _TIMES}
    return {**figures, "times": times}


def _rounds(rows: Sequence[Row], fleet: int) -> list[dict[str, Any]]:
    """Sum up every training round over the devices that took part, and what a device has cost on average so far."""
    series, payload, socket = [], _Meter(), _Meter()
    by_round: dict[int, list[Row]] = {}
    for row in rows:
        if row.phase == "train":
            by_round.setdefault(row.round, []).append(row)
    for number, part in sorted(by_round.items()):
        means = {name: _mean(_column(part, name)) for name in PAYLOAD + SOCKET}
        share = len(part) / fleet
        entry = {
            "round": number,
            "devices": len(part),
            **means,
            "cumulative_payload_bytes": payload.add(share, *(means[name] for name in PAYLOAD)),
            "cumulative_socket_bytes": socket.add(share, *(means[name] for name in SOCKET)),
            **{name: _stats(_column(part, name)) for name in SPREAD},
            "times": {name: _stats(_column(part, name)) for name in _TIMES},
        }
        series.append(entry)
    return series


class _Meter:
    """Adds up what the average device has sent and received; unknown for good once a direction is."""

    def __init__(self) -> None:
        self._total: float | None = 0.0

    def add(self, share: float, up: float | None, down: float | None) -> float | None:
        """Add a round in which a `share` of the fleet took part, at these means, and give the sum."""
        both = _plus(up, down)
        self._total = None if self._total is None or both is None else self._total + share * both
        return _number(self._total)


def against(other: Report, summary: dict[str, Any]) -> dict[str, Any]:
    """Give a run as a baseline of one with this summary."""
    kept = ("algorithm", "rounds", "configuration", "times", "devices", "summary", "rounds_detail")
    return {**{key: other[key] for key in kept}, "comparison": _compare(summary, other["summary"])}


def _compare(own: dict[str, Any], other: dict[str, Any]) -> dict[str, float | None]:
    """Hold two summaries' means against each other: ratios (below 1: less), and accuracies in percentage points."""
    compared: dict[str, float | None] = {}
    for name in (*PAYLOAD, *SOCKET, *_EVALUATION, "idle_rss_bytes", "peak_rss_bytes", "deployed_bytes", "energy_j"):
        ours, theirs = own[name]["mean"], other[name]["mean"]
        compared[f"{name}_ratio"] = _number(ours / theirs) if ours is not None and theirs else None
    pairs = {f"{name}_points": (name, name) for name in ACCURACIES}
    pairs["accuracy_personal_over_shared_points"] = ("accuracy_personal", "accuracy_shared")
    for key, (ours_name, theirs_name) in pairs.items():
        ours, theirs = own[ours_name]["mean"], other[theirs_name]["mean"]
        compared[key] = None if ours is None or theirs is None else _number(100 * (ours - theirs))
    return compared


def refused(report: Report) -> list[tuple[str, str, int]]:
    """List messages that no honest device would have sent: of whom, why, how many; the most first."""
    found = [
        (device, reason, count)
        for device, reasons in report["dropped"].items()
        for reason, count in reasons.items()
        if reason not in ORDINARY
    ]
    return sorted(found, key=lambda one: -one[2])


def without_times(report: Report) -> Report:
    """Copy a report without any key named `times`: what two simulations of one configuration have in common."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(inner) for key, inner in value.items() if key != "times"}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return {key: strip(value) for key, value in report.items() if key != "times"}


def to_json(report: Report) -> bytes:
    """Write canonical JSON: sorted keys, indented, one newline at the end; the same report gives the same bytes."""
    return (json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write(folder: Path, report: Report) -> None:
    """Write `report.json` and `report.html` into `folder`, which exists.

    Raises:
        DeviceError: the disk is full or read-only.
    """
    from edge_runtime.coordinator import report_html

    write_atomic(folder / "report.json", to_json(report))
    write_atomic(folder / "report.html", report_html.page(report).encode())


def publish(folder: Path) -> None:
    """Let `latest` beside `folder` point at it, from one moment to the next.

    Raises:
        OSError: links cannot be made there, or `latest` is a folder of somebody's own.
    """
    link = folder.parent / "latest"
    temporary = folder.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name, target_is_directory=True)
    try:
        temporary.replace(link)
    except OSError:
        temporary.unlink()
        raise
    sync_folder(folder.parent)


def _column(rows: Iterable[Row], name: str) -> list[float | None]:
    return [getattr(row, name) for row in rows]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _number(value: float | None) -> float | None:
    """Round to what the figures are good for; what is not finite (a loss that blew up) is not a number for JSON."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return _number(math.fsum(known) / len(known)) if known else None


def _max(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _last(values: Sequence[float | None]) -> float | None:
    return _number(values[-1]) if values else None


def _plus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def _stats(values: Iterable[float | None]) -> dict[str, float | None]:
    """Sum up what is known: mean and quantiles, linear between neighbours (numpy's default, Hyndman and Fan's 7)."""
    known = _known(values)
    if not known:
        return {"mean": None, "p10": None, "p50": None, "p90": None}
    p10, p50, p90 = (_number(float(value)) for value in np.quantile(known, [0.1, 0.5, 0.9]))
    return {"mean": _mean(known), "p10": p10, "p50": p50, "p90": p90}
