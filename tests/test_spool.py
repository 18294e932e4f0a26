import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime import spool
from edge_runtime.message import Blob, Chunk

DATA = random.Random(1).randbytes(950)
BLOB = Blob(hashlib.sha256(DATA).hexdigest(), len(DATA), 100)


def chunk_of(blob: Blob, index: int, data: bytes = DATA) -> Chunk:
    return Chunk(blob.digest, index, data[slice(*blob.span(index))])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Give a file that holds every chunk, written in another order."""
    path = tmp_path / "full"
    for index in (9, 3, 0, 1, 2, 4, 5, 6, 8, 7):
        spool.keep(path, BLOB, chunk_of(BLOB, index))
    return path


def test_chunks_that_were_written_are_known_and_make_the_blob(full: Path) -> None:
    assert spool.kept(full, BLOB) == set(range(10))
    assert spool.join(full, BLOB) == DATA


def test_chunks_that_never_came_are_known_to_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "some"
    assert spool.kept(path, BLOB) == set()
    for index in (9, 4):
        spool.keep(path, BLOB, chunk_of(BLOB, index))
    assert spool.kept(path, BLOB) == {4, 9}
    assert spool.join(path, BLOB) is None
    assert spool.kept(path, BLOB) == {4, 9}


def test_a_chunk_that_is_written_twice_is_there_once(full: Path) -> None:
    before = full.read_bytes()
    spool.keep(full, BLOB, chunk_of(BLOB, 5))
    assert full.read_bytes() == before


def test_of_a_file_that_was_cut_anywhere_whole_chunks_are_good_and_no_others(full: Path) -> None:
    good = full.read_bytes()
    for size in range(len(good)):
        full.write_bytes(good[:size])
        assert spool.kept(full, BLOB) == {
            index for index in range(10) if size >= 52 + 104 * index + 54 + 50 * (index < 9)
        }


def test_every_flipped_bit_costs_the_chunk_that_it_is_in_and_no_other(full: Path) -> None:
    good = full.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        full.write_bytes(bytes(bad))
        left = set(range(10)) - {(place - 52) // 104} if place >= 52 else set()
        assert spool.kept(full, BLOB) == left
        assert spool.join(full, BLOB) is None


def test_a_damaged_chunk_is_mended_by_the_same_chunk(full: Path) -> None:
    bad = bytearray(full.read_bytes())
    bad[500] ^= 255
    full.write_bytes(bytes(bad))
    (missing,) = set(range(10)) - spool.kept(full, BLOB)
    spool.keep(full, BLOB, chunk_of(BLOB, missing))
    assert spool.join(full, BLOB) == DATA


@pytest.mark.parametrize("other", [{"digest": "0" * 64}, {"size": 940}, {"chunk": 50}], ids=str)
def test_a_file_of_another_blob_or_cut_in_other_chunks_counts_for_nothing(other: dict[str, int], full: Path) -> None:
    blob = replace(BLOB, **other)  # type: ignore[arg-type]
    assert spool.kept(full, blob) == set()
    spool.keep(full, blob, chunk_of(blob, 0))
    assert spool.kept(full, blob) == {0}
    assert spool.kept(full, BLOB) == set()


def test_chunks_that_are_all_as_they_were_sent_and_do_not_make_the_blob_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lie"
    for index in range(10):
        spool.keep(path, BLOB, chunk_of(BLOB, index, DATA[::-1]))
    assert spool.kept(path, BLOB) == set(range(10))
    assert spool.join(path, BLOB) is None
    assert spool.kept(path, BLOB) == set()


def test_a_blob_of_no_bytes_needs_no_chunk(tmp_path: Path) -> None:
    assert spool.join(tmp_path / "nothing", Blob(hashlib.sha256(b"").hexdigest(), 0)) == b""
