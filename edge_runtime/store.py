"""What a device keeps: its memory, the blobs it holds, and the states that training left.

    STORE/lock              held while an agent runs, and who that is: two agents on one store would ruin it
    STORE/memory.json       the Memory and a SHA-256 over it, written in one piece; memory.copy is the same once more
    STORE/blobs/DIGEST      complete blobs: setup, Down, pending Up
    STORE/states/DIGEST     a SHA-256 and the state that the update DIGEST leaves once it is applied
    STORE/partial/DIGEST    a blob on its way in, at most one (`spool.py`)
    STORE/personal/RUN.bin  the newest personal model (`personal.py`) of each of the last runs; RUN is a digest
    STORE/profile           what this device tells each run of itself (`published.py`)
    STORE/personal/served   the best of them on this device's own data, which `edge-agent infer` serves

What is damaged is set aside (`NAME.corrupt-N`, the newest few), and the memory is made to say what is left: a result
that is lost is made again, and a state that is lost is told to the coordinator, which begins anew with this device.

`MemoryStore` is the same without a disk, for `edge-coordinator simulate` and for simulated crashes.
"""

import fcntl
import hashlib
import json
import logging
import os
import socket
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Protocol

from edge_runtime import published, spool
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.files import set_aside, write_atomic
from edge_runtime.message import Blob, Chunk, Offer, Profile, Task
from edge_runtime.places import personal_path, served_path
from edge_runtime.protocol import Memory, Talk

log = logging.getLogger(__name__)

_KEPT_RUNS = 2


