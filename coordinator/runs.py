"""Runs that are there, by what their journals say: looked at, stopped, and gone on with.

A run's own folder holds `journal.sqlite`. What a person names may also be the folder above it, where `demo` and `start`
put one folder for each algorithm beside the report.
"""

import json
import os
import signal
import socket
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_runtime import config, seed_set
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.run_files import holder
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.link import Link
from edge_runtime.quota import Quota

_NAME = "journal.sqlite"


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    folder: str
    run: str
    algorithm: str
    model: str
    state: str
    """`running`, `stopped` or `finished`."""
    round: int
    """The open round; of a finished run, how many there were; of an asynchronous one, updates that were judged."""
    rounds: int
    phase: str
    cohort: int
    """Devices that the open round waits for or has heard; 0: none is open."""
    answered: int
    devices: int
    """Devices that were ever heard of."""
    accepted: int
    """Updates that have a row each, older ones being packed."""
    rejected: int
    starts: int
    """Times that a coordinator took the run up."""
    started: str
    process: int
    """Of the coordinator that has it; 0: none."""
    host: str
    journal_bytes: int

    def record(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def folders(place: Path) -> list[Path]:
    """List the runs in a folder, and in the folders in it, down to two levels."""
    found = {path.parent for pattern in (_NAME, f"*/{_NAME}", f"*/*/{_NAME}") for path in place.glob(pattern)}
    return sorted(path for path in found if "latest" not in path.relative_to(place).parts)


def the_one(place: Path) -> Path:
    """Find the run that a person means: of several in one folder, the one that is not finished, else the first.

    Raises:
        ConfigError: there is none.
    """
    found = folders(place)
    if not found:
        near = config.nearest_path(place) or "; `edge-coordinator run list` shows those in runs/"
        raise ConfigError(f"{place}: no run there{near}")
    return next((path for path in found if len(found) > 1 and standing(path).state != "finished"), found[0])


def standing(folder: Path) -> Standing:
    """Read where a run stands, while a coordinator may be at it.

    Raises:
        RunError: its journal cannot be read.
    """
    path = folder / _NAME
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return _standing(folder, database)
        finally:
            database.close()
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        if "no such table" in str(error):
            raise RunError(f"{path}: a run is only just being made, or never was; look again") from error
        raise RunError(f"{path}: cannot be read ({error}); restore a backup") from error


def _standing(folder: Path, database: sqlite3.Connection) -> Standing:
    def count(query: str, *values: object) -> int:
        return int(database.execute(query, values).fetchone()[0])

    facts = dict(database.execute("SELECT key, value FROM run"))
    settings = json.loads(facts.get("description", '{"run": {}}'))["run"]
    number, phase = int(facts.get("round", 0)), facts.get("phase", "train")
    row = database.execute(
        "SELECT cohort FROM round WHERE round = ? AND phase = ? AND NOT closed", (number, phase)
    ).fetchone()
    who = holder(folder)
    finished = facts.get("finished") == "yes"
    asynchronous = settings.get("habit") == "asynchronous" and phase == "train"
    where = "round = ? AND phase = ? AND reason = ''"
    return Standing(
        str(folder),
        facts.get("run", ""),
        settings.get("algorithm", ""),
        settings.get("model", ""),
        "finished" if finished else "running" if who else "stopped",
        count("SELECT COUNT(*) FROM upload WHERE phase = 'train'") if asynchronous else number,
        settings.get("rounds", 0),
        phase,
        len(json.loads(row[0])) if row else 0,
        count(f"SELECT COUNT(*) FROM upload WHERE {where}", number, phase),  # noqa: S608
        count("SELECT COUNT(*) FROM device"),
        count("SELECT COUNT(*) FROM upload WHERE reason = ''"),
        count("SELECT COUNT(*) FROM upload WHERE reason != ''"),
        int(facts.get("starts", 0)),
        facts.get("started", ""),
        who[0] if who else 0,
        who[1] if who else "",
        sum(path.stat().st_size for path in folder.glob(f"{_NAME}*")),
    )


def stop(folder: Path, patience_s: float) -> int:
    """End the coordinator of a run, and wait until it has; the run can go on. Gives its process.

    Raises:
        ConfigError: none has the run, or it is on another host.
        RunError: it does not end.
    """
    who = holder(folder)
    if who is None:
        raise ConfigError(f"{folder}: no coordinator is at this run")
    pid, host = who
    if not pid or host != socket.gethostname():
        raise ConfigError(f"{folder}: process {pid} on {host} has this run; stop it there")
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + patience_s
    while holder(folder) is not None:
        if time.monotonic() > until:
            raise RunError(f"{folder}: process {pid} still has this run after {patience_s:.0f} s; kill -9 it")
        time.sleep(0.05)
    return pid


def rebuild(folder: Path) -> tuple[Run, Link | None]:
    """Make a run again from what its folder says alone, and say where its broker was (None: it was simulated).

    Raises:
        ConfigError: a model or bundle that it names is gone.
        RunError: its journal cannot be read.
    """
    path = folder / _NAME
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        facts = dict(database.execute("SELECT key, value FROM run"))
        database.close()
        asked, link = json.loads(facts["asked"]), json.loads(facts.get("link", "null"))
    except (sqlite3.Error, KeyError, ValueError) as error:
        raise RunError(f"{path}: does not say what the run is ({error}); start it again with its settings") from error
    data = (folder / "seeds").read_bytes() if (folder / "seeds").exists() else b""
    settings = config.build(RunConfig, asked["run"], "run")
    run = prepare(settings, asked["algorithm"], asked["variant"], seed_set.decode(data) if data else None)
    return run, Link(**{**link, "quota": Quota(**link["quota"])}) if link else None
