"""The journal's SQLite file: one writer, and whatever was damaged since is noticed.

WAL and synchronous FULL: a transaction that was committed survives a power cut. Beside it two things see to it that
nothing else is taken for it:

* a sum over all rows, kept up by triggers in the same transaction. At the start it is made anew: a bit that has
  changed in a row, or a row that is gone, does not fit it. Payloads stand in it by their digest.
* the file `seal`: how many transactions were committed, written after each of them. SQLite takes a torn or cut WAL for
  one that ends there; a journal with fewer transactions than its seal has lost some that were acknowledged.

    seal: two places of 512 bytes, taken in turns: "ECSL", u64 transactions, u32 CRC-32 of these 12 bytes
"""

import contextlib
import hashlib
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edge_runtime.errors import DeviceError, RunError

SCHEMA = """
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
CREATE TABLE IF NOT EXISTS archive (
    first INTEGER PRIMARY KEY, data BLOB NOT NULL, judged INTEGER NOT NULL, applied INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archived (
    device TEXT PRIMARY KEY, round INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY, sum INTEGER NOT NULL, commits INTEGER NOT NULL);
"""

_SUMMED = ("run", "device", "round", "upload", "choice", "unfit", "part", "assignment", "archive", "archived")
_MOD = 1 << 62
_NONE = -1
"""Stands where no sum is kept: of a journal that began as one that is not durable."""
_WAL_BYTES = 16 << 20
_OF_THE_DISK = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
)
_SEAL = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")
_PLACE = 512


class Database:
    """A connection, its transactions, and the sum over its rows. `":memory:"` works too, without a seal."""

    def __init__(self, path: Path | str, durable: bool = True) -> None:
        """Open or make the file; one that is not durable does not wait for the disk.

        Raises:
            DeviceError: it cannot be read or written.
            RunError: it is damaged.
        """
        self.path = path
        self._fingerprints = _Fingerprints()
        self._seal = Path(path).with_name("seal") if durable and isinstance(path, Path) else None
        with self._said():
            self.connection = sqlite3.connect(path, check_same_thread=False)
            try:
                self._open("FULL" if durable else "OFF")
            except BaseException:
                self.connection.close()
                raise

    def _open(self, level: str) -> None:
        connection = self.connection
        connection.create_function("fingerprint", -1, self._fingerprints, deterministic=True)
        connection.executescript(
            f"PRAGMA journal_mode=WAL; PRAGMA synchronous={level}; PRAGMA recursive_triggers=ON;"
            f"PRAGMA journal_size_limit={_WAL_BYTES};"
        )
        found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise RunError(_damaged(self.path, found[0]))
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")  # who looks in meanwhile sees no table, or all
        if level != "FULL" and self._known() is None:
            with connection:
                connection.execute("INSERT INTO total VALUES (1, ?, 0)", (_NONE,))
        self._check()
        if self._known()[0] != _NONE:
            for table in _SUMMED:
                connection.executescript(self._triggers(table))

    def _known(self) -> Any:
        return self.connection.execute("SELECT sum, commits FROM total").fetchone()

    def _check(self) -> None:
        """See whether these are the rows, and all the transactions, that were committed."""
        known = self._known()
        if known is not None and known[0] == _NONE:
            return
        sum_ = _sum(self.connection)
        if known is None:  # new, or from before there were sums
            with self.connection:
                self.connection.execute("INSERT INTO total VALUES (1, ?, 0)", (sum_,))
            known = sum_, 0
        _compare(self.path, known, sum_, _sealed(self._seal) if self._seal else 0)

    def _triggers(self, table: str) -> str:
        new, old = (f"fingerprint({_columns(self.connection, table, prefix)})" for prefix in ("NEW.", "OLD."))
        changes = {"INSERT": new, "DELETE": f"{_MOD} - {old}", "UPDATE": f"({new} + {_MOD} - {old}) % {_MOD}"}
        return "".join(
            f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN "  # noqa: S608
            f"UPDATE total SET sum = (sum + {change}) % {_MOD}; END;"
            for event, change in changes.items()
        )

    def close(self) -> None:
        """Close the file; what is not committed is rolled back."""
        self.connection.close()

    def rollback(self) -> None:
        """Take back what is not committed."""
        with self._said():
            self.connection.rollback()

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """Read all rows of a query."""
        with self._said():
            return self.connection.execute(query, tuple(values)).fetchall()

    def row(self, query: str, values: Iterable[Any] = ()) -> Any:
        """Read the first row of a query; None: there is none."""
        with self._said():
            return self.connection.execute(query, tuple(values)).fetchone()

    def stream(self, query: str, values: Iterable[Any] = ()) -> Iterator[Any]:
        """Go through the rows of a query, one at a time."""
        with self._said():
            yield from self.connection.execute(query, tuple(values))

    def write(self, statement: str, values: Iterable[Any] = ()) -> None:
        """Change rows, in the transaction that is open or comes next."""
        with self._said():
            self.connection.execute(statement, tuple(values))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is written inside, and what was written before and is not committed; all of it or nothing."""
        with self._said():
            with self.connection:
                yield
                self.connection.execute("UPDATE total SET commits = commits + 1")
            if self._seal:
                (commits,) = self.connection.execute("SELECT commits FROM total").fetchone()
                _write_seal(self._seal, commits)

    def _said(self) -> contextlib.AbstractContextManager[None]:
        return _said(self.path, self._fingerprints)


class _Fingerprints:
    """What SQLite calls for a row; of what is raised in it SQLite would only say that something was."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None

    def __call__(self, *values: object) -> int:
        try:
            return fingerprint(*values)
        except BaseException as error:  # Ctrl-C, as a rule
            self.raised = error
            raise


