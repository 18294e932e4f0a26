"""Updates of long ago, many in one row: what the report wants of them, and no more.

After some rounds nobody asks for the fate of an update but the device whose newest it is, and that is known by its
digest (`device.base`). So the rows of older ones are packed together, column by column, with figures of seven digits:
a report has fewer.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import zstandard

from edge_runtime.coordinator.database import Database

KEPT_ROUNDS = 64
"""Rounds whose updates have a row each; twice that, before they are packed."""
_LEVEL = 9


class Judged(NamedTuple):
    """An update that counts, or (with a reason) was thrown out."""

    round: int
    phase: str
    device: str
    number: int
    """The how-manieth update of an asynchronous run it was, rejected ones counted; else its round."""
    metrics: dict[str, float]
    reason: str


def pack(database: Database, now: int, unit: int) -> None:
    """Pack the rows of updates that are old enough, in the transaction that is open.

    Args:
        database: of the run.
        now: number that the next update will have.
        unit: how many numbers are a round.
    """
    (oldest,) = database.row("SELECT MIN(number) FROM upload")
    if oldest is None or oldest >= now - 2 * KEPT_ROUNDS * unit:
        return
    limit = now - KEPT_ROUNDS * unit
    judged = list(_rows(database, "WHERE number < ?", (limit,)))
    trained = [one for one in judged if one.phase == "train"]
    applied = sum(not one.reason for one in trained)
    database.write("INSERT INTO archive VALUES (?, ?, ?, ?)", (oldest, _encode(judged), len(trained), applied))
    for device, number in {one.device: one.round for one in sorted(trained)}.items():
        database.write("INSERT OR REPLACE INTO archived VALUES (?, ?)", (device, number))
    database.write("DELETE FROM upload WHERE number < ?", (limit,))
    database.write("DELETE FROM round WHERE closed AND round < ?", (limit,))


def judged(database: Database) -> Iterator[Judged]:
    """Go through all updates that were judged, packed or not, in their order."""
    for (data,) in database.rows("SELECT data FROM archive ORDER BY first"):
        yield from unpack(data)
    yield from _rows(database, "", ())


def counts(database: Database) -> tuple[int, int]:
    """Count the training updates that are packed, and those of them that count."""
    judged, applied = database.row("SELECT SUM(judged), SUM(applied) FROM archive")
    return judged or 0, applied or 0


def newest(database: Database, device: str) -> int:
    """Give the number of the newest task of a device whose update is packed; -1: none is."""
    row = database.row("SELECT round FROM archived WHERE device = ?", (device,))
    return -1 if row is None else int(row[0])


def _rows(database: Database, where: str, values: tuple[int, ...]) -> Iterator[Judged]:
    query = f"SELECT round, phase, device, number, metrics, reason FROM upload {where} ORDER BY number, phase, device"  # noqa: S608
    for round_, phase, device, number, metrics, reason in database.rows(query, values):
        yield Judged(round_, phase, device, number, json.loads(metrics), reason)


def _encode(updates: list[Judged]) -> bytes:
    names = sorted({name for one in updates for name in one.metrics})
    columns: dict[str, Any] = {
        field: [getattr(one, field) for one in updates] for field in Judged._fields if field != "metrics"
    }
    columns["metrics"] = {name: [_short(one.metrics.get(name)) for one in updates] for name in names}
    return zstandard.ZstdCompressor(level=_LEVEL).compress(json.dumps(columns, separators=(",", ":")).encode())


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return value
    return int(value) if value == int(value) else float(f"{value:.7g}")


def unpack(data: bytes) -> Iterator[Judged]:
    """Go through the updates of one packed row."""
    columns = json.loads(zstandard.ZstdDecompressor().decompress(data))
    metrics = columns.pop("metrics")
    for place, values in enumerate(zip(*columns.values(), strict=True)):
        row = dict(zip(columns, values, strict=True))
        figures = {name: float(column[place]) for name, column in metrics.items() if column[place] is not None}
        yield Judged(**row, metrics=figures)
