import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import files
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.message import Blob, Chunk, Offer
from edge_runtime.protocol import Memory
from edge_runtime.store import FileStore, MemoryStore, Store

DATA = bytes(range(256)) * 400
BLOB = Blob("", 0)


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path)
    yield store
    store.close()


@pytest.fixture(params=["on_disk", "in_memory"])
def store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue("on_disk") if request.param == "on_disk" else MemoryStore()
    return store


def blob_of(store: Store, data: bytes) -> Blob:
    return store.put(data, b"state of " + data[:4])


def test_a_result_is_read_back_whole_and_in_parts(store: Store) -> None:
    blob = blob_of(store, DATA)
    assert store.read(blob.digest) == DATA
    assert store.read(blob.digest, 100, 200) == DATA[100:200]
    assert store.state(blob.digest) == b"state of " + DATA[:4]
    assert store.state("") is None


def test_a_blob_comes_in_by_chunks_in_any_order(store: Store) -> None:
    blob = blob_of(MemoryStore(), DATA)
    for index in (1, 0):
        store.keep(blob, Chunk(blob.digest, index, DATA[slice(*blob.span(index))]))
    assert store.check(blob)
    assert store.held() == {blob.digest}


def chunk_of(blob: Blob, index: int) -> Chunk:
    return Chunk(blob.digest, index, DATA[slice(*blob.span(index))])


def test_a_blob_whose_bytes_do_not_fit_its_digest_is_dropped(store: Store) -> None:
    blob = blob_of(MemoryStore(), DATA)
    store.keep(blob, Chunk(blob.digest, 0, bytes(65_536)))
    store.keep(blob, chunk_of(blob, 1))
    assert not store.check(blob)
    assert store.held() == store.partial(blob) == set()


def test_chunks_of_one_blob_are_known_again_and_those_of_another_dropped(store: Store) -> None:
    blob, other = blob_of(MemoryStore(), DATA), blob_of(MemoryStore(), DATA[::-1])
    assert store.partial(blob) == set()
    store.keep(blob, chunk_of(blob, 1))
    assert store.partial(blob) == {1}
    store.remember(Memory("run", 1))
    assert store.partial(blob) == {1}
    assert store.partial(other) == store.partial(blob) == set()


def test_chunks_survive_a_restart(on_disk: FileStore) -> None:
    blob = blob_of(MemoryStore(), DATA)
    on_disk.keep(blob, chunk_of(blob, 0))
    on_disk.close()
    again = FileStore(on_disk.folder)
    assert again.partial(blob) == {0}
    again.keep(blob, chunk_of(blob, 1))
    assert again.check(blob)
    assert again.partial(blob) == set()
    again.close()


def test_remembering_drops_what_the_memory_does_not_name(store: Store) -> None:
    old, new = blob_of(store, b"old"), blob_of(store, b"new")
    store.remember(Memory("run", 1, 0, old.digest, "", Offer("run", 0, "train", new, {"wall-s": 1.0})))
    assert store.held() == {new.digest}
    assert store.state(old.digest) == b"state of old"
    assert store.load().pending == Offer("run", 0, "train", new, {"wall-s": 1.0})
    store.remember(Memory("run", 1, 0, new.digest))
    assert store.held() == set()
    assert store.state(new.digest) == b"state of new"


def test_a_second_agent_on_the_same_store_is_refused(tmp_path: Path) -> None:
    first = FileStore(tmp_path)
    with pytest.raises(ConfigError, match="another agent"):
        FileStore(tmp_path)
    first.close()
    FileStore(tmp_path).close()


def test_a_memory_survives_a_restart(on_disk: FileStore) -> None:
    memory = Memory("run", 3, 7, blob_of(on_disk, b"x").digest, "b" * 64)
    on_disk.remember(memory)
    assert FileStore(on_disk.folder, exclusive=False).load() == memory


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"run": "x"}', b"\xff\xfe"])
def test_a_damaged_memory_is_set_aside_and_the_device_starts_anew(
    damage: bytes, on_disk: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("memory.json", "memory.copy"):
        (tmp_path / name).write_bytes(damage)
    assert on_disk.load() == Memory()
    assert (tmp_path / "memory.json.corrupt-1").read_bytes() == damage
    assert "damaged" in caplog.text


def test_every_flipped_bit_of_a_memory_is_noticed(on_disk: FileStore, tmp_path: Path) -> None:
    memory = Memory("run", 3, 7)
    on_disk.remember(memory)
    good = (tmp_path / "memory.json").read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        for name in ("memory.json", "memory.copy"):
            (tmp_path / name).write_bytes(bytes(bad))
        assert on_disk.load() in (Memory(), memory), f"byte {place}"
    assert len(list(tmp_path.glob("memory.json.corrupt-*"))) == 3


def test_a_damaged_state_is_refused(on_disk: FileStore, tmp_path: Path) -> None:
    blob = blob_of(on_disk, b"x")
    (tmp_path / "states" / blob.digest).write_bytes(b"nonsense")
    with pytest.raises(DeviceError, match="damaged"):
        on_disk.state(blob.digest)


def test_a_full_disk_leaves_the_old_file_and_says_so(
    on_disk: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory("run", 1)
    on_disk.remember(memory)

    def full(descriptor: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DeviceError, match="No space left"):
        on_disk.remember(Memory("run", 2))
    assert on_disk.load() == memory
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
