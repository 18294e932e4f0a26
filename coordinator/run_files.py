"""The files of a run beside its database.

    RUN/lock                held while a coordinator has the run, and who that is
    RUN/reserve             room that is given back when the disk is full, so that what was begun can be ended
    RUN/checkpoint-NNNNNN   the server half's state at the start of round NNNNNN, and the same once more as .copy
    RUN/spool/DEVICE        an update on its way in, one per device (`spool.py`); a restart goes on with what it holds
    RUN/down/DIGEST         asynchronous runs: the encoded Down of an open task
    RUN/personal/DEVICE.bin personal models that devices handed over (`[run] collect`)
    RUN/profiles/DEVICE.json  what devices say they are, and what training takes there (`profiles.py`)
    RUN/grids/NAME          shared models of earlier rounds as devices hold them (`downlink.py`)
    RUN/seeds               the seed set that the run's devices are given

Checkpoints lie there twice because the journal can do without anything else of the folder, but not without these.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO

from edge_runtime import spool
from edge_runtime.errors import ConfigError, DeviceError, RunError
from edge_runtime.files import locked, set_aside, write_atomic
from edge_runtime.message import Blob, Chunk

log = logging.getLogger(__name__)

_MOST_GRIDS = 64
_PARTS = ("spool", "down", "grids")
RESERVE_BYTES = 1 << 20
_TRIES = 3
_MOST_PROFILES = 16


class RunFiles:
    """What lies in a run's folder beside the database."""

    def __init__(self, folder: Path, durable: bool = True) -> None:
        """Open or make the folder, and clear up what a crash left half-written.

        Raises:
            ConfigError: another coordinator has it.
            DeviceError: it cannot be written.
        """
        self.folder, self._durable = folder, durable
        self._reserved = RESERVE_BYTES
        self._profiles: Counter[str] = Counter()
        try:
            for part in _PARTS:
                (folder / part).mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            for place in (folder, folder / "personal", folder / "profiles", *(folder / part for part in _PARTS)):
                for path in place.glob(".*.tmp"):
                    path.unlink()
        except OSError as error:
            raise DeviceError(f"{folder}: the run's folder cannot be written: {error}; free some space") from error

    def close(self) -> None:
        """Let another coordinator have the run."""
        self._lock.close()

    def reserve(self, size_bytes: int) -> None:
        """Keep at least so much of the disk for what must be ended once it is full.

        Raises:
            DeviceError: there is not twice that.
        """
        self._reserved = max(RESERVE_BYTES, size_bytes)
        self.refill()

    def refill(self) -> None:
        """Make the reserve again if it was given back.

        Raises:
            DeviceError: the disk has no room for it.
        """
        if not self._durable:
            return
        path = self.folder / "reserve"
        with _told(path):
            if not path.exists() or path.stat().st_size != self._reserved:
                self._check_room(2 * self._reserved)
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, self._reserved)
        self.check_room()

    def release(self) -> bool:
        """Give the reserve back; say whether there was one."""
        path = self.folder / "reserve"
        there = path.exists() and path.stat().st_size > 0
        path.unlink(missing_ok=True)
        return there

    def check_room(self) -> None:
        """See whether the disk has room for more.

        Raises:
            DeviceError: it has less than the reserve, which is left for what was begun.
        """
        if self._durable:
            self._check_room(self._reserved)

    def _check_room(self, needed: int) -> None:
        found = os.statvfs(self.folder)
        free = found.f_bavail * found.f_frsize
        if free < needed:
            few, enough = -(-free // 1000), -(-needed // 1000)
            raise DeviceError(f"{self.folder}: the disk has {few} kB left, and {enough} are needed; free some space")

    def checkpoint(self, round_: int, digest: str) -> bytes:
        """Read a checkpoint; where the first of the two is damaged, the second, which then stands for both.

        Raises:
            RunError: neither is good.
        """
        path = self._checkpoint_path(round_)
        copy = path.with_suffix(".copy")
        for place in (path, copy):
            data = place.read_bytes() if place.exists() else b""
            if hashlib.sha256(data).hexdigest() != digest:
                continue
            if place is copy:
                log.warning("%s: lost or damaged: its copy stands for it", path)
                set_aside(path)
                write_atomic(path, data, self._durable)
            return data
        raise RunError(f"{path}: this checkpoint and its copy are lost or damaged; restore a backup of the folder")

    def write_checkpoint(self, round_: int, data: bytes) -> None:
        """Make a checkpoint durable."""
        path = self._checkpoint_path(round_)
        write_atomic(path, data, self._durable)
        if self._durable:
            write_atomic(path.with_suffix(".copy"), data)

    def drop_checkpoints(self, but: int) -> None:
        """Drop all checkpoints but one."""
        kept = self._checkpoint_path(but).name
        for path in self.folder.glob("checkpoint-*"):
            if path.name.removesuffix(".copy") != kept and ".corrupt-" not in path.name:
                path.unlink(missing_ok=True)

    def _checkpoint_path(self, round_: int) -> Path:
        return self.folder / f"checkpoint-{round_:06d}"

    def down(self, digest: str) -> bytes | None:
        """Read an encoded Down; None: it is gone."""
        path = self.folder / "down" / digest
        data = path.read_bytes() if path.exists() else b""
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def write_down(self, digest: str, data: bytes) -> None:
        """Make an encoded Down durable."""
        if self.down(digest) is None:
            write_atomic(self.folder / "down" / digest, data, self._durable)

    def drop_down(self, digest: str) -> None:
        """Drop an encoded Down."""
        (self.folder / "down" / digest).unlink(missing_ok=True)

    def downs(self) -> list[str]:
        """List the digests of the encoded Downs."""
        return [path.name for path in (self.folder / "down").iterdir()]

    def keep_grid(self, name: str, data: bytes) -> None:
        """Make a grid durable; of many the oldest go."""
        folder = self.folder / "grids"
        write_atomic(folder / name, hashlib.sha256(data).digest() + data, self._durable)
        for path in sorted(folder.iterdir())[:-_MOST_GRIDS]:
            path.unlink(missing_ok=True)

    def grid(self, name: str) -> bytes | None:
        """Read a grid; None if it is gone or damaged."""
        path = self.folder / "grids" / name
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]
        if data:
            log.warning("%s: damaged: who holds it is told as if it were new", path)
        return None

    def partial(self, device: str, blob: Blob) -> Set[int]:
        """List the chunks of an incoming update that were kept and are good; those of another one are dropped."""
        return spool.kept(self.folder / "spool" / device, blob)

    def keep(self, device: str, blob: Blob, chunk: Chunk) -> None:
        """Put a chunk of an incoming update aside."""
        path = self.folder / "spool" / device
        with _told(path):
            spool.keep(path, blob, chunk)

    def take(self, device: str, blob: Blob) -> bytes | None:
        """Read the incoming update of a device; None if its bytes do not have its digest: what is bad is not kept."""
        return spool.join(self.folder / "spool" / device, blob)

    def drop(self, device: str) -> None:
        """Drop the incoming update of a device: it was judged."""
        (self.folder / "spool" / device).unlink(missing_ok=True)

    def clear(self) -> None:
        """Drop what only a run that goes on needs."""
        for part in ("spool", "down"):
            for path in (self.folder / part).iterdir():
                path.unlink(missing_ok=True)

    def keep_personal(self, device: str, data: bytes) -> None:
        """Make the personal model of a device durable."""
        with _told(self.folder / "personal"):
            (self.folder / "personal").mkdir(exist_ok=True)
        write_atomic(self.folder / "personal" / f"{device}.bin", data, self._durable)

    def keep_profile(self, device: str, data: bytes) -> None:
        """Make durable what a device says it is; one that changes its mind too often since the start is not heard."""
        path = self.folder / "profiles" / f"{device}.json"
        if self._profiles[device] >= _MOST_PROFILES or (path.exists() and path.read_bytes() == data):
            return
        self._profiles[device] += 1
        with _told(path):
            path.parent.mkdir(exist_ok=True)
        write_atomic(path, data, self._durable)

    def keep_seeds(self, data: bytes) -> None:
        """Make the encoded seed set durable."""
        write_atomic(self.folder / "seeds", data, self._durable)


def holder(folder: Path) -> tuple[int, str] | None:
    """Say which process on which host has a run's folder; None: nobody has. An unknown process is 0."""
    text = locked(folder / "lock")
    return None if text is None else _who(text)


def _who(text: bytes) -> tuple[int, str]:
    try:
        found = json.loads(text)
        return int(found["pid"]), str(found["host"])
    except (ValueError, KeyError, TypeError):
        return 0, "an unknown host"


def _lock(folder: Path) -> IO[bytes]:
    file = (folder / "lock").open("r+b" if (folder / "lock").exists() else "w+b")
    for tries in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if tries < _TRIES - 1:
                time.sleep(0.05)  # `holder` takes it for a moment
                continue
            pid, host = _who(file.read(4096))
            file.close()
            raise ConfigError(
                f"{folder}: another coordinator, process {pid} on {host}, has this run open; stop it first "
                "(edge-coordinator run stop)"
            ) from error
    with contextlib.suppress(OSError):  # who it is helps others; the lock itself holds on a full disk too
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        file.flush()
    return file


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written: {error.strerror}; free some space") from error