@contextlib.contextmanager
def _said(path: Path | str, fingerprints: _Fingerprints) -> Iterator[None]:
    """Say in one line what SQLite or the disk refuses."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise RunError(f"{path}: refuses to count something twice: {error}") from error
    except (sqlite3.DatabaseError, OSError) as error:
        if fingerprints.raised is not None:
            raised, fingerprints.raised = fingerprints.raised, None
            raise raised from error
        if isinstance(error, OSError) or error.sqlite_errorcode & 0xFF in _OF_THE_DISK:
            raise DeviceError(f"{path}: cannot be read or written: {error}; free some space") from error
        raise RunError(_damaged(path, str(error))) from error


def examine(path: Path) -> None:
    """Look at a journal, which a coordinator may be writing, and change nothing.

    Raises:
        DeviceError: it cannot be read.
        RunError: it is damaged.
    """
    sealed = _sealed(path.with_name("seal"))  # before the rows: a commit comes before its seal
    fingerprints = _Fingerprints()
    with _said(path, fingerprints), contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.isolation_level = None
        connection.create_function("fingerprint", -1, fingerprints, deterministic=True)
        connection.execute("BEGIN")
        found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise RunError(_damaged(path, found[0]))
        known = connection.execute("SELECT sum, commits FROM total").fetchone()
        if known is not None and known[0] != _NONE:
            _compare(path, known, _sum(connection), sealed)


def _compare(path: Path | str, known: tuple[int, int], sum_: int, sealed: int) -> None:
    if known[0] != sum_:
        raise RunError(_damaged(path, "its rows do not fit their sum"))
    if known[1] < sealed:
        raise RunError(_damaged(path, f"the last {sealed - known[1]} of {sealed} transactions are gone"))


def _sum(connection: sqlite3.Connection) -> int:
    """Add up the fingerprints of all rows."""
    total = 0
    for table in _SUMMED:
        query = f"SELECT fingerprint({_columns(connection, table, '')}) FROM {table}"  # noqa: S608  # names of our own
        total += sum(row[0] for row in connection.execute(query))
    return total % _MOD


def _columns(connection: sqlite3.Connection, table: str, prefix: str) -> str:
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    terms = [f"{prefix}{name} IS NULL" if name == "payload" else f"{prefix}{name}" for name in names]
    return ", ".join([f"'{table}'", *terms])


def fingerprint(*values: object) -> int:
    """Make a number below 2^62 of a row."""
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        found.update(b"%d:" % len(data) + data)
    return int.from_bytes(found.digest(), "little") % _MOD


def _damaged(path: Path | str, what: str) -> str:
    what = " ".join(what.split())
    return f"{path}: the journal is damaged: {what}; restore a backup of its folder, or begin in another one"


def _sealed(path: Path) -> int:
    """Read how many transactions were committed at least."""
    data = path.read_bytes() if path.exists() else b""
    return max((_read_seal(data[start : start + _SEAL.size + _CRC.size]) for start in (0, _PLACE)), default=0)


def _read_seal(data: bytes) -> int:
    if len(data) < _SEAL.size + _CRC.size or _CRC.unpack(data[_SEAL.size :])[0] != zlib.crc32(data[: _SEAL.size]):
        return 0
    magic, commits = _SEAL.unpack(data[: _SEAL.size])
    return int(commits) if magic == b"ECSL" else 0


def _write_seal(path: Path, commits: int) -> None:
    head = _SEAL.pack(b"ECSL", commits)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not os.fstat(file).st_size:
            os.pwrite(file, bytes(2 * _PLACE), 0)
        os.pwrite(file, head + _CRC.pack(zlib.crc32(head)), _PLACE * (commits % 2))
        os.fdatasync(file)
    finally:
        os.close(file)