class Store(Protocol):
    """What the agent asks of its disk."""

    def probe(self) -> None:
        """Raise DeviceError if nothing can be written."""
        ...

    def sound(self, task: Task) -> bool:
        """Say whether what a task names is here and good."""
        ...

    def load(self) -> Memory:
        """Read the memory; a blank one at the first start."""
        ...

    def held(self) -> set[str]:
        """List the digests of the complete blobs."""
        ...

    def remember(self, memory: Memory) -> None:
        """Make `memory` durable in one piece, then drop the blobs and states that it does not name."""
        ...

    def partial(self, blob: Blob) -> set[int]:
        """List the chunks of an incoming blob that were kept and are good; drop those of any other."""
        ...

    def keep(self, blob: Blob, chunk: Chunk) -> None:
        """Put a chunk of an incoming blob aside."""
        ...

    def check(self, blob: Blob) -> bool:
        """Make the blob durable if its bytes have its digest; else keep of it only what may be good."""
        ...

    def read(self, digest: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a complete blob, or a part of it."""
        ...

    def state(self, digest: str) -> bytes | None:
        """Read the state that the update `digest` left; None for the empty digest."""
        ...

    def put(self, payload: bytes, state: bytes) -> Blob:
        """Make a result durable: the payload of an update, and the state to be in force once it is applied."""
        ...

    def write(self, data: bytes) -> Blob:
        """Hold a blob for the trainer, until the next `remember`."""
        ...

    def keep_personal(self, run: str, data: bytes, serve: bool) -> None:
        """Make a run's newest personal model durable, and (`serve`) let it be the one that is served."""
        ...

    def profile(self) -> Profile | None:
        """Read what this device tells each run of itself; None: nothing."""
        ...

    def served(self) -> bytes:
        """Read the personal model that is served; empty: there is none yet."""
        ...


def named(memory: Memory) -> tuple[set[str], set[str]]:
    """Say which blobs and which states `memory` names."""
    pending = {memory.pending.blob.digest} if memory.pending else set()
    blobs, states = {memory.setup} | pending, {memory.base} | pending
    if memory.talk is not None:
        said = [offer.blob.digest for offer in memory.talk.said]
        blobs |= {memory.talk.task.setup.digest, memory.talk.task.down.digest, *said}
        states |= {*said[-1:]}
    return blobs, states


def without_result(memory: Memory) -> Memory:
    """Give a memory as it was before its pending result was made, so that the task may be done again."""
    pending = memory.pending
    if pending is None:
        return memory
    return replace(memory, pending=None, round=pending.round - 1 - (pending.phase == "score"))


class FileStore:
    """A Store in a folder."""

    def __init__(self, folder: Path, exclusive: bool = True) -> None:
        """Open or make the folder; a trainer, which only reads, opens its agent's with `exclusive=False`.

        Raises:
            DeviceError: it cannot be made or written.
            ConfigError: another agent uses it.
        """
        self.folder = folder
        self._lock = _lock(folder) if exclusive else None

    def close(self) -> None:
        """Let another agent use the folder."""
        if self._lock:
            self._lock.close()

    def probe(self) -> None:
        """Try whether a file of 64 KiB can be written.

        Raises:
            DeviceError: it cannot.
        """
        path = self.folder / "probe"
        write_atomic(path, bytes(65_536))
        path.unlink()

    def load(self) -> Memory:
        """Read the memory, and make it true of what is here: what is damaged is set aside and reported."""
        memory = self._read_memory()
        kept = self._sound(memory)
        if kept != memory:
            self.remember(kept)
        return kept

    def _read_memory(self) -> Memory:
        """Read the memory, or its copy; with neither, the device starts anew."""
        for path in (self.folder / "memory.json", self.folder / "memory.copy"):
            if not path.exists():
                continue
            try:
                record = json.loads(path.read_bytes())
                if record.pop("sha256") != _digest_of(record):
                    raise ValueError("its checksum does not fit")
                return _memory(record)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                aside = set_aside(path)
                log.warning("%s: damaged (%s): set aside as %s", path, error, aside and aside.name)
        return Memory()

    def _sound(self, memory: Memory) -> Memory:
        """Set aside what is damaged of what the memory names, and give the memory without it."""
        states = [self.folder / "states" / name for name in named(memory)[1] if name]
        blobs = [self.folder / "blobs" / name for name in self.held()]
        damaged = [path for path in states if path.exists() and not _is_state(path)]
        for path in [*damaged, *(path for path in blobs if not _is_blob(path))]:
            aside = set_aside(path)
            log.warning("%s: damaged: set aside as %s", path, aside and aside.name)
        pending = memory.pending
        if pending and pending.phase == "train" and not (self.folder / "states" / pending.blob.digest).exists():
            log.warning("%s: the state that round %d left is lost: it is made again", self.folder, pending.round)
            memory = without_result(memory)
        if memory.base and not (self.folder / "states" / memory.base).exists():
            log.warning("%s: the state of this device is lost: it begins anew", self.folder)
            memory = replace(memory, base="")
        if memory.talk and not self._can_talk(memory.talk):
            log.warning("%s: what this device said to its peers is lost: it begins anew", self.folder)
            memory = replace(memory, talk=None)
        return memory

    def _can_talk(self, talk: Talk) -> bool:
        digests = (talk.task.setup.digest, talk.task.down.digest, *(offer.blob.digest for offer in talk.said))
        states = [offer.blob.digest for offer in talk.said[-1:]]
        return all((self.folder / "blobs" / name).exists() for name in digests) and all(
            (self.folder / "states" / name).exists() for name in states
        )

    def sound(self, task: Task) -> bool:
        """Say whether what a task names is here and good."""
        blobs = [self.folder / "blobs" / blob.digest for blob in (task.setup, task.down)]
        states = [self.folder / "states" / task.base] if task.base else []
        return all(map(_is_blob, blobs)) and all(map(_is_state, states))

    def held(self) -> set[str]:
        """List the digests of the complete blobs."""
        return {path.name for path in (self.folder / "blobs").iterdir() if len(path.name) == 64}

    def remember(self, memory: Memory) -> None:
        """Make `memory` durable in one piece, then drop what it does not name."""
        record = asdict(memory)
        record["sha256"] = _digest_of(record)
        for name in ("memory.json", "memory.copy"):
            write_atomic(self.folder / name, json.dumps(record).encode())
        blobs, states = named(memory)
        for part, names in (("blobs", blobs), ("states", states)):
            for path in (self.folder / part).iterdir():
                if path.name not in names and ".corrupt-" not in path.name:
                    path.unlink(missing_ok=True)

    def partial(self, blob: Blob) -> set[int]:
        """Read which chunks are here."""
        path = self.folder / "partial" / blob.digest
        for other in (self.folder / "partial").iterdir():
            if other != path:
                other.unlink(missing_ok=True)
        return spool.kept(path, blob)

    def keep(self, blob: Blob, chunk: Chunk) -> None:
        """Write a chunk to its place in the partial file."""
        path = self.folder / "partial" / blob.digest
        try:
            spool.keep(path, blob, chunk)
        except OSError as error:
            raise DeviceError(f"{path}: cannot be written: {error.strerror}; free some space") from error

    def check(self, blob: Blob) -> bool:
        """Put the chunks together, and write them among the blobs."""
        path = self.folder / "partial" / blob.digest
        data = spool.join(path, blob)
        if data is None:
            return False
        write_atomic(self.folder / "blobs" / blob.digest, data)
        path.unlink(missing_ok=True)
        return True

    def read(self, digest: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a complete blob, or a part of it, without holding the rest.

        Raises:
            DeviceError: it is lost or cannot be read.
        """
        path = self.folder / "blobs" / digest
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(-1 if end is None else end - start)
        except OSError as error:
            raise DeviceError(f"{path}: cannot be read: {error.strerror}; mend the disk") from error

    def state(self, digest: str) -> bytes | None:
        """Read a state.

        Raises:
            DeviceError: it is damaged or lost.
        """
        if not digest:
            return None
        path = self.folder / "states" / digest
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise DeviceError(f"{path}: the state of this device is damaged")
        return data[32:]

    def put(self, payload: bytes, state: bytes) -> Blob:
        """Write the state first: a payload without its state must never be offered."""
        blob = Blob(hashlib.sha256(payload).hexdigest(), len(payload))
        write_atomic(self.folder / "states" / blob.digest, hashlib.sha256(state).digest() + state)
        write_atomic(self.folder / "blobs" / blob.digest, payload)
        return blob

    def write(self, data: bytes) -> Blob:
        """Write a blob."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        write_atomic(self.folder / "blobs" / blob.digest, data)
        return blob

    def keep_personal(self, run: str, data: bytes, serve: bool) -> None:
        """Write the newest personal model of a run, forgetting those of older runs, and the one that is served."""
        newest = personal_path(self.folder, run)
        write_atomic(newest, data)
        if serve:
            write_atomic(served_path(self.folder), data)
        others = [path for path in newest.parent.glob("*.bin") if path != newest]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT_RUNS - 1 :]:
            path.unlink(missing_ok=True)

    def profile(self) -> Profile | None:
        """Read what `edge-agent measure --publish` left; see `Store.profile`."""
        return published.read(self.folder)

    def served(self) -> bytes:
        """Read the personal model that is served."""
        path = served_path(self.folder)
        return path.read_bytes() if path.exists() else b""


class MemoryStore:
    """A Store without a disk. Survives a simulated crash as a disk would: everything put is kept."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.blobs: dict[str, bytes] = {}
        self.states: dict[str, bytes] = {}
        self.partials: dict[Blob, dict[int, bytes]] = {}
        self._served = b""
        self.introduces: Profile | None = None

    def probe(self) -> None:
        """Memory is always writable."""

    def sound(self, task: Task) -> bool:
        """Say whether what a task names is here."""
        blobs = {task.setup.digest, task.down.digest} <= self.blobs.keys()
        return blobs and (not task.base or task.base in self.states)

    def load(self) -> Memory:
        """Read the memory."""
        return self.memory

    def held(self) -> set[str]:
        """List the digests of the complete blobs."""
        return set(self.blobs)

    def remember(self, memory: Memory) -> None:
        """Replace the memory, and drop what it does not name."""
        self.memory = memory
        blobs, states = named(memory)
        self.blobs = {name: data for name, data in self.blobs.items() if name in blobs}
        self.states = {name: data for name, data in self.states.items() if name in states}

    def partial(self, blob: Blob) -> set[int]:
        """List the chunks that are held."""
        held = self.partials.get(blob, {})
        self.partials = {blob: held}
        return set(held)

    def keep(self, blob: Blob, chunk: Chunk) -> None:
        """Hold a chunk."""
        self.partials.setdefault(blob, {})[chunk.index] = chunk.data

    def check(self, blob: Blob) -> bool:
        """Compare the digest."""
        chunks = self.partials.pop(blob, {})
        data = b"".join(chunks[index] for index in sorted(chunks))
        if hashlib.sha256(data).hexdigest() != blob.digest:
            return False
        self.blobs[blob.digest] = data
        return True

    def read(self, digest: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a blob, or a part of it."""
        return self.blobs[digest][start:end]

    def state(self, digest: str) -> bytes | None:
        """Read a state."""
        return self.states[digest] if digest else None

    def put(self, payload: bytes, state: bytes) -> Blob:
        """Hold a result."""
        blob = Blob(hashlib.sha256(payload).hexdigest(), len(payload))
        self.states[blob.digest] = state
        self.blobs[blob.digest] = payload
        return blob

    def write(self, data: bytes) -> Blob:
        """Hold a blob."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        self.blobs[blob.digest] = data
        return blob

    def keep_personal(self, run: str, data: bytes, serve: bool) -> None:  # noqa: ARG002  # nobody asks for a run's own
        """Hold the personal model that is served."""
        if serve:
            self._served = data

    def profile(self) -> Profile | None:
        """Read what was put there; see `Store.profile`."""
        return self.introduces

    def served(self) -> bytes:
        """Give the personal model that is served."""
        return self._served


def _lock(folder: Path) -> IO[bytes]:
    try:
        for part in ("blobs", "states", "partial", "personal"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("r+b" if (folder / "lock").exists() else "w+b")
    except OSError as error:
        raise DeviceError(f"{folder}: the store cannot be made: {error.strerror}; choose another --store") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = file.read(100).decode("ascii", "replace").strip()
        file.close()
        raise ConfigError(
            f"{folder}: another agent ({who}) uses this store; stop it, or choose another --store"
        ) from error
    try:
        for path in [path for place in (folder, *folder.iterdir()) for path in place.glob(".*.tmp")]:
            path.unlink()  # a crash left it half-written
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    except OSError as error:
        log.debug("%s: %s", folder, error)  # the lock holds on a full disk too
    os.set_inheritable(file.fileno(), False)
    return file


def _is_blob(path: Path) -> bool:
    return hashlib.sha256(_bytes(path)).hexdigest() == path.name


def _is_state(path: Path) -> bool:
    data = _bytes(path)
    return hashlib.sha256(data[32:]).digest() == data[:32]


def _bytes(path: Path) -> bytes:
    """Read a file; one that cannot be read is as good as an empty one."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _digest_of(record: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _memory(record: dict[str, object]) -> Memory:
    fields: dict[str, Any] = dict(record)  # the checksum vouches for the types
    talk, pending = fields.pop("talk", None), fields.pop("pending")
    if talk is not None:
        task = {**talk["task"], "setup": Blob(**talk["task"]["setup"]), "down": Blob(**talk["task"]["down"])}
        talk = Talk(Task(**task), tuple(_offer(offer) for offer in talk["said"]))
    return Memory(**fields, pending=pending and _offer(pending), talk=talk)


def _offer(record: dict[str, Any]) -> Offer:
    return Offer(**{**record, "blob": Blob(**record["blob"])})
