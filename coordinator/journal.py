"""What the coordinator must not forget: one SQLite file per run, and files beside it.

`database.py` is the file, `device_table.py` what it holds of each device, `archive.py` the updates of long ago, and
`run_files.py` what lies beside it. Here is how they go together.

The order is: update journalled, then acknowledged; checkpoint file written, then the row that names it. After a crash
the run goes on from the last checkpoint and the updates that the journal holds since then: those of the open round, or
of an asynchronous run those judged after the checkpoint, in their order. Older ones keep digest and figures only,
unless the run keeps updates (`[run] keep-updates`, for `run replay`).
"""

import contextlib
import hashlib
import json
import typing
from collections.abc import Iterator, MutableMapping, Set
from pathlib import Path
from typing import NamedTuple

from edge_runtime.coordinator import archive
from edge_runtime.coordinator.actions import Progress
from edge_runtime.coordinator.database import Database
from edge_runtime.coordinator.device_table import DeviceTable
from edge_runtime.coordinator.run_files import RunFiles
from edge_runtime.errors import DecodeError, RunError
from edge_runtime.message import Blob, Chunk, Offer, Task, decode, encode


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
            RunError: the journal is damaged.
        """
        with contextlib.ExitStack() as opened:
            files = opened.enter_context(contextlib.closing(RunFiles(folder, durable)))
            database = opened.enter_context(contextlib.closing(Database(folder / "journal.sqlite", durable)))
            self._take(folder, files, database)
            self._drop_orphans()
            opened.pop_all()

    def _take(self, folder: Path, files: RunFiles, database: Database) -> None:
        self.folder, self.files, self._database = folder, files, database
        self.devices = DeviceTable(database)
        self.keep_updates = False
        """Whether updates stay in the journal after their round."""

    def _drop_orphans(self) -> None:
        named = {row[0] for row in self._database.rows("SELECT down FROM assignment")}
        for digest in self.files.downs():
            if digest not in named:
                self.files.drop_down(digest)

    @property
    def memories(self) -> MutableMapping[str, bytes]:
        """Give what the server half remembers of each device."""
        return self.devices.memories

    def close(self) -> None:
        """Let another coordinator have the run."""
        self._database.close()
        self.files.close()

    def rollback(self) -> None:
        """Take back what was written since the last transaction."""
        self._database.rollback()

    def get(self, key: str) -> str | None:
        """Read one fact about the run."""
        row = self._database.row("SELECT value FROM run WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Make one fact about the run durable."""
        with self._database.transaction():
            self._database.write("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, value))

    def next_epoch(self, now_s: int = 0) -> int:
        """Count this start of the coordinator, durably, and number it above all before it.

        Args:
            now_s: Unix time. By it a start from a backup comes after those that the backup knows nothing of; if the
                clock is wrong, or not known (0), after those that it knows.
        """
        epoch, starts = max(int(self.get("epoch") or 0) + 1, now_s), int(self.get("starts") or 0) + 1
        with self._database.transaction():
            for fact in (("epoch", str(epoch)), ("starts", str(starts))):
                self._database.write("INSERT OR REPLACE INTO run VALUES (?, ?)", fact)
        return epoch

    def progress(self, asynchronous: bool = False) -> Progress:
        """Say where the run stands."""
        progress = Progress(known=self.devices.known())
        progress.round = int(self.get("round") or 0)
        progress.phase = self.get("phase") or "train"
        progress.finished = self.get("finished") == "yes"
        if asynchronous and progress.phase == "train":
            return self._versions(progress)
        where = (progress.round, progress.phase)
        row = self._database.row("SELECT cohort FROM round WHERE round = ? AND phase = ? AND NOT closed", where)
        if row:
            progress.cohort = tuple(json.loads(row[0]))
            query = "SELECT device, digest FROM upload WHERE round = ? AND phase = ? AND reason = ''"
            progress.accepted = dict(self._database.rows(query, where))
        return progress

    def _versions(self, progress: Progress) -> Progress:
        query = "SELECT COUNT(*), COUNT(*) FILTER (WHERE reason = '') FROM upload WHERE phase = 'train'"
        old, now = archive.counts(self._database), self._database.row(query)
        progress.round, progress.applied = old[0] + now[0], old[1] + now[1]
        progress.judged = dict(self._database.rows("SELECT device, round FROM archived"))
        query = "SELECT device, MAX(round) FROM upload WHERE phase = 'train' GROUP BY device"
        progress.judged |= dict(self._database.rows(query))
        progress.issued = dict(self._database.rows("SELECT device, round FROM assignment"))
        return progress

    def open_round(self, round_: int, phase: str, cohort: tuple[str, ...]) -> None:
        """Make an assignment durable."""
        with self._database.transaction():
            row = (round_, phase, json.dumps(cohort))
            self._database.write("INSERT OR REPLACE INTO round (round, phase, cohort) VALUES (?, ?, ?)", row)

    def assign(self, device: str, task: Task, down: bytes) -> None:
        """Make a task of an asynchronous run durable, and the encoded Down that it names."""
        before = self._down_of(device)
        self.files.write_down(task.down.digest, down)
        with self._database.transaction():
            row = (device, task.round, encode(task), task.down.digest)
            self._database.write("INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?)", row)
        self._drop_down(before)

    def assigned(self, device: str) -> Task | None:
        """Read the open task of a device.

        None: it has none, the Down that it names is gone, or another version of this program wrote it.
        """
        row = self._database.row("SELECT task, down FROM assignment WHERE device = ?", (device,))
        if not row or not row[1] or self.down(row[1]) is None:
            return None
        with contextlib.suppress(DecodeError):
            return typing.cast(Task, decode(row[0]))
        return None

    def _down_of(self, device: str) -> str:
        row = self._database.row("SELECT down FROM assignment WHERE device = ?", (device,))
        return str(row[0]) if row else ""

    def down(self, digest: str) -> bytes | None:
        """Read the encoded Down of an open task."""
        return self.files.down(digest)

    def _drop_down(self, digest: str) -> None:
        """Drop a Down that no open task names."""
        if digest and self._database.row("SELECT 1 FROM assignment WHERE down = ?", (digest,)) is None:
            self.files.drop_down(digest)

    def partial(self, device: str, blob: Blob) -> Set[int]:
        """List the chunks of an incoming update that were kept and are good; those of another one are dropped."""
        return self.files.partial(device, blob)

    def keep(self, device: str, offer: Offer, chunk: Chunk) -> None:
        """Put a chunk of an incoming update aside."""
        self.files.keep(device, offer.blob, chunk)

    def take(self, device: str, blob: Blob) -> bytes | None:
        """Read the incoming update of a device; None if its bytes do not have its digest: what is bad is not kept."""
        return self.files.take(device, blob)

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

    def reject(self, device: str, offer: Offer, reason: str, number: int) -> None:
        """Journal an update that was thrown out, and take back what absorbing it may have written."""
        self._database.rollback()
        self._judge(device, offer, number, None, reason)

    def _judge(
        self, device: str, offer: Offer, number: int, payload: bytes | None, reason: str, held: str = ""
    ) -> None:
        row = (offer.round, offer.phase, device, number, offer.blob.digest, payload, json.dumps(offer.metrics), reason)
        done = self._down_of(device)
        with self._database.transaction():
            self._database.write("INSERT INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            if offer.phase == "train":
                if not reason:
                    now = (offer.blob.digest, held, device)
                    self._database.write("UPDATE device SET base = ?, held = ? WHERE id = ?", now)
                where = (device, offer.round)
                self._database.write("UPDATE assignment SET down = '' WHERE device = ? AND round <= ?", where)
        self._drop_down(done)
        self.files.drop(device)

    def fate(self, device: str, offer: Offer) -> tuple[str, str]:
        """Say what became of an offer, and why: `applied`, `rejected` or `late`."""
        row = self._database.row(
            "SELECT digest, reason FROM upload WHERE round = ? AND phase = ? AND device = ?",
            (offer.round, offer.phase, device),
        )
        if row is None:
            packed = offer.phase == "train" and offer.round <= archive.newest(self._database, device)
            counts = packed and self.devices.base(device) == offer.blob.digest
            return ("applied", "") if counts else ("late", "the round is over")
        if row[0] != offer.blob.digest:
            return "rejected", "another update of this device stands for this round"
        return ("rejected", row[1]) if row[1] else ("applied", "")

    def contradicts(self, device: str, offer: Offer) -> bool:
        """Say whether a device offers another update where one of it was judged already."""
        query = "SELECT 1 FROM upload WHERE round = ? AND phase = ? AND device = ? AND digest != ?"
        where = (offer.round, offer.phase, device, offer.blob.digest)
        return self._database.row(query, where) is not None

    def payloads(self, round_: int) -> Iterator[tuple[str, bytes]]:
        """Go through the accepted updates of a round, one at a time."""
        where = "round = ? AND phase = 'train' AND reason = '' ORDER BY device"
        yield from ((device, payload) for _, device, payload in self._payloads(where, (round_,)))

    def payloads_since(self) -> Iterator[tuple[str, bytes]]:
        """Go through the accepted updates of an asynchronous run since its last checkpoint, in their order."""
        (last,) = self._database.row("SELECT MAX(round) FROM round WHERE closed AND phase = 'train'")
        where = "number > ? AND phase = 'train' AND reason = '' ORDER BY number"
        rows = self._payloads(where, (-1 if last is None else last,))
        yield from ((device, payload) for _, device, payload in rows)

    def payloads_in_order(self) -> Iterator[tuple[int, str, bytes]]:
        """Go through all accepted updates of an asynchronous run in their order: number, device, payload."""
        yield from self._payloads("phase = 'train' AND reason = '' ORDER BY number", ())

    def _payloads(self, where: str, values: tuple[int, ...]) -> Iterator[tuple[int, str, bytes]]:
        query = f"SELECT number, device, digest, payload FROM upload WHERE {where}"  # noqa: S608  # of our own
        for number, device, digest, payload in self._database.stream(query, values):
            if payload is None or hashlib.sha256(payload).hexdigest() != digest:
                what = "was not kept" if payload is None else "is damaged"
                raise RunError(f"{self.folder}: update {number} of {device} {what}; restore a backup of the folder")
            yield number, device, payload

    def rejections(self, round_: int, phase: str) -> dict[str, str]:
        """List the devices whose update of a round was thrown out, with the reason."""
        query = "SELECT device, reason FROM upload WHERE round = ? AND phase = ? AND reason != ''"
        return dict(self._database.rows(query, (round_, phase)))

    def close_round(self, progress: Progress, checkpoint: bytes, following: Progress) -> None:
        """End a round: the checkpoint first, then the row that names it, in one transaction with what follows."""
        if progress.phase == "train":
            self.files.write_checkpoint(following.round, checkpoint)
        with self._database.transaction():
            where = (progress.round, progress.phase)
            digest = hashlib.sha256(checkpoint).hexdigest()
            self._database.write(
                "UPDATE round SET closed = 1, checkpoint = ? WHERE round = ? AND phase = ?", (digest, *where)
            )
            if not self.keep_updates:
                self._database.write("UPDATE upload SET payload = NULL WHERE round = ? AND phase = ?", where)
                archive.pack(self._database, following.round, 1)
            self._stand(following)
        if progress.phase == "train":
            self.files.drop_checkpoints(following.round)
        if following.finished:
            self.files.clear()

    def close_versions(self, checkpoint: bytes, following: Progress) -> None:
        """Make the state after the updates of an asynchronous run so far durable; they need not be absorbed again."""
        self.files.write_checkpoint(following.round, checkpoint)
        with self._database.transaction():
            row = (following.round - 1, hashlib.sha256(checkpoint).hexdigest())
            self._database.write("INSERT INTO round VALUES (?, 'train', '[]', 1, ?)", row)
            if not self.keep_updates:
                self._database.write("UPDATE upload SET payload = NULL WHERE phase = 'train' AND payload IS NOT NULL")
                archive.pack(self._database, following.round, max(1, self.devices.count()))
            if following.phase != "train":
                self._stand(following)
        self.files.drop_checkpoints(following.round)
        if following.finished:
            self.files.clear()

    def _stand(self, progress: Progress) -> None:
        finished = "yes" if progress.finished else "no"
        facts = {"round": str(progress.round), "phase": progress.phase, "finished": finished}
        for fact in facts.items():
            self._database.write("INSERT OR REPLACE INTO run VALUES (?, ?)", fact)

    def checkpoint(self) -> bytes | None:
        """Read the server half's state at the start of the open round; None before the first has closed.

        Raises:
            RunError: the file and its copy are lost or damaged.
        """
        row = self._database.row(
            "SELECT round, checkpoint FROM round WHERE closed AND phase = 'train' ORDER BY round DESC LIMIT 1"
        )
        return None if row is None else self.files.checkpoint(row[0] + 1, row[1])

    def checkpoints(self) -> dict[int, str]:
        """Give the digest of the state after every training round that was closed, by the round's number.

        Of an asynchronous run: by the number of the last update before the checkpoint.
        """
        query = "SELECT round, checkpoint FROM round WHERE closed AND phase = 'train' ORDER BY round"
        return dict(self._database.rows(query))

    def accepted(self) -> list[Accepted]:
        """List all updates that count, with their figures."""
        return [Accepted(*one[:5]) for one in archive.judged(self._database) if not one.reason]

    def rejected(self) -> list[Rejected]:
        """List all updates that were thrown out, in the order in which they came."""
        return [Rejected(one.round, one.device, one.reason) for one in archive.judged(self._database) if one.reason]
