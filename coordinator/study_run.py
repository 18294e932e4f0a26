"""Running a study: every cell in a process of its own, and one small file for each that is finished.

The same study in the same folder goes on where it was stopped: a cell whose file is there, and was made with the same
settings, is not run again.
"""

import contextlib
import fnmatch
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import config
from edge_runtime.compute import Compute
from edge_runtime.coordinator import report
from edge_runtime.coordinator.journal import Accepted, Journal
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.coordinator.study import METRICS, Cell
from edge_runtime.data import device_names
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.files import write_atomic
from edge_runtime.processes import die_with_parent

Record = dict[str, Any]
SCHEMA = "edge-runtime/study-cell/1"


def run(cells: Sequence[Cell], out: Path, jobs: int, tell: Callable[[Cell, Record], None]) -> list[str]:
    """Run all cells that are not finished, `jobs` at a time, and `tell` of each that has just been run.

    Returns:
        Name and reason of every cell that failed; the others are finished.

    Raises:
        ConfigError: a cell that cannot be run, before any has been.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, not {jobs}")
    pending = [cell for cell in cells if read(cell, out) is None]
    for cell in pending:
        cell.prepare()
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    context = multiprocessing.get_context("spawn")  # a fork would take the threads of numpy along, in any state
    running: list[tuple[SpawnProcess, Cell]] = []
    try:
        while pending or running:
            while pending and len(running) < jobs:
                cell = pending.pop(0)
                running.append((context.Process(target=_work, args=(cell, out), daemon=True), cell))
                running[-1][0].start()
            wait([process.sentinel for process, _ in running])
            ended = [cell for process, cell in running if not process.is_alive()]
            running = [(process, cell) for process, cell in running if cell not in ended]
            for cell in ended:
                record = read(cell, out)
                if record is None:
                    failed.append(f"{cell.name}: {_reason(cell, out)}")
                else:
                    tell(cell, record)
    finally:
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.join()
    return failed


def read(cell: Cell, out: Path) -> Record | None:
    """Read the record of a cell; None if it is not finished, or was run with other settings."""
    try:
        record: Record = json.loads(path(cell, out).read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.get("digest") == cell.digest() else None


def path(cell: Cell, out: Path, suffix: str = ".json") -> Path:
    """Say where the record of a cell is, or with another suffix why it failed."""
    return out / (cell.name.replace(", ", "-").replace(" ", "-") + suffix)


def _reason(cell: Cell, out: Path) -> str:
    failure = path(cell, out, ".failed")
    return failure.read_text() if failure.exists() else "its process ended without a word"


def _work(cell: Cell, out: Path) -> None:
    """Run a cell as a process: Ctrl-C is for the parent, which then ends its children in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    die_with_parent()
    failure = path(cell, out, ".failed")
    failure.unlink(missing_ok=True)
    try:
        write_atomic(path(cell, out), json.dumps(play(cell), indent=1).encode())
    except EdgeError as error:
        failure.write_text(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def play(cell: Cell) -> Record:
    """Run a cell in this process: the real coordinator, devices, protocol and payloads, on a bus in memory.

    Raises:
        EdgeError: it cannot be run, or not be finished.
    """
    started_s, cpu_s = time.perf_counter(), time.process_time()
    case, made, names = cell.case, cell.prepare(), device_names(cell.data)
    compute = Compute(backend=cell.scenario.backend)
    scene = Scene(cell.data, names, config.cache_folder(), compute, pace=case.pace, attack=case.attack, only=case.only)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Journal(Path(folder), durable=False)) as journal:
        simulate(made, cell.digest()[:32], scene, journal, lambda coordinator: None)
        accepted = journal.accepted()
    liars, taking_part = scene.attack.members(cell.seed, names), len(fnmatch.filter(names, case.only))
    return {
        "schema": SCHEMA,
        "scenario": cell.scenario.name,
        "case": case.name,
        "algorithm": case.algorithm,
        "model": made.config.model,
        "parameters": len(made.initial),
        "settings": made.description.config,
        "run": config.table(made.config),
        "seed": cell.seed,
        "digest": cell.digest(),
        "versions": {**report.versions(), "commit": commit()},
        "attackers": sorted(liars),
        **figures(accepted, liars, taking_part, made.config.cohort or taking_part, case.groups),
        "times": {"wall_s": time.perf_counter() - started_s, "cpu_s": time.process_time() - cpu_s},
    }


def figures(
    accepted: Sequence[Accepted], liars: Collection[str], devices: int, per_round: int, groups: Sequence[str] = ()
) -> Record:
    """Sum up a run: the accuracies of those who do not lie, the bytes of all.

    Args:
        accepted: what the devices reported along with their updates.
        liars: the devices that lie.
        devices: how many there are.
        per_round: how many train in a round.
        groups: patterns of devices whose accuracies are told by themselves too.
    """
    trained = [item for item in accepted if item.phase == "train"]
    last = [item for item in accepted if item.phase == "evaluate" and item.device not in liars]
    return {
        "final": {metric: _spread(values) for metric, values in _accuracies(last, groups).items()},
        "payload_bytes_up": _mean([item.metrics["payload-bytes-up"] for item in trained]),
        "payload_bytes_down": _mean([item.metrics["payload-bytes-down"] for item in trained]),
        "virtual_s": max(item.metrics["virtual-s"] for item in trained),
        "curve": _curve(trained, liars, devices, per_round or devices, groups),
    }


def _curve(
    trained: Sequence[Accepted], liars: Collection[str], devices: int, per_round: int, groups: Sequence[str]
) -> list[Record]:
    """Say after every so many updates as a round has what their devices reached, and what the average had sent."""
    curve: list[Record] = []
    total = {"up": 0.0, "down": 0.0}
    trained = sorted(trained, key=lambda item: (item.metrics["virtual-s"], item.round, item.device))
    for end in range(per_round, len(trained) + 1, per_round):
        now = trained[end - per_round : end]
        for way in total:
            total[way] += sum(item.metrics[f"payload-bytes-{way}"] for item in now) / devices
        entry: Record = {"updates": end, "virtual_s": now[-1].metrics["virtual-s"]}
        entry |= {f"bytes_{way}": value for way, value in total.items()}
        theirs = [item for item in now if item.device not in liars]
        curve.append(entry | {metric: _mean(values) for metric, values in _accuracies(theirs, groups).items()})
    return curve


def _accuracies(items: Sequence[Accepted], groups: Sequence[str]) -> dict[str, list[float]]:
    """List what devices reached, by metric: all of them, and those of each group."""
    keys = {metric: "accuracy-" + metric.replace("_", "-") for metric in METRICS}
    found = {metric: [item.metrics[key] for item in items if key in item.metrics] for metric, key in keys.items()}
    for group in groups:
        some = _accuracies([item for item in items if fnmatch.fnmatch(item.device, group)], ())
        found |= {f"{metric} of {group}": values for metric, values in some.items()}
    return found


def _spread(values: Sequence[float]) -> Record:
    """Give the mean over devices, and what nine of ten of them are above."""
    return {"mean": _mean(values), "p10": float(np.quantile(values, 0.1)) if values else None, "devices": len(values)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def commit() -> str:
    """Name the commit that this code is of, as far as git knows it; empty: it does not."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
