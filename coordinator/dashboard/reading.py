"""A run's journal, read while a coordinator may be writing it: only what is new since the last time, and never a write.

Updates are kept as they were read. A row is written once, with a number that never goes back, so that those from the
newest number on are all that can be new; when the coordinator packs old ones (`archive.py`), what was packed is read
from there, as the report at the end will.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from edge_runtime.coordinator import archive
from edge_runtime.coordinator.archive import Judged
from edge_runtime.errors import RunError

_NAME = "journal.sqlite"
_BUSY_S = 2.0


class Cohort(NamedTuple):
    """A round as the journal has it."""

    round: int
    phase: str
    devices: tuple[str, ...]
    """Who was asked; of an asynchronous run nobody is named."""
    closed: bool


@dataclass(frozen=True)
class Held:
    """What a journal held at one moment."""

    facts: dict[str, str]
    judged: list[Judged]
    """In the order in which `Journal.accepted` gives them."""
    cohorts: list[Cohort]
    choices: dict[str, str]
    unfit: dict[str, str]
    known: tuple[str, ...]


class JournalReader:
    """Reads one journal again and again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._packed: dict[int, list[Judged]] = {}
        self._rows: dict[tuple[int, str, str], Judged] = {}
        self._cohorts: dict[tuple[int, str], Cohort] = {}

    def version(self) -> int:
        """Count the transactions that were committed; what was read at the same count has not changed.

        Raises:
            RunError: the journal cannot be read.
        """
        with _reading(self._path) as database:
            return _commits(database)

    def read(self) -> Held:
        """Read what there is now, in one transaction.

        Raises:
            RunError: the journal cannot be read.
        """
        with _reading(self._path) as database:
            database.execute("BEGIN")
            self._take(database)
            facts = dict(database.execute("SELECT key, value FROM run"))
            choices = dict(database.execute("SELECT device, why FROM choice"))
            unfit = dict(database.execute("SELECT device, why FROM unfit"))
            known = tuple(row[0] for row in database.execute("SELECT id FROM device ORDER BY id"))
        packed = [one for first in sorted(self._packed) for one in self._packed[first]]
        rows = sorted(self._rows.values(), key=lambda one: (one.number, one.phase, one.device))
        return Held(facts, packed + rows, list(self._cohorts.values()), choices, unfit, known)

    def _take(self, database: sqlite3.Connection) -> None:
        for (first,) in database.execute("SELECT first FROM archive").fetchall():
            if first not in self._packed:
                (data,) = database.execute("SELECT data FROM archive WHERE first = ?", (first,)).fetchone()
                self._packed[first] = list(archive.unpack(data))
        (oldest,) = database.execute("SELECT MIN(number) FROM upload").fetchone()
        self._rows = {key: one for key, one in self._rows.items() if oldest is not None and one.number >= oldest}
        newest = max((one.number for one in self._rows.values()), default=-1)
        query = "SELECT round, phase, device, number, metrics, reason FROM upload WHERE number >= ?"
        for round_, phase, device, number, metrics, reason in database.execute(query, (newest,)):
            self._rows[round_, phase, device] = Judged(round_, phase, device, number, json.loads(metrics), reason)
        for round_, phase, closed in database.execute("SELECT round, phase, closed FROM round").fetchall():
            held = self._cohorts.get((round_, phase))
            if held is None or held.closed != bool(closed):
                where = "SELECT cohort FROM round WHERE round = ? AND phase = ?"
                (cohort,) = database.execute(where, (round_, phase)).fetchone()
                self._cohorts[round_, phase] = Cohort(round_, phase, tuple(json.loads(cohort)), bool(closed))


def memory(folder: Path, device: str) -> bytes | None:
    """Read what the server half remembers of a device; None: nothing.

    Raises:
        RunError: the journal cannot be read.
    """
    with _reading(folder / _NAME) as database:
        row = database.execute("SELECT memory FROM device WHERE id = ?", (device,)).fetchone()
    return None if row is None or row[0] is None else bytes(row[0])


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection that can only read; what SQLite or a malformed journal gives is one line."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_S)) as database:
            database.isolation_level = None
            yield database
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def _commits(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT commits FROM total").fetchone()
    return int(row[0]) if row else 0
