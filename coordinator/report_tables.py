"""The tables of a report as CSV: one line per round, one line per device; docs/report.md has the columns.

A column is only ever added, at the end. Baselines follow the run, told apart by the column `algorithm`.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from edge_runtime.coordinator.report import METRICS, PAYLOAD, SOCKET, SPREAD, Report

_STATISTICS = ("mean", "p10", "p50", "p90")
_ROUND_PLAIN = ("round", "devices", *PAYLOAD, *SOCKET, "cumulative_payload_bytes", "cumulative_socket_bytes")
_TIMES = ("cpu_s", "wall_s")
_DEVICE_PLAIN = ("id", "choice", "training_rounds", "rejected", *METRICS)
ROUND_COLUMNS = (
    "run",
    "algorithm",
    *_ROUND_PLAIN,
    *(f"{name}_{which}" for name in (*SPREAD, *_TIMES) for which in _STATISTICS),
)
DEVICE_COLUMNS = ("run", "algorithm", *_DEVICE_PLAIN, *_TIMES)
Row = dict[str, Any]


def rounds_csv(report: Report) -> str:
    """Write a line for each round of the run, and of its baselines."""
    return _written(ROUND_COLUMNS, (row for of in _runs(report) for row in _rounds(of, report["run"])))


def devices_csv(report: Report) -> str:
    """Write a line for each device, in the run and in its baselines."""
    return _written(DEVICE_COLUMNS, (row for of in _runs(report) for row in _devices(of, report["run"])))


def _runs(report: Report) -> list[Mapping[str, Any]]:
    return [report, *report["baselines"].values()]


def _rounds(of: Mapping[str, Any], run: str) -> Iterator[Row]:
    for entry in of["rounds_detail"]:
        spread = {name: entry[name] for name in SPREAD} | {name: entry["times"][name] for name in _TIMES}
        statistics = {f"{name}_{which}": found[which] for name, found in spread.items() for which in _STATISTICS}
        yield {"run": run, "algorithm": of["algorithm"], **{name: entry[name] for name in _ROUND_PLAIN}, **statistics}


def _devices(of: Mapping[str, Any], run: str) -> Iterator[Row]:
    for entry in of["devices"]:
        times = {name: entry["times"][name] for name in _TIMES}
        yield {"run": run, "algorithm": of["algorithm"], **{name: entry[name] for name in _DEVICE_PLAIN}, **times}


def _written(columns: tuple[str, ...], rows: Iterator[Row]) -> str:
    """Write rows; what is not known is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
