"""What the coordinator must not forget: one SQLite file and one checkpoint file per run.

    RUN/journal.sqlite      WAL, synchronous FULL: devices, rounds, updates (PRIMARY KEY round, phase, device)
    RUN/checkpoint-NNNN     the server half's state at the start of round NNNN
    RUN/spool/DEVICE        an update on its way in, one per device (`spool.py`); a restart goes on with what it holds
    RUN/down/DIGEST         asynchronous runs: the encoded Down of an open task
    RUN/personal/DEVICE.bin personal models that devices handed over (`[run] collect`)
    RUN/grids/NAME          shared models of earlier rounds as devices hold them (`downlink.py`)

The order is: update journalled, then acknowledged; checkpoint file written, then the row that names it. After a crash
the run goes on from the last checkpoint and the updates that the journal holds since then: those of the open round, or
of an asynchronous run those judged after the checkpoint, in their order. Older ones keep digest and figures only.
"""

import contextlib
import fcntl
import hashlib
import json
import sqlite3
import typing
from collections.abc import Iterator, MutableMapping, Set
from pathlib import Path
from typing import IO, NamedTuple

from edge_runtime import spool
from edge_runtime.coordinator.actions import Progress
from edge_runtime.errors import ConfigError, DeviceError, RunError
from edge_runtime.files import write_atomic
from edge_runtime.message import Blob, Chunk, Offer, Task, decode, encode

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (id TEXT PRIMARY KEY, base TEXT NOT NULL DEFAULT '', memory BLOB,
    wish TEXT NOT NULL DEFAULT '', asked TEXT NOT NULL DEFAULT '', held TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS round (
    round INTEGER, phase TEXT, cohort TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0, checkpoint TEXT,
    PRIMARY KEY (round, phase)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS upload (
    round INTEGER, phase TEXT, device TEXT, number INTEGER NOT NULL, digest TEXT NOT NULL, payload BLOB,
    metrics TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (round, phase, device)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS choice (
    device TEXT PRIMARY KEY, name TEXT NOT NULL, why TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unfit (
    device TEXT PRIMARY KEY, why TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (
    device TEXT PRIMARY KEY, cut BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS assignment (
    device TEXT PRIMARY KEY, round INTEGER NOT NULL, task BLOB NOT NULL, down TEXT NOT NULL) WITHOUT ROWID;
"""

_MOST_GRIDS = 64


class Accepted(NamedTuple):
    """An update that counts."""

    round: int
    phase: str
    device: str
    number: int
    """The how-manieth update of an asynchronous run it was, rejected ones counted; else its round."""
    metrics: dict[str, float]


class Rejected(NamedTuple):
    """An update that was thrown out."""

    round: int
    device: str
    reason: str


class Journal:
    """The durable side of one run."""

    def __init__(self, folder: Path, durable: bool = True) -> None:
        """Open or make the journal in `folder`; one that is not durable does not wait for the disk.

        Raises:
            ConfigError: another coordinator has it open.
            DeviceError: the folder cannot be written.
        """
        self.folder, self._durable = folder, durable
        level = "FULL" if durable else "OFF"
        try:
            for part in ("spool", "down", "grids"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            self._database = sqlite3.connect(folder / "journal.sqlite", check_same_thread=False)
            self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous={level};" + _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise DeviceError(f"{folder}: the journal cannot be opened: {error}; free some space") from error
        self.memories: MutableMapping[str, bytes] = _Memories(self._database)

    def close(self) -> None:
        """Let another coordinator have the run."""
        self._database.close()
        self._lock.close()

    def get(self, key: str) -> str | None:
        """Read one fact about the run."""
        row = self._database.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Make one fact about the run durable."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, value))

    def next_epoch(self) -> int:
        """Count this start of the coordinator, durably."""
        epoch = int(self.get("epoch") or 0) + 1
        self.set("epoch", str(epoch))
        return epoch

    def progress(self, asynchronous: bool = False) -> Progress:
        """Say where the run stands."""
        progress = Progress(known={row[0] for row in self._database.execute("SELECT id FROM device")})
        progress.round = int(self.get("round") or 0)
        progress.phase = self.get("phase") or "train"
        progress.finished = self.get("finished") == "yes"
        if asynchronous and progress.phase == "train":
            return self._versions(progress)
        where = (progress.round, progress.phase)
        row = self._database.execute(
            "SELECT cohort FROM round WHERE round = ? AND phase = ? AND NOT closed", where
        ).fetchone()
        if row:
            progress.cohort = tuple(json.loads(row[0]))
            query = "SELECT device, digest FROM upload WHERE round = ? AND phase = ? AND reason = ''"
            progress.accepted = dict(self._database.execute(query, where))
        return progress

    def _versions(self, progress: Progress) -> Progress:
        query = "SELECT COUNT(*), COUNT(*) FILTER (WHERE reason = '') FROM upload WHERE phase = 'train'"
        progress.round, progress.applied = self._database.execute(query).fetchone()
        query = "SELECT device, MAX(round) FROM upload WHERE phase = 'train' GROUP BY device"
        progress.judged = dict(self._database.execute(query))
        progress.issued = dict(self._database.execute("SELECT device, round FROM assignment"))
        return progress

    def register(self, device: str) -> None:
        """Make it durable that a device exists."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))

    def choose(self, device: str, name: str, why: str) -> None:
        """Make durable what a device is given, and why; an empty name: nothing, for now."""
        if (name, why) != self._database.execute("SELECT name, why FROM choice WHERE device = ?", (device,)).fetchone():
            with self._transaction():
                self._database.execute("INSERT OR REPLACE INTO choice VALUES (?, ?, ?)", (device, name, why))

    def chosen(self, device: str) -> str:
        """Name what a device is given by choice; empty: nothing."""
        row = self._database.execute("SELECT name FROM choice WHERE device = ?", (device,)).fetchone()
        return str(row[0]) if row else ""

    def choices(self) -> dict[str, str]:
        """Say of every device for which something was chosen what, and why."""
        return dict(self._database.execute("SELECT device, why FROM choice"))

    def admit(self, device: str, lacking: str) -> None:
        """Make durable why a device gets no task; empty: it gets tasks."""
        if self.unfit().get(device, "") != lacking:
            with self._transaction():
                self._database.execute("DELETE FROM unfit WHERE device = ?", (device,))
                if lacking:
                    self._database.execute("INSERT INTO unfit VALUES (?, ?)", (device, lacking))

    def unfit(self) -> dict[str, str]:
        """Say of every device that gets no task why."""
        return dict(self._database.execute("SELECT device, why FROM unfit"))

    def keep_part(self, device: str, cut: bytes) -> None:
        """Make durable which channels a device has that has chosen them."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO part VALUES (?, ?)", (device, cut))

    def part(self, device: str) -> bytes:
        """Read which channels a device has that has chosen them; empty: it has not."""
        row = self._database.execute("SELECT cut FROM part WHERE device = ?", (device,)).fetchone()
        return bytes(row[0]) if row else b""

    def base(self, device: str) -> str:
        """Name the last update of a device that was applied; empty: none."""
        return self._of(device, "base")

    def open_round(self, round_: int, phase: str, cohort: tuple[str, ...]) -> None:
        """Make an assignment durable."""
        with self._transaction():
            row = (round_, phase, json.dumps(cohort))
            self._database.execute("INSERT OR REPLACE INTO round (round, phase, cohort) VALUES (?, ?, ?)", row)

    def assign(self, device: str, task: Task, down: bytes) -> None:
        """Make a task of an asynchronous run durable, and the encoded Down that it names."""
        before = self._down_of(device)
        self._write_down(task.down.digest, down)
        with self._transaction():
            row = (device, task.round, encode(task), task.down.digest)
            self._database.execute("INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?)", row)
        self._drop_down(before)

    def assigned(self, device: str) -> Task | None:
        """Read the open task of a device; None: it has none, or the Down that it names is gone."""
        row = self._database.execute("SELECT task, down FROM assignment WHERE device = ?", (device,)).fetchone()
        return typing.cast(Task, decode(row[0])) if row and row[1] and self.down(row[1]) is not None else None

    def _down_of(self, device: str) -> str:
        row = self._database.execute("SELECT down FROM assignment WHERE device = ?", (device,)).fetchone()
        return str(row[0]) if row else ""

    def down(self, digest: str) -> bytes | None:
        """Read the encoded Down of an open task."""
        path = self.folder / "down" / digest
        data = path.read_bytes() if path.exists() else b""
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def _write_down(self, digest: str, data: bytes) -> None:
        path = self.folder / "down" / digest
        try:
            if not path.exists():
                write_atomic(path, data)
        except DeviceError as error:
            raise RunError(f"{error}, and resume the run") from error

    def _drop_down(self, digest: str) -> None:
        """Drop a Down that no open task names."""
        named = self._database.execute("SELECT 1 FROM assignment WHERE down = ?", (digest,)).fetchone()
        if digest and named is None:
            (self.folder / "down" / digest).unlink(missing_ok=True)

    def ask(self, device: str, wish: str) -> None:
        """Make durable which coding a device asks for from its next task on; empty: the run's."""
        if wish != self._of(device, "wish"):
            with self._transaction():
                self._database.execute("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))
                self._database.execute("UPDATE device SET wish = ? WHERE id = ?", (wish, device))

    def settle(self, device: str) -> None:
        """Let what a device asks for hold from now on; what it holds of its last task was told as before."""
        if self._of(device, "wish") != self.asked(device):
            with self._transaction():
                self._database.execute("UPDATE device SET asked = wish WHERE id = ?", (device,))

    def asked(self, device: str) -> str:
        """Say which coding a device is told its task in, where it asked for one."""
        return self._of(device, "asked")

    def held(self, device: str) -> str:
        """Name the grid that a device holds, in the state that the coordinator knows of; empty: none."""
        return self._of(device, "held")

    def _of(self, device: str, column: str) -> str:
        row = self._database.execute(f"SELECT {column} FROM device WHERE id = ?", (device,)).fetchone()  # noqa: S608
        return "" if row is None else str(row[0])

    def keep_grid(self, name: str, data: bytes) -> None:
        """Make a grid durable; of many the oldest go."""
        folder = self.folder / "grids"
        try:
            write_atomic(folder / name, data, self._durable)
        except DeviceError as error:
            raise RunError(f"{error}, and resume the run") from error
        for path in sorted(folder.iterdir())[:-_MOST_GRIDS]:
            path.unlink(missing_ok=True)

    def grid(self, name: str) -> bytes | None:
        """Read a grid; None if it is gone."""
        path = self.folder / "grids" / name
        return path.read_bytes() if path.exists() else None

    def partial(self, device: str, blob: Blob) -> Set[int]:
        """List the chunks of an incoming update that were kept and are good; those of another one are dropped."""
        return spool.kept(self.folder / "spool" / device, blob)

    def keep(self, device: str, offer: Offer, chunk: Chunk) -> None:
        """Put a chunk of an incoming update aside."""
        path = self.folder / "spool" / device
        try:
            spool.keep(path, offer.blob, chunk)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written: {error.strerror}; free some space and resume the run"
            ) from error

    def take(self, device: str, blob: Blob) -> bytes | None:
        """Read the incoming update of a device; None if its bytes do not have its digest: what is bad is not kept."""
        return spool.join(self.folder / "spool" / device, blob)

    def drop(self, device: str) -> None:
        """Drop the incoming update of a device: it was judged."""
        (self.folder / "spool" / device).unlink(missing_ok=True)

    def accept(self, device: str, offer: Offer, payload: bytes, number: int, held: str = "") -> None:
        """Journal an update that was absorbed, together with what the server half now remembers of the device.

        Args:
            device: the device.
            offer: its offer.
            payload: the update.
            number: of an asynchronous run, how many were judged before it; else its round.
            held: name of the grid that the device holds from now on.
        """
        self._judge(device, offer, number, payload, "", held)

    def keep_personal(self, device: str, data: bytes) -> None:
        """Make the personal model of a device durable."""
        (self.folder / "personal").mkdir(exist_ok=True)
        write_atomic(self.folder / "personal" / f"{device}.bin", data, self._durable)

    def reject(self, device: str, offer: Offer, reason: str, number: int) -> None:
        """Journal an update that was thrown out, and take back what absorbing it may have written."""
        self._database.rollback()
        self._judge(device, offer, number, None, reason)

    def _judge(
        self, device: str, offer: Offer, number: int, payload: bytes | None, reason: str, held: str = ""
    ) -> None:
        row = (offer.round, offer.phase, device, number, offer.blob.digest, payload, json.dumps(offer.metrics), reason)
        done = self._down_of(device)
        with self._transaction():
            self._database.execute("INSERT INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            if offer.phase == "train":
                if not reason:
                    now = (offer.blob.digest, held, device)
                    self._database.execute("UPDATE device SET base = ?, held = ? WHERE id = ?", now)
                where = (device, offer.round)
                self._database.execute("UPDATE assignment SET down = '' WHERE device = ? AND round <= ?", where)
        self._drop_down(done)
        self.drop(device)

    def fate(self, device: str, offer: Offer) -> tuple[str, str]:
        """Say what became of an offer, and why: `applied`, `rejected` or `late`."""
        row = self._database.execute(
            "SELECT digest, reason FROM upload WHERE round = ? AND phase = ? AND device = ?",
            (offer.round, offer.phase, device),
        ).fetchone()
        if row is None:
            return "late", "the round is over"
        if row[0] != offer.blob.digest:
            return "rejected", "another update of this device stands for this round"
        return ("rejected", row[1]) if row[1] else ("applied", "")

    def contradicts(self, device: str, offer: Offer) -> bool:
        """Say whether a device offers another update where one of it was judged already."""
        query = "SELECT 1 FROM upload WHERE round = ? AND phase = ? AND device = ? AND digest != ?"
        where = (offer.round, offer.phase, device, offer.blob.digest)
        return self._database.execute(query, where).fetchone() is not None

    def payloads(self, round_: int) -> Iterator[tuple[str, bytes]]:
        """Go through the accepted updates of the open round, one at a time."""
        query = "SELECT device, payload FROM upload WHERE round = ? AND phase = 'train' AND reason = '' ORDER BY device"
        yield from self._database.execute(query, (round_,))

    def payloads_since(self) -> Iterator[tuple[str, bytes]]:
        """Go through the accepted updates of an asynchronous run since its last checkpoint, in their order."""
        query = "SELECT device, payload FROM upload WHERE phase = 'train' AND payload IS NOT NULL ORDER BY number"
        yield from self._database.execute(query)

    def rejections(self, round_: int, phase: str) -> dict[str, str]:
        """List the devices whose update of a round was thrown out, with the reason."""
        query = "SELECT device, reason FROM upload WHERE round = ? AND phase = ? AND reason != ''"
        return dict(self._database.execute(query, (round_, phase)))

    def rejected(self) -> list[Rejected]:
        """List all updates that were thrown out, in the order in which they came."""
        query = "SELECT round, device, reason FROM upload WHERE reason != '' ORDER BY number, device"
        return [Rejected(*row) for row in self._database.execute(query)]

    def close_round(self, progress: Progress, checkpoint: bytes, following: Progress) -> None:
        """End a round: the checkpoint first, then the row that names it, in one transaction with what follows."""
        if progress.phase == "train":
            self._write_checkpoint(following.round, checkpoint)
        with self._transaction():
            where = (progress.round, progress.phase)
            digest = hashlib.sha256(checkpoint).hexdigest()
            self._database.execute(
                "UPDATE round SET closed = 1, checkpoint = ? WHERE round = ? AND phase = ?", (digest, *where)
            )
            self._database.execute("UPDATE upload SET payload = NULL WHERE round = ? AND phase = ?", where)
            self._stand(following)
        if progress.phase == "train":
            self._drop_checkpoints(following.round)

    def close_versions(self, checkpoint: bytes, following: Progress) -> None:
        """Make the state after the updates of an asynchronous run so far durable; they need not be absorbed again."""
        self._write_checkpoint(following.round, checkpoint)
        with self._transaction():
            row = (following.round - 1, hashlib.sha256(checkpoint).hexdigest())
            self._database.execute("INSERT INTO round VALUES (?, 'train', '[]', 1, ?)", row)
            self._database.execute("UPDATE upload SET payload = NULL WHERE phase = 'train'")
            if following.phase != "train":
                self._stand(following)
        self._drop_checkpoints(following.round)

    def _stand(self, progress: Progress) -> None:
        finished = "yes" if progress.finished else "no"
        facts = {"round": str(progress.round), "phase": progress.phase, "finished": finished}
        self._database.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", facts.items())

    def checkpoint(self) -> bytes | None:
        """Read the server half's state at the start of the open round; None before the first has closed.

        Raises:
            RunError: the file is lost or damaged.
        """
        row = self._database.execute(
            "SELECT round, checkpoint FROM round WHERE closed AND phase = 'train' ORDER BY round DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        data = self._read_checkpoint(row[0] + 1)
        if hashlib.sha256(data).hexdigest() != row[1]:
            raise RunError(f"{self.folder}: the checkpoint of round {row[0] + 1} is lost or damaged; restore a backup")
        return data

    def _checkpoint_path(self, round_: int) -> Path:
        return self.folder / f"checkpoint-{round_:06d}"

    def _write_checkpoint(self, round_: int, data: bytes) -> None:
        try:
            write_atomic(self._checkpoint_path(round_), data, self._durable)
        except DeviceError as error:
            raise RunError(f"{error}, and resume the run") from error

    def _read_checkpoint(self, round_: int) -> bytes:
        path = self._checkpoint_path(round_)
        return path.read_bytes() if path.exists() else b""

    def _drop_checkpoints(self, but: int) -> None:
        for path in self.folder.glob("checkpoint-*"):
            if path != self._checkpoint_path(but):
                path.unlink()

    def accepted(self) -> list[Accepted]:
        """List all updates that count, with their figures."""
        query = (
            "SELECT round, phase, device, number, metrics FROM upload WHERE reason = '' ORDER BY number, phase, device"
        )
        rows = self._database.execute(query)
        return [Accepted(r, phase, device, number, json.loads(m)) for r, phase, device, number, m in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database:
                yield
        except sqlite3.Error as error:
            raise RunError(
                f"{self.folder}: the journal cannot be written: {error}; mend it and resume the run"
            ) from error


class _Memories(MutableMapping[str, bytes]):
    """What the server half remembers of each device: rows of the table `device`, none of them kept in memory.

    A write becomes durable with the update that caused it (`Journal.accept`).
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __getitem__(self, device: str) -> bytes:
        row = self._database.execute("SELECT memory FROM device WHERE id = ?", (device,)).fetchone()
        if row is None or row[0] is None:
            raise KeyError(device)
        return bytes(row[0])

    def __setitem__(self, device: str, value: bytes) -> None:
        self._database.execute("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))
        self._database.execute("UPDATE device SET memory = ? WHERE id = ?", (value, device))

    def __delitem__(self, device: str) -> None:
        self._database.execute("UPDATE device SET memory = NULL WHERE id = ?", (device,))

    def __iter__(self) -> Iterator[str]:
        return iter([row[0] for row in self._database.execute("SELECT id FROM device WHERE memory IS NOT NULL")])

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM device WHERE memory IS NOT NULL").fetchone()[0])


def _lock(folder: Path) -> IO[bytes]:
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"{folder}: another coordinator has this run open; stop it first") from error
    return file
